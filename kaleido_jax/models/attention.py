"""Attention: the softmax over keys that both networks share."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from kaleido_jax.array_types import AttentionBias, AttentionMask, PerHead
from kaleido_jax.models import cpu

MASKED = -1e9  # finite, so that a row without any valid key gives the plain mean and never NaN


@cpu.switch(cpu.max_last)
def max_last(x: Float[Array, "*rows k"]) -> Float[Array, "*rows 1"]:
    """The maximum over the last axis, which is kept."""
    return x.max(-1, keepdims=True)


@cpu.switch(cpu.sum_last)
def sum_last(x: Float[Array, "*rows k"]) -> Float[Array, "*rows 1"]:
    """The sum over the last axis, which is kept."""
    return x.sum(-1, keepdims=True)


# ------------------------------------------------------------------------------------------ products in half precision
# Their results are float32, for the softmax, and so are the gradients that come back: products of these with half
# precision's queries, keys and values would be float32 products, at a fifteenth of the speed on an H100. So gradients
# are rounded first, as fused attention kernels do.
@jax.custom_vjp
def _scores(q: Array, k: Array) -> Array:
    return jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)


def _scores_backward(kept: tuple[Array, Array], ds: Array) -> tuple[Array, Array]:
    q, k = kept
    ds = ds.astype(q.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", ds, k), jnp.einsum("bhqk,bhqd->bhkd", ds, q)


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _scores_backward)


@jax.custom_vjp
def _mix(weights: Array, v: Array) -> Array:
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v, preferred_element_type=jnp.float32)


def _mix_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    weights, v = kept
    dy = dy.astype(v.dtype)
    return jnp.einsum("bhqd,bhkd->bhqk", dy, v), jnp.einsum("bhqk,bhqd->bhkd", weights, dy)


_mix.defvjp(lambda weights, v: (_mix(weights, v), (weights, v)), _mix_backward)


def _products(dtype: DTypeLike) -> tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]:
    """(q k^T, weights v) for inputs of this dtype, with results of float32 or wider."""
    if dtype in (jnp.bfloat16, jnp.float16):
        return _scores, _mix
    return functools.partial(jnp.einsum, "bhqd,bhkd->bhqk"), functools.partial(jnp.einsum, "bhqk,bhkd->bhqd")


def attend(
    q: Float[Array, "b n q d_n"],
    k: Float[Array, "b n k d_n"],
    v: Float[Array, "b n k d_n"],
    bias: AttentionBias | None = None,
    mask: AttentionMask | None = None,
) -> Float[Array, "b n q d_n"]:
    """softmax(q k^T + bias) v with a float32 (or wider) softmax; it does not scale the logits.

    `mask` is True where a query may attend to a key. The normalizer divides after the product with v: on CPU this ran
    at 146 GFLOP/s against 28 for jax.nn.dot_product_attention, with the same result.
    """
    scores, mix = _products(q.dtype)
    logits = scores(q, k)
    if bias is not None:
        logits = logits + bias.astype(logits.dtype)
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    weights = jnp.exp(logits - max_last(jax.lax.stop_gradient(logits)))
    total = sum_last(weights)
    return (mix(weights.astype(v.dtype), v) / total).astype(v.dtype)


def split_heads(x: Float[Array, "b t c"], num_heads: int) -> PerHead:
    """Head i takes channels i*d .. (i+1)*d - 1."""
    b, t, c = x.shape
    return x.reshape(b, t, num_heads, c // num_heads).transpose(0, 2, 1, 3)


def merge_heads(x: PerHead) -> Float[Array, "b t c"]:
    """Undoes `split_heads`."""
    b, h, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, h * d)
