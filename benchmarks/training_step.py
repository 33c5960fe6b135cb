"""The training step of a config with a made-up batch, for the benchmarks that time it."""

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from kaleido_jax.config import load_config
from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config, sample_shapes
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.plan.program import Program
from kaleido_jax.runtime.mesh import batch_sharding, make_mesh, put_batch, replicated
from kaleido_jax.train.caption_cache import ROW
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import Guard, State, create_state
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


# ------------------------------------------------------------------------------------------ from shapes
def jitted(program: Program) -> jax.stages.Wrapped:
    """The step of a program as train/loop.py jits it, in the forms of the backend that is here."""
    of_state, of_frozen, of_batch = program.shardings
    return jax.jit(
        program.step,
        in_shardings=(of_state, of_frozen, of_batch),
        out_shardings=(of_state, replicated(program.mesh)),
        donate_argnums=0,
    )


def made_up_batch(config: Config, program: Program) -> dict[str, jax.Array]:
    """`make_batch` with the arrays and dtypes of the loader: images as bytes, captions as rows of a table."""
    made = make_batch(config, config.train.batch_size)
    made["image"] = made["image"] if program.batch["image"].dtype == np.float32 else 127.5 * (made["image"] + 1)
    made[ROW] = np.random.default_rng(1).integers(0, max(len(config.data.class_captions), 1), config.train.batch_size)
    made |= {name: np.full(leaf.shape, config.model.denoiser.image_size) for name, leaf in _micros(program)}
    return put_batch({name: made[name].astype(leaf.dtype) for name, leaf in program.batch.items()}, program.mesh)


def _micros(program: Program) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    return [(name, leaf) for name, leaf in program.batch.items() if name.startswith("micro_")]


def made_up_state(program: Program) -> tuple[State, dict[str, Any]]:
    """(state, frozen parameters) of random weights, made on the devices with the program's shapes and shardings.

    For models whose pretrained weights are not there. Weights are uniform with a standard deviation of 0.02, scales of
    norms 1: the power that products draw, and with it the clock, depends on the numbers.
    """
    seeds = itertools.count(1)

    def weights(path: tuple, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
        width = 0.0 if path[-1].key == "scale" else 0.07
        return _uniform(np.uint32(next(seeds)), leaf.shape, leaf.dtype, sharding, width)

    of_state, of_frozen, _ = program.shardings
    drawn = jax.tree_util.tree_map_with_path  # leaf by leaf: a program that made all would need memory beside them
    params = drawn(weights, program.state.params, of_state.params)
    frozen = drawn(weights, program.frozen, of_frozen)

    def rest() -> State:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), program.state)
        return zeros.replace(params=None, ema=None, guard=Guard.fresh())

    made = jax.jit(rest, out_shardings=of_state.replace(params=None, ema=None))()
    ema = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=of_state.ema)(params)
    return made.replace(params=params, ema=ema), frozen


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _uniform(seed: Any, shape: tuple[int, ...], dtype: Any, sharding: NamedSharding, width: float) -> jax.Array:
    """Uniform numbers around 0, or ones for a width of 0; murmur3's last mixing, which compiles in no time."""
    bits = jnp.arange(math.prod(shape), dtype=jnp.uint32) * jnp.uint32(0x9E3779B1) + seed * jnp.uint32(0x7FEB352D)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    value = width * ((bits >> 8).astype(jnp.float32) * 2.0**-24 - 0.5) if width else jnp.ones(bits.shape)
    return jax.lax.with_sharding_constraint(value.reshape(shape).astype(dtype), sharding)
