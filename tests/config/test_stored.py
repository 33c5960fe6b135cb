import json

import pytest

from kaleido_jax.config.stored import check_workdir, open_workdir
from kaleido_jax.errors import UserError
from kaleido_jax.runtime.workdir import CONFIG
from tests.tiny import single_net_config, tiny_config


def test_a_field_younger_than_the_workdir_has_its_default_there(tmp_path):
    open_workdir(tiny_config(), tmp_path)
    stored = json.loads((tmp_path / CONFIG).read_text())
    del stored["diffusion"]["vdm_weights"], stored["train"]["mixed_ratio"]
    (tmp_path / CONFIG).write_text(json.dumps(stored))
    check_workdir(tiny_config(), tmp_path)
    with pytest.raises(UserError, match="diffusion.vdm_weights = False there"):
        check_workdir(tiny_config(diffusion__vdm_weights=True), tmp_path)


def test_how_it_is_sampled_may_change_in_a_workdir(tmp_path):
    open_workdir(tiny_config(), tmp_path)
    check_workdir(tiny_config(sample__sampler="heun", sample__guidance="apg"), tmp_path)
    with pytest.raises(UserError, match="train.mixed_ratio"):
        check_workdir(tiny_config(train__mixed_ratio=(2, 1)), tmp_path)


def test_nets_of_another_depth_are_still_different(tmp_path):
    open_workdir(single_net_config(), tmp_path / "one")
    with pytest.raises(UserError, match="belongs to another config"):
        check_workdir(tiny_config(), tmp_path / "one")
    open_workdir(tiny_config(), tmp_path / "two")
    with pytest.raises(UserError, match="belongs to another config"):
        check_workdir(single_net_config(), tmp_path / "two")
