import json
from importlib import resources

import pytest

from kaleido_jax.config import load_config
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.load import config_of_workdir
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


def test_a_field_younger_than_the_workdir_has_its_default_in_an_inner_net_too(tmp_path):
    open_workdir(tiny_config(), tmp_path)
    stored = json.loads((tmp_path / CONFIG).read_text())
    for net in (stored["model"]["denoiser"], stored["model"]["denoiser"]["inner"]):
        del net["patch"], net["micro"]
    (tmp_path / CONFIG).write_text(json.dumps(stored))
    check_workdir(tiny_config(), tmp_path)
    with pytest.raises(UserError, match=r"model.denoiser.inner.micro = \[\] there"):
        check_workdir(tiny_config(model__denoiser__inner__micro=(("scale", 8.0),)), tmp_path)


def test_how_it_is_sampled_may_change_in_a_workdir(tmp_path):
    open_workdir(tiny_config(), tmp_path)
    check_workdir(tiny_config(sample__sampler="heun", sample__guidance="apg"), tmp_path)
    with pytest.raises(UserError, match="train.mixed_ratio"):
        check_workdir(tiny_config(train__mixed_ratio=(2, 1)), tmp_path)
    with pytest.raises(UserError, match="seed = 0 there; expected 1; draw other samples by `sample --seed=N`, use"):
        check_workdir(tiny_config(seed=1), tmp_path)


def test_nets_of_another_depth_are_still_different(tmp_path):
    open_workdir(single_net_config(), tmp_path / "one")
    with pytest.raises(UserError, match="belongs to another config"):
        check_workdir(tiny_config(), tmp_path / "one")
    open_workdir(tiny_config(), tmp_path / "two")
    with pytest.raises(UserError, match="belongs to another config"):
        check_workdir(single_net_config(), tmp_path / "two")


def test_a_workdir_of_points_has_no_images_net(tmp_path):
    points = tiny_config(model__denoiser=None, model__point_denoiser={"dim": 2, "width": 16, "num_layers": 2})
    open_workdir(points, tmp_path)
    check_workdir(points, tmp_path)
    with pytest.raises(UserError, match="belongs to another config"):
        check_workdir(tiny_config(), tmp_path)


# ------------------------------------------------------------------------- a vocabulary of one's own
def own_vocabulary(path):
    path.write_bytes(resources.files("kaleido_jax").joinpath("assets/emoji/spiece.model").read_bytes())
    return tiny_config(model__t5__vocabulary=str(path))


def test_a_vocabulary_of_ones_own_is_kept_in_the_workdir_which_can_move(tmp_path):
    config = own_vocabulary(tmp_path / "mine.model")
    open_workdir(config, tmp_path / "run")
    (tmp_path / "mine.model").unlink()
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    found = load_config(moved)  # from its config.json
    assert found.model.t5.vocabulary == str(moved / "spiece.model") and open_codec(found).tokenizer.num_pieces > 100
    check_workdir(found, moved)
    (moved / "spiece.model").write_bytes(b"another")
    other = own_vocabulary(tmp_path / "other.model")
    with pytest.raises(UserError, match=r"model.t5.vocabulary = .*--config=.*config.json"):
        check_workdir(other, moved)


def test_a_vocabulary_that_is_still_there_is_used_where_it_is(tmp_path):
    config = own_vocabulary(tmp_path / "mine.model")
    open_workdir(config, tmp_path / "run")
    assert load_config(tmp_path / "run").model.t5.vocabulary == str(tmp_path / "mine.model")
    assert load_config("emoji-tiny").model.t5.vocabulary == "emoji"


# --------------------------------------------------------------------------- the config of a workdir
def test_without_a_config_the_workdirs_own_file_counts_before_its_stored_one(tmp_path, monkeypatch):
    assert config_of_workdir(str(tmp_path)) == config_of_workdir("") == ""
    open_workdir(tiny_config(), tmp_path)
    assert config_of_workdir(str(tmp_path)) == str(tmp_path / "config.json")
    (tmp_path / "config.py").write_text("raise SystemExit('run')")
    assert config_of_workdir(str(tmp_path)) == str(tmp_path / "config.py")
    monkeypatch.chdir(tmp_path)
    assert config_of_workdir("") == ""
    assert load_config(tmp_path) == tiny_config()  # a folder's name alone runs no code in it


def test_a_folder_with_python_alone_is_not_run_but_named(tmp_path):
    (tmp_path / "config.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match=r"without config.json; expected a config; name .*config.py"):
        load_config(tmp_path)
