"""Dense layers, convolutions and norms of the denoisers, as MDM has them and quick on CPU too.

Weights start as PyTorch's defaults (uniform in +-1/sqrt(fan_in), biases too).
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NORM_EPS = 1e-5  # Flax's default is 1e-6
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


# ------------------------------------------------------------------------------------------ layers
def _inits(fan_in, zero, axes):
    if zero:
        kernel = bias = nn.initializers.zeros
    else:
        kernel, bound = _UNIFORM, 1 / math.sqrt(fan_in)

        def bias(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {
        "kernel_init": nn.with_logical_partitioning(kernel, axes),
        "bias_init": nn.with_logical_partitioning(bias, axes[-1:]),
    }


def linear(fan_in: int, features: int, dtype, *, zero=False, bias=True, axes=("embed", "mlp")) -> nn.Dense:
    """A dense layer with PyTorch's initialisation."""
    return nn.Dense(features, use_bias=bias, dtype=dtype, **_inits(fan_in, zero, axes))


def conv(fan_in: int, features: int, dtype, *, size=3, stride=1, zero=False) -> nn.Conv:
    """A convolution padded by 1 on all sides (3x3), the strided one too; "SAME" would pad (0, 1) there."""
    pad = size // 2
    axes = ("height", "width", "conv_in", "conv_out")
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        dtype=dtype,
        **_inits(fan_in * size * size, zero, axes),
    )


def _norm_inits():
    return {
        "scale_init": nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        "bias_init": nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
    }


class GroupNorm(nn.Module):
    """Group norm over contiguous channel ranges, in float32 or wider; see `normalise`."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], scale=None, shift=None) -> Float[Array, "b h w c"]:
        """norm(x), or norm(x) * (1 + scale) + shift with both (B, C): one pass over x all the same."""
        inits = _norm_inits()
        wide = jnp.promote_types(self.dtype, jnp.float32)
        a = self.param("scale", inits["scale_init"], x.shape[-1:], jnp.float32).astype(wide)[None]
        b = self.param("bias", inits["bias_init"], x.shape[-1:], jnp.float32).astype(wide)[None]
        if scale is not None:
            scale = 1 + scale.astype(wide)
            a, b = a * scale, b * scale + shift.astype(wide)
        rows = (x.shape[0], x.shape[-1])
        return normalise(x.astype(self.dtype), jnp.broadcast_to(a, rows), jnp.broadcast_to(b, rows), self.groups)


def layer_norm(dtype) -> nn.LayerNorm:
    """Layer norm over the last axis."""
    return nn.LayerNorm(epsilon=NORM_EPS, dtype=dtype, use_fast_variance=False, **_norm_inits())


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact erf form; MDM does not use the tanh approximation."""
    return nn.gelu(x, approximate=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(x: Float[Array, "b h w c"], a: Float[Array, "b c"], b: Float[Array, "b c"], groups: int):
    """(x - mean) / std * a + b with mean and std of a sample's group of channels, in the dtype of x.

    Statistics are those of a and b, float32 or wider, in two passes (parity needs them). The gradient is written out:
    sums over positions alone give those of a and b and both corrections of that of x, where automatic differentiation
    goes over x for each parameter and for the two passes.
    """
    return _normalise_forward(x, a, b, groups)[0]


def _normalise_forward(x, a, b, groups):
    mean = _over_groups(x.astype(a.dtype).mean((1, 2)), groups)
    centred = x - mean[:, None, None]
    std_inv = jax.lax.rsqrt(_over_groups((centred**2).mean((1, 2)), groups) + NORM_EPS)
    y = centred * (std_inv * a)[:, None, None] + b[:, None, None]
    return y.astype(x.dtype), (x, a, mean, std_inv)


def _normalise_backward(groups, kept, dy):
    x, a, mean, std_inv = kept
    dy, centred = dy.astype(a.dtype), x - mean[:, None, None]
    positions = x.shape[1] * x.shape[2]
    db = dy.sum((1, 2))
    da = (dy * centred).sum((1, 2)) * std_inv
    constant = -std_inv * _over_groups(a * db / positions, groups)
    slope = -(std_inv**2) * _over_groups(a * da / positions, groups)
    dx = dy * (a * std_inv)[:, None, None] + centred * slope[:, None, None] + constant[:, None, None]
    return dx.astype(x.dtype), da, db


normalise.defvjp(_normalise_forward, _normalise_backward)


def _over_groups(x: Float[Array, "b c"], groups: int) -> Float[Array, "b c"]:
    """The mean of each group of channels, in the place of every channel."""
    rows, channels = x.shape
    means = x.reshape(rows, groups, channels // groups).mean(-1, keepdims=True)
    return jnp.broadcast_to(means, (rows, groups, channels // groups)).reshape(rows, channels)
