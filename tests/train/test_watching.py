"""Means of held-out losses: over samples, and of z over tokens."""

import numpy as np

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
        return None, {"loss": loss_dm + config.train.eta * loss_ar, "loss_dm": loss_dm, "loss_ar": loss_ar}

    monkeypatch.setattr(watching, "joint_loss", losses)
    config = single_net_config(train__eta=0.5)
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
