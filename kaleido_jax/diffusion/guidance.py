"""Guidance rules: how conditional and unconditional predictions become one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Denoise = Callable[..., list]  # (images, times (B,), condition) -> predictions, each a list over resolutions


def no_guidance(denoise: Denoise, condition):
    """The conditional prediction alone."""
    return lambda images, times: denoise(images, times, condition)


def classifier_free(denoise: Denoise, condition, unconditional, gamma: float | Float[Array, ""]):
    """v = v_u + gamma (v_c - v_u) at every resolution (Ho & Salimans 2022; Kaleido, Eq. 4).

    Both run in one doubled batch, unconditional rows first. gamma = 1 is the conditional prediction; given as a
    number, it skips the doubling.
    """
    if not isinstance(gamma, jax.Array) and gamma == 1:
        return no_guidance(denoise, condition)
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), unconditional, condition)

    def guided(images, times):
        doubled = denoise([jnp.concatenate([x, x]) for x in images], jnp.concatenate([times, times]), both)
        halves = [jnp.split(v, 2) for v in doubled]
        return [v_u + gamma * (v_c - v_u) for v_u, v_c in halves]

    return guided
