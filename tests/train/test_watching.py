"""Means of held-out losses, over samples, and of z over tokens; and grids, which must not end a training."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.data.records import Record
from kaleido_jax.errors import UserError
from kaleido_jax.latents.types import Latents
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime.mesh import make_mesh
from kaleido_jax.train import watching
from tests.tiny import single_net_config


def test_the_loss_of_z_is_a_mean_over_tokens_and_the_other_over_samples(monkeypatch):
    """Whatever the batches are: of one sample with three tokens, and of two with one each."""

    def losses(params, model, config, batch, number):
        weights = batch["decoder_loss_weights"]
        loss_ar = (batch["nll"] * weights).sum() / weights.sum()
        loss_dm = batch["image"].mean()
        assert config.train.scheduled_sampling == 0  # held-out z are read as they are
        return None, {"loss": loss_dm + config.train.eta * loss_ar, "loss_dm": loss_dm, "loss_ar": loss_ar}

    monkeypatch.setattr(watching, "joint_loss", losses)
    config = single_net_config(train__eta=0.5, train__scheduled_sampling=0.5)
    measure = watching.Losses(config, build_model(config, 256), make_mesh({"data": 1, "fsdp": 1, "tensor": 1}))
    ones = {
        "image": np.float32([1.0]),
        "nll": np.float32([[1, 1, 1]]),
        "decoder_loss_weights": np.ones((1, 3), np.float32),
    }
    twos = {"image": np.float32([4.0, 4.0]), "nll": np.float32([[6, 9], [6, 9]])}
    twos["decoder_loss_weights"] = np.float32([[1, 0], [1, 0]])
    found = measure.mean([ones, twos], {}, {})
    assert found["loss_dm"] == 3.0 and found["loss_ar"] == (3 * 1 + 2 * 6) / 5
    assert found["loss"] == 3.0 + 0.5 * found["loss_ar"] and set(found) == {"loss", "loss_dm", "loss_ar"}


class Damaged:
    """Records "0", "1", ... of which some cannot be read."""

    def __init__(self, number, damaged):
        self.number, self.damaged = number, damaged

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if index in self.damaged:
            raise UserError(f"record {index} is damaged")
        fields = {"image": b"", "caption_tokens": [], "latents": Latents(), "tokens": {}, "provenance": {}}
        return Record(id=str(index), caption=str(index), **fields)


class Drawing(watching.KaleidoPipeline):
    """Checks what is asked, and draws nothing."""

    def __call__(self, captions, *, images_per_caption, seed, **overrides):
        sample = self.override(overrides)
        self.recipe(captions, images_per_caption, seed, sample)
        drawn.append((captions, sample.guidance))
        return SimpleNamespace(grid=lambda: Image.new("RGB", (8, 8)))


drawn = []


@pytest.fixture
def looks(monkeypatch, tmp_path):
    """Looks at these records with a config."""
    monkeypatch.setattr(watching, "KaleidoPipeline", Drawing)
    drawn.clear()

    def make(records, **changes):
        config = single_net_config(latents__segments=(), eval__held_out_batches=0, **changes)
        monkeypatch.setattr(watching, "_held_out", lambda *args: records)
        model = build_model(config, 256)
        return watching.Looks(config, tmp_path, model, None, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}))

    return make


def test_a_grid_shows_the_next_record_for_a_damaged_one(looks, caplog, tmp_path):
    look = looks(Damaged(20, damaged={0, 4}))
    look(2, {"denoiser": {}}, {})
    look(4, {"denoiser": {}}, {})
    assert drawn == [(["1", "2", "3", "5", "6", "7"], "cfg")] * 2
    assert caplog.text.count("record 4 is damaged; the grid shows the next record") == 1
    assert sorted(path.name for path in (tmp_path / "samples" / "training").iterdir()) == [
        "step_00000002.png",
        "step_00000004.png",
    ]
    look = looks(Damaged(20, damaged=range(20)))
    look(2, {"denoiser": {}}, {})
    assert len(drawn) == 2 and "so no grid" in caplog.text


def test_a_record_that_another_process_cannot_read_is_in_no_grid(looks, monkeypatch):
    answers = [False] + [True] * 6
    monkeypatch.setattr(watching.distributed, "agree", lambda name, mine, timeout_s: mine and answers.pop(0))
    looks(Damaged(20, damaged=()))(2, {"denoiser": {}}, {})
    assert drawn == [(["1", "2", "3", "4", "5", "6"], "cfg")]


def test_a_grid_needs_no_worse_model(looks, caplog):
    look = looks(Damaged(6, damaged=()), sample__guidance="autoguidance", sample__autoguidance_step=2)
    look(2, {"denoiser": {}}, {})
    look(4, {"denoiser": {}}, {})
    assert [guidance for _, guidance in drawn] == ["cfg"] * 2
    assert caplog.text.count("the worse model of autoguidance is not read") == 1


def test_a_grid_that_does_not_fit_on_the_disk_is_left_out(looks, monkeypatch, caplog):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(watching, "write_atomically", full)
    looks(Damaged(6, damaged=()))(2, {"denoiser": {}}, {})
    assert "step_00000002.png cannot be written (No space left on device)" in caplog.text
