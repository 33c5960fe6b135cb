"""Models from folders: what an exported one holds, and what is wrong with others."""

import dataclasses
import shutil
from importlib import resources

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from kaleido_jax.config.codec import open_codec
from kaleido_jax.errors import UserError
from kaleido_jax.runtime import distributed
from kaleido_jax.sampling import weights
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from tests.sampling.test_pipeline import CONFIG, random_params
from tests.tiny import single_net_config


def export(config, folder):
    """Writes an exported folder of random weights; returns them by name."""
    named = {n: np.asarray(leaf) for n, leaf in flatten_dict(random_params(open_codec(config), 0), sep="/").items()}
    save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text(config.to_json())
    return named


def test_an_exported_folder_is_read_whole(tmp_path):
    named = export(CONFIG, tmp_path)
    pipe = KaleidoPipeline.from_pretrained(str(tmp_path))
    assert pipe.config == dataclasses.replace(CONFIG, mesh=pipe.config.mesh)
    found = flatten_dict(pipe.params, sep="/")
    assert found.keys() == named.keys()
    for name, leaf in named.items():
        np.testing.assert_array_equal(found[name], leaf)


def test_processes_sum_up_the_snapshots_that_the_main_one_has_seen(tmp_path, monkeypatch):
    """Beside a training, which has written another one since."""
    train = dataclasses.replace(CONFIG.train, ema_profiles=(0.05, 0.1), ema_every_steps=1)
    config = dataclasses.replace(CONFIG, train=train)
    for step in (2, 4, 6):
        (tmp_path / "ema_snapshots" / str(step)).mkdir(parents=True)
    assert weights._plan(config, tmp_path, 0.08, None)[1] == 6
    monkeypatch.setattr(distributed, "tell", lambda name, make, timeout_s: [2, 4])
    factors, step = weights._plan(config, tmp_path, 0.08, None)
    assert step == 4 and {step for step, _ in factors} == {2, 4}


def test_a_vocabulary_of_its_own_comes_with_the_folder(tmp_path):
    source = resources.files("kaleido_jax") / "assets" / "emoji" / "spiece.model"
    shutil.copy(str(source), tmp_path / "spiece.model")
    t5 = dataclasses.replace(CONFIG.model.t5, vocabulary=str(tmp_path / "spiece.model"))
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, t5=t5))
    export(config, tmp_path)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert KaleidoPipeline.from_pretrained(moved).codec.tokenizer.encode("a fruit")


def test_tensors_of_another_model_are_named(tmp_path):
    named = export(CONFIG, tmp_path)
    name = min(named)
    for changed, message in (
        ({n: leaf for n, leaf in named.items() if n != name}, f"1 missing names .{name}"),
        (named | {"more": np.zeros(1, np.float32)}, "1 unknown names .more"),
        (named | {name: np.zeros((1, 2, 3), np.float32)}, "has shape"),
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=message):
            KaleidoPipeline.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        KaleidoPipeline.from_pretrained(tmp_path)


def test_a_worse_model_that_predicts_something_else_is_refused(tmp_path):
    """Its tensors have the same shapes, so only the config tells that v would be extrapolated from eps."""
    folder, worse = tmp_path / "good", tmp_path / "worse"
    folder.mkdir()
    worse.mkdir()
    export(CONFIG, folder)
    config = single_net_config(sample__guidance="autoguidance", sample__autoguidance_workdir=str(worse))
    for other, message in (
        ({"diffusion__prediction": "eps"}, "diffusion.prediction = 'eps'; expected 'v', that of the model"),
        ({"diffusion__shift_power": 2.0}, "diffusion.shift_power = 2.0; expected 1.0"),
        ({"latents__coordinate_step": 1}, "latents.coordinate_step = 1; expected 10"),
    ):
        export(single_net_config(**other), worse)
        with pytest.raises(UserError, match=f"the worse model {worse} with {message}"):
            KaleidoPipeline.from_pretrained(folder, config)
    export(single_net_config(diffusion__p_uncond=0.5, train__num_steps=1), worse)
    assert KaleidoPipeline.from_pretrained(folder, config).bad_params
    (worse / "config.json").unlink()
    assert KaleidoPipeline.from_pretrained(folder, config).bad_params
