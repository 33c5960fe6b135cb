"""The optimizer: Adam with a global clip and warm-up (paper, table B.2)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from kaleido_jax.config.schema import Train

_SURELY_FINITE = 1e30  # in float32, whatever rounding adds


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
    """Clips of single parts and of the whole gradient, then Adam without weight decay."""
    rate = learning_rate(config)
    return optax.chain(
        *([optax.stateless(_clip_parts(dict(config.clip_part_norms)))] if config.clip_part_norms else []),
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(
            b1=config.adam_b1, b2=config.adam_b2, eps=config.adam_eps, mu_dtype=jnp.dtype(config.adam_mu_dtype)
        ),
        # Without the barrier XLA recomputes the schedule inside the update of every leaf.
        optax.scale_by_schedule(lambda step: jax.lax.optimization_barrier(jnp.float32(-rate(step)))),
    )


def may_overflow(config: Train) -> bool:
    """Whether an update may not be finite though the gradient is.

    Adam divides a mean of clipped gradients by no less than adam_eps, which bounds what a weight moves by.
    """
    return config.learning_rate * config.clip_norm / config.adam_eps > _SURELY_FINITE


def _clip_parts(norms: Mapping[str, float]) -> Callable[[dict[str, Any], Any], dict[str, Any]]:
    def clip(grads: dict[str, Any], params: Any) -> dict[str, Any]:
        del params
        clips = {part: optax.clip_by_global_norm(norm) for part, norm in norms.items() if part in grads}
        return grads | {part: clip.update(grads[part], optax.EmptyState())[0] for part, clip in clips.items()}

    return clip
