"""The state of a run, as one pytree, and the optimizer (paper, table B.2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from kaleido_jax.config.schema import Config, Train
from kaleido_jax.interop.t5.load import STACKS, load_t5
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.models.kaleido import Kaleido, init_params
from kaleido_jax.runtime.checkpoints import abstract
from kaleido_jax.runtime.mesh import shardings_of
from kaleido_jax.runtime.randomness import purpose_key
from kaleido_jax.train.warm_start import load_inner

# Hundreds of small random draws run once: compiling them without optimization took a third of the time on CPU.
_QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class State(struct.PyTreeNode):
    """What a checkpoint holds; params are the trainable ones only, float32 like ema and opt_state."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def learning_rate(config: Train):
    """Step -> rate: linear warm-up max(1, k) / W as in MDM, then constant or cosine to zero at num_steps."""

    def rate(step):
        warm = jnp.minimum(jnp.maximum(step, 1) / max(config.warmup_steps, 1), 1.0)
        if config.lr_schedule == "constant":
            return config.learning_rate * warm
        progress = (step - config.warmup_steps) / max(config.num_steps - config.warmup_steps, 1)
        return config.learning_rate * warm * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))

    return rate


def make_optimizer(config: Train) -> optax.GradientTransformation:
    """Global clip, then Adam without weight decay."""
    rate = learning_rate(config)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.adam_b1, b2=config.adam_b2, eps=config.adam_eps),
        # Without the barrier XLA works the schedule out anew inside the update of every single leaf.
        optax.scale_by_schedule(lambda step: jax.lax.optimization_barrier(jnp.float32(-rate(step)))),
    )


def split_frozen(params: dict, config: Config) -> tuple[dict, dict]:
    """(trainable, frozen) parts of a model's parameters: a frozen encoder is in no optimizer, EMA or checkpoint."""
    if config.model.t5.encoder.trainable:
        return params, {}
    return {k: v for k, v in params.items() if k != "encoder"}, {"encoder": params["encoder"]}


def create_state(config: Config, model: Kaleido, optimizer, mesh, pretrained: bool = True) -> tuple[State, dict, Any]:
    """A fresh (state, frozen parameters, shardings of both), every array born sharded.

    The T5 parts come from config.model.t5.checkpoint where it is set, and the inner net (with the prior that was
    trained beside it) from config.init.inner; without `pretrained` only the frozen parts are read, for a state
    that is going to be restored.

    Raises:
      UserError: weights are missing, damaged or of another size; nothing has been compiled by then.
    """

    def init(key, loaded):
        trainable, frozen = split_frozen(_replaced(init_params(model, key), loaded), config)
        state = State(
            step=jnp.zeros((), jnp.int32),
            params=trainable,
            ema=jax.tree.map(jnp.copy, trainable),
            opt_state=optimizer.init(trainable),
        )
        return state, frozen

    key = purpose_key(config.seed, "init")
    boxed = jax.eval_shape(init, key, {})
    shardings = shardings_of(boxed, mesh)
    wanted, loaded = boxed[1], {}
    if pretrained:
        wanted = boxed[0].params | boxed[1]
        if config.init.inner is not None:
            loaded = load_inner(config, abstract(nn.meta.unbox(boxed[0].params), shardings[0].params))
    missing = {part: tree for part, tree in wanted.items() if part not in loaded}
    loaded |= load_pretrained(config, nn.meta.unbox(missing), shardings[0].params | shardings[1])
    # Draws that `loaded` replaces are never made; donating it keeps its arrays from being there twice.
    born = jax.jit(
        lambda *args: nn.meta.unbox(init(*args)),
        out_shardings=shardings,
        donate_argnums=1,
        compiler_options=_QUICK_COMPILE,
    )
    state, frozen = born(key, loaded)
    return state, frozen, shardings


def _replaced(params, loaded):
    """`params` with the subtrees of `loaded` in their places."""
    if not isinstance(loaded, dict):
        return loaded
    return params | {key: _replaced(params[key], value) for key, value in loaded.items()}


def load_pretrained(config: Config, shapes: dict, shardings: dict) -> dict:
    """The encoder and prior of config.model.t5.checkpoint, as far as `shapes` has them; {} where none is set.

    A frozen encoder computed with in bfloat16 is stored so, but for its norm scales and relative bias: they are
    tiny and read in float32.

    Raises:
      UserError: the checkpoint is missing, damaged or of another size.
    """
    t5, parts = config.model.t5, [part for part in STACKS if part in shapes]
    if t5.checkpoint is None or not parts:
        return {}

    def target(path, shape, sharding):
        frozen = path[0].key == "encoder" and not t5.encoder.trainable
        half = frozen and config.model.precision == "bfloat16" and path[-1].key not in ("scale", "rel_embedding")
        return jax.ShapeDtypeStruct(shape.shape, jnp.bfloat16 if half else jnp.float32, sharding=sharding)

    wanted, places = ({part: tree[part] for part in parts} for tree in (shapes, shardings))
    tokenizer = load_tokenizer(t5.vocabulary, config.latents.codebook_size)
    return load_t5(
        t5.checkpoint,
        jax.tree_util.tree_map_with_path(target, wanted, places),
        num_pieces=tokenizer.num_pieces,
        base_vocab_size=tokenizer.base_vocab_size,
        seed=config.seed,
    )


def count(tree) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
