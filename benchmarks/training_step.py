"""The training step of a config with a made-up batch, for the benchmarks that time it."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from kaleido_jax.config import load_config
from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config, sample_shapes
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime.mesh import batch_sharding, make_mesh, put_batch, replicated
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import create_state
from kaleido_jax.train.step import make_train_step


def make_batch(config: Config, rows: int) -> dict[str, np.ndarray]:
    """Random images and tokens; z fills its bucket to between a half and all of it."""
    rng, length = np.random.default_rng(0), config.latents.max_latents_tokens
    weights = (np.arange(length) < rng.integers(length // 2, length, (rows, 1))).astype(np.float32)
    targets = np.where(weights > 0, rng.integers(3, 300, (rows, length)), 0).astype(np.int32)
    return {
        "image": rng.uniform(-1, 1, (rows, *sample_shapes(config.model)[0])).astype(np.float32),
        "encoder_input_tokens": rng.integers(3, 100, (rows, config.data.max_caption_tokens)).astype(np.int32),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_loss_weights": weights,
        "sample_id": np.arange(rows),
    }


def make_step(config_name: str, batch_size: int) -> tuple[jax.stages.Wrapped, Any, dict[str, jax.Array]]:
    """(jitted step, state, batch) as train/loop.py makes them, over all devices."""
    config = load_config(config_name)
    model = build_model(config, open_codec(config).tokenizer.base_vocab_size)
    optimizer, mesh = make_optimizer(config.train), make_mesh(mesh_sizes(config.mesh, jax.device_count()))
    state, frozen, (state_shardings, frozen_shardings) = create_state(config, model, optimizer, mesh)
    assert not frozen, "the benchmarks' configs train their encoder"
    # No layer may be zero: XLA would not notice, but a reader of the loss would.
    state = state.replace(params=jax.tree.map(lambda leaf: leaf + 0.01, nn.meta.unbox(state.params)))
    step = jax.jit(
        make_train_step(model, config, optimizer, mesh),
        in_shardings=(state_shardings, frozen_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return step, jax.device_put(state, state_shardings), put_batch(make_batch(config, batch_size), mesh)
