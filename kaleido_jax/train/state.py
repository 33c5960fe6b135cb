"""State of a run as one pytree, and how a fresh one is made."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Int, Key

from kaleido_jax.config.schema import Config, Train
from kaleido_jax.interop.t5.load import load_pretrained
from kaleido_jax.models.kaleido import Kaleido, init_params, split_frozen
from kaleido_jax.runtime.checkpoints import abstract
from kaleido_jax.runtime.mesh import shardings_of
from kaleido_jax.runtime.posthoc_ema import gamma_of
from kaleido_jax.runtime.randomness import purpose_key
from kaleido_jax.train.warm_start import load_inner

# Hundreds of small random draws run once: without optimization, compiling them took a third of the time on CPU.
_QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


FIRST_SCALE, MAX_SCALE, SCALE_GROWS_AFTER = 2.0**15, 2.0**24, 2000  # of the loss in float16


class State(struct.PyTreeNode):
    """What a checkpoint holds; params are the trainable ones only, float32 like the averages and Adam's moments."""

    step: Any  # int32 (); every leaf may also be a shape, a sharding or a spec
    params: Any
    ema: Any
    opt_state: Any
    guard: "Guard"
    profiles: Any = ()  # trees like params: the averages of train.ema_profiles, in that order


class Guard(struct.PyTreeNode):
    """Steps without a finite gradient, and float16's loss scale."""

    skipped: Any  # int32 (): such steps so far
    skipped_in_row: Any  # int32 (): up to the last step
    loss_scale: Any  # float32 (): the loss is multiplied by it in float16
    since: Any  # int32 (): finite steps since the scale last changed

    @staticmethod
    def fresh() -> "Guard":
        """At the start of a run."""
        zero = jnp.zeros((), jnp.int32)
        return Guard(skipped=zero, skipped_in_row=zero, loss_scale=jnp.float32(FIRST_SCALE), since=zero)


def adjusted(guard: Guard, finite: Bool[Array, ""]) -> Guard:
    """After one more step: dynamic loss scaling (Micikevicius et al. 2018) halves the scale where it overflows."""
    since = jnp.where(finite, guard.since + 1, 0)
    grows = since >= SCALE_GROWS_AFTER
    scale = jnp.where(finite, guard.loss_scale * jnp.where(grows, 2, 1), jnp.maximum(guard.loss_scale / 2, 1))
    return Guard(
        skipped=guard.skipped + ~finite,
        skipped_in_row=jnp.where(finite, 0, guard.skipped_in_row + 1),
        loss_scale=jnp.minimum(scale, MAX_SCALE),
        since=jnp.where(grows, 0, since),
    )


def kept_if(good: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` if good, else `old`, for every leaf of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def moved_ema(ema: Any, params: Any, step: Int[Array, ""], train: Train) -> Any:
    """The EMA after step `step`, 0..; it moves every train.ema_every_steps, by the decay of all these steps."""
    every = train.ema_every_steps
    moved = functools.partial(optax.incremental_update, params, ema, 1 - train.ema_decay**every)
    return moved() if every == 1 else jax.lax.cond((step + 1) % every == 0, moved, lambda: ema)


def share_of_start(train: Train) -> float:
    """The share of the initial weights that the EMA still holds after train.num_steps steps, 0..1."""
    every = train.ema_every_steps
    return train.ema_decay ** (train.num_steps // every * every)


def moved_profiles(profiles: tuple[Any, ...], params: Any, step: Int[Array, ""], train: Train) -> tuple[Any, ...]:
    """The averages of train.ema_profiles after step `step`, 0..; they move when the EMA does.

    Karras et al. 2024, section 3.1: theta_gamma(t) = beta * theta_gamma(t - 1) + (1 - beta) * theta(t), t = 1.., with
    beta(t) = (1 - 1 / t)**(gamma + 1). The betas of k steps multiply to (1 - k / t)**(gamma + 1), so an average that
    moves every k steps has the power function exactly, over the parameters at these steps. The first move forgets what
    the average began with. A step that was skipped counts with the parameters that it left.
    """
    every = train.ema_every_steps

    def moved() -> tuple[Any, ...]:
        kept = jnp.log1p(-every / (step + 1).astype(jnp.float32))  # 1 - beta has all its digits late in a run too
        shares = [-jnp.expm1((gamma_of(width) + 1) * kept) for width in train.ema_profiles]
        return tuple(optax.incremental_update(params, old, share) for old, share in zip(profiles, shares, strict=True))

    return moved() if every == 1 or not profiles else jax.lax.cond((step + 1) % every == 0, moved, lambda: profiles)


def create_state(
    config: Config, model: Kaleido, optimizer: optax.GradientTransformation, mesh: Mesh, fresh: bool = True
) -> tuple[State, dict, Any]:
    """(state, frozen parameters, shardings of both) of a fresh run, every array created sharded.

    The T5 parts come from config.model.t5.checkpoint if it is set, and the inner net (with the prior that was trained
    beside it) from config.init.inner. Without `fresh` only the frozen parts are made, and the state is shapes with
    shardings, to restore a checkpoint into.

    Raises:
      UserError: weights are missing, damaged or of another size; nothing has been compiled by then.
    """
    key, init = purpose_key(config.seed, "init"), _initializer(config, model, optimizer)
    shapes, shardings = abstract_state(config, model, optimizer, mesh)
    wanted, loaded = shapes[1], {}
    if fresh:
        wanted = shapes[0].params | shapes[1]
        if config.init.inner is not None:
            loaded = load_inner(config, shapes[0].params)
    missing = {part: tree for part, tree in wanted.items() if part not in loaded}
    loaded |= load_pretrained(config, missing, shardings[0].params | shardings[1])
    # Random values that `loaded` replaces are never drawn; donation avoids a second copy of its arrays.
    born = jax.jit(
        lambda *args: nn.meta.unbox(init(*args))[0 if fresh else 1 :],
        out_shardings=shardings[0 if fresh else 1 :],
        donate_argnums=1,
        compiler_options=_QUICK_COMPILE,
    )
    *made, frozen = born(key, loaded)
    return made[0] if fresh else shapes[0], frozen, shardings


def abstract_state(
    config: Config, model: Kaleido, optimizer: optax.GradientTransformation, mesh: Mesh | AbstractMesh
) -> tuple[tuple[State, dict], Any]:
    """((state, frozen parameters) of a fresh run as shapes with shardings, the shardings); nothing is computed."""
    boxed = jax.eval_shape(_initializer(config, model, optimizer), jax.random.key(0), {})
    shardings = shardings_of(boxed, mesh, config.mesh.rules)
    return abstract(nn.meta.unbox(boxed), shardings), shardings


def _initializer(
    config: Config, model: Kaleido, optimizer: optax.GradientTransformation
) -> Callable[[Key[Array, ""], dict], tuple[State, dict]]:
    def init(key: Key[Array, ""], loaded: dict) -> tuple[State, dict]:
        trainable, frozen = split_frozen(_replaced(init_params(model, key), loaded), config)
        state = State(
            step=jnp.zeros((), jnp.int32),
            params=trainable,
            ema=jax.tree.map(jnp.copy, trainable),
            opt_state=optimizer.init(trainable),
            guard=Guard.fresh(),
            profiles=tuple(jax.tree.map(jnp.copy, trainable) for _ in config.train.ema_profiles),
        )
        return state, frozen

    return init


def _replaced(params: Any, loaded: Any) -> Any:
    """`params` with its subtrees replaced by those of `loaded`."""
    if not isinstance(loaded, dict):
        return loaded
    return params | {key: _replaced(params[key], value) for key, value in loaded.items()}
