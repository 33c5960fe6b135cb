"""The optimizer: Adam with a global clip and warm-up (paper, table B.2)."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from kaleido_jax.config.schema import Train


def learning_rate(config: Train) -> optax.Schedule:
    """Step -> rate: linear warm-up max(1, k) / W as in MDM, then constant or cosine to zero at num_steps."""

    def rate(step: ArrayLike) -> Array:
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
        # Without the barrier XLA recomputes the schedule inside the update of every leaf.
        optax.scale_by_schedule(lambda step: jax.lax.optimization_barrier(jnp.float32(-rate(step)))),
    )
