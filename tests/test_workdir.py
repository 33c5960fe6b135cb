import json

import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.workdir import CONFIG, check_workdir, open_workdir
from tests.tiny import single_net_config, tiny_config


def test_a_workdir_from_before_a_field_existed_has_its_default(tmp_path):
    open_workdir(tiny_config(), tmp_path)
    stored = json.loads((tmp_path / CONFIG).read_text())
    del stored["train"]["scheduled_sampling"]
    (tmp_path / CONFIG).write_text(json.dumps(stored))
    check_workdir(tiny_config(), tmp_path)
    with pytest.raises(UserError, match=r"train.scheduled_sampling = 0.0 there"):
        check_workdir(tiny_config(train__scheduled_sampling=0.5), tmp_path)


def test_nets_of_another_depth_are_still_different(tmp_path):
    open_workdir(single_net_config(), tmp_path / "one")
    with pytest.raises(UserError, match="belongs to another config"):
        check_workdir(tiny_config(), tmp_path / "one")
    open_workdir(tiny_config(), tmp_path / "two")
    with pytest.raises(UserError, match="belongs to another config"):
        check_workdir(single_net_config(), tmp_path / "two")
