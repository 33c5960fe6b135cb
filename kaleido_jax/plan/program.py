"""The training step of a config as shapes on a mesh: traced, lowered and compiled, without one array of its size."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from kaleido_jax.config.checks import check_devices, mesh_sizes
from kaleido_jax.config.schema import Config, micro_names, sample_shapes
from kaleido_jax.interop.t5.load import stored_dtype
from kaleido_jax.models import cpu
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime.mesh import batch_sharding, replicated
from kaleido_jax.train.caption_cache import ROW, TABLE
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import State, abstract_state
from kaleido_jax.train.step import TrainStep, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A training step and its arguments as shapes; `shardings` has the form (state, frozen, batch)."""

    step: TrainStep
    state: State
    frozen: dict[str, Any]
    batch: dict[str, jax.ShapeDtypeStruct]
    shardings: tuple[Any, Any, NamedSharding]
    mesh: Mesh | AbstractMesh

    @property
    def arguments(self) -> tuple[State, dict[str, Any], dict[str, Any]]:
        """What the step is called with."""
        return self.state, self.frozen, self.batch


def build_program(
    config: Config,
    base_vocab_size: int,
    num_devices: int = 1,
    devices: np.ndarray | None = None,
    placed: bool = True,
) -> Program:
    """The step of train/loop.py on config.mesh.

    Args:
      config: the experiment; a checkpoint that it starts from is not read.
      base_vocab_size: rows of T5's vocabulary.
      num_devices: that the mesh spans.
      devices: those devices, to compile for; None = nameless ones, which suffice for everything else.
      placed: activations are placed by config.mesh.rules, as in training; False leaves them to XLA, to compare.

    Raises:
      UserError: the mesh does not fit the devices, or the batch does not divide over them.
    """
    check_devices(config, num_devices)
    sizes = mesh_sizes(config.mesh, num_devices)
    shape, names = tuple(sizes.values()), tuple(sizes)
    if devices is None:  # axes of the kind that Mesh has; JAX's default differs among its versions
        mesh = AbstractMesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
    else:
        mesh = Mesh(np.reshape(devices, shape), names)
    model, optimizer = build_model(config, base_vocab_size), make_optimizer(config.train)
    (state, frozen), (state_shardings, frozen_shardings) = abstract_state(config, model, optimizer, mesh)
    if config.model.t5.checkpoint is not None:  # loaded weights may be stored narrower than random ones
        frozen = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.update(dtype=stored_dtype(config, path)), frozen
        )
    if config.data.class_captions:  # as train.caption_cache.encode_once
        table = jax.eval_shape(
            lambda params, tokens: model.apply({"params": params}, tokens, method="encode")[0],
            frozen,
            _captions(config),
        )
        frozen, frozen_shardings = (
            {name: part for name, part in tree.items() if name != "encoder"} | {TABLE: {"states": leaf}}
            for tree, leaf in ((frozen, table), (frozen_shardings, replicated(mesh)))
        )
    return Program(
        step=make_train_step(model, config, optimizer, mesh if placed else None),
        state=state,
        frozen=frozen,
        batch=batch_shapes(config),
        shardings=(state_shardings, frozen_shardings, batch_sharding(mesh)),
        mesh=mesh,
    )


def _captions(config: Config) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((len(config.data.class_captions) + 1, config.data.max_caption_tokens), jnp.int32)


def batch_shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of data/loader.py of all processes together, with latents of config.latents.max_latents_tokens."""
    rows = config.train.batch_size

    def leaf(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    batch = {
        "encoder_input_tokens": leaf(jnp.int32, config.data.max_caption_tokens),
        # Points are no bytes.
        "image": leaf(jnp.uint8 if config.model.denoiser else jnp.float32, *sample_shapes(config.model)[0]),
        "sample_id": leaf(jnp.int32),  # as jax stores the loader's int64
    }
    if config.latents.segments:
        length = config.latents.max_latents_tokens
        batch |= {f"decoder_{name}_tokens": leaf(jnp.int32, length) for name in ("input", "target")}
        batch["decoder_loss_weights"] = leaf(jnp.float32, length)
    if config.data.class_captions:
        batch[ROW] = leaf(jnp.int32)
    if "scale" in micro_names(config.model):
        batch["micro_scale"] = leaf(jnp.float32)
    return batch


def trace(program: Program) -> ClosedJaxpr:
    """The step's jaxpr, in the plain formulas of an accelerator."""
    with cpu.plain():
        return jax.make_jaxpr(program.step)(*program.arguments)


def lower(program: Program) -> jax.stages.Lowered:
    """The step as train/loop.py jits it, lowered for the devices of its mesh."""
    with cpu.plain(program.mesh.devices.flat[0].platform):
        return jax.jit(
            program.step,
            in_shardings=program.shardings,
            out_shardings=(program.shardings[0], replicated(program.mesh)),
            donate_argnums=0,
        ).lower(*program.arguments)
