"""Dense layers, convolutions and norms, as MDM and T5 have them, with gradients that are quick on CPU too."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NORM_EPS = 1e-5  # Flax's default is 1e-6
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


# ------------------------------------------------------------------------------------------ sums
def sum_positions(x: Float[Array, "b *positions c"]) -> Float[Array, "b c"]:
    """The sum over all axes between the first and the last, in float32 or wider.

    On CPU as a product with ones: XLA walks such a sum with a stride, and was up to 14 times slower.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows, channels = x.shape[0], x.shape[-1]

    def product(x):
        x = x.reshape(rows, -1, channels)
        ones = jnp.ones((rows, 1, x.shape[1]), x.dtype)
        return jnp.einsum("bop,bpc->boc", ones, x, preferred_element_type=wide)[:, 0]

    def plain(x):
        return x.sum(range(1, x.ndim - 1), dtype=wide)

    return jax.lax.platform_dependent(x, cpu=product, default=plain)


@jax.custom_vjp
def add_bias(x: Float[Array, "*rows c"], bias: Float[Array, "c"]) -> Float[Array, "*rows c"]:
    """x + bias; the gradient of the bias is summed by `sum_positions`."""
    return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _add_bias_backward(bias, dy):
    return dy, sum_positions(dy[None])[0].astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)


@jax.custom_vjp
def project(x: Float[Array, "*rows a"], kernel: Float[Array, "a b"]) -> Float[Array, "*rows b"]:
    """x @ kernel; in the kernel's gradient XLA on CPU transposes the first factor, here the narrower one."""
    return x @ kernel


def _project_backward(kept, dy):
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))
    wider = x.shape[-1] > dy.shape[-1]
    return dy @ kernel.T, jnp.tensordot(dy, x, (rows, rows)).T if wider else jnp.tensordot(x, dy, (rows, rows))


project.defvjp(lambda x, kernel: (project(x, kernel), (x, kernel)), _project_backward)


# ------------------------------------------------------------------------------------------ layers
class Dense(nn.Module):
    """x @ kernel + bias over the last axis; without bias_init no bias."""

    features: int
    dtype: Any
    kernel_init: Callable
    bias_init: Callable | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*rows a"]) -> Float[Array, "*rows b"]:
        """In dtype, from parameters in float32."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = project(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.bias_init is None:
            return y
        return add_bias(y, self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype))


class Conv(nn.Module):
    """A convolution padded by size // 2 on all sides, the strided one too; "SAME" would pad (0, 1) there."""

    features: int
    size: int
    stride: int
    dtype: Any
    kernel_init: Callable
    bias_init: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w a"]) -> Float[Array, "b h2 w2 c"]:
        """In dtype, from parameters in float32."""
        shape, pad = (self.size, self.size, x.shape[-1], self.features), self.size // 2
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return add_bias(y, self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype))


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


def linear(fan_in: int, features: int, dtype, *, zero=False, bias=True, axes=("embed", "mlp")) -> Dense:
    """A dense layer that starts as PyTorch's: uniform in +-1/sqrt(fan_in), the bias too."""
    inits = _inits(fan_in, zero, axes)
    return Dense(features, dtype, inits["kernel_init"], inits["bias_init"] if bias else None)


def conv(fan_in: int, features: int, dtype, *, size=3, stride=1, zero=False) -> Conv:
    """A convolution that starts as PyTorch's: uniform in +-1/sqrt(fan_in), the bias too."""
    return Conv(
        features,
        size,
        stride,
        dtype,
        **_inits(fan_in * size * size, zero, ("height", "width", "conv_in", "conv_out")),
    )


def _norm_inits():
    return {
        "scale_init": nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        "bias_init": nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
    }


class GroupNorm(nn.Module):
    """Group norm over contiguous channel ranges, in float32 or wider; see `normalize`."""

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
        return normalize(x.astype(self.dtype), jnp.broadcast_to(a, rows), jnp.broadcast_to(b, rows), self.groups)


def layer_norm(dtype) -> nn.LayerNorm:
    """Layer norm over the last axis."""
    return nn.LayerNorm(epsilon=NORM_EPS, dtype=dtype, use_fast_variance=False, **_norm_inits())


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact erf form; MDM does not use the tanh approximation."""
    return nn.gelu(x, approximate=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x: Float[Array, "b h w c"], a: Float[Array, "b c"], b: Float[Array, "b c"], groups: int):
    """(x - mean) / std * a + b with mean and std of a sample's group of channels, in the dtype of x.

    Statistics are those of a and b, float32 or wider, in two passes (parity needs them). The gradient is written out:
    sums over positions alone give those of a and b and both corrections of that of x, where automatic differentiation
    goes over x for each parameter and for the two passes.
    """
    return _normalize_forward(x, a, b, groups)[0]


def _normalize_forward(x, a, b, groups):
    positions = x.shape[1] * x.shape[2]
    mean = _over_groups(sum_positions(x.astype(a.dtype)) / positions, groups)
    centered = x - mean[:, None, None]
    std_inv = jax.lax.rsqrt(_over_groups(sum_positions(centered**2) / positions, groups) + NORM_EPS)
    y = centered * (std_inv * a)[:, None, None] + b[:, None, None]
    return y.astype(x.dtype), (x, a, mean, std_inv)


def _normalize_backward(groups, kept, dy):
    x, a, mean, std_inv = kept
    dy, centered = dy.astype(a.dtype), x - mean[:, None, None]
    positions = x.shape[1] * x.shape[2]
    db = sum_positions(dy)
    da = sum_positions(dy * centered) * std_inv
    constant = -std_inv * _over_groups(a * db / positions, groups)
    slope = -(std_inv**2) * _over_groups(a * da / positions, groups)
    dx = dy * (a * std_inv)[:, None, None] + centered * slope[:, None, None] + constant[:, None, None]
    return dx.astype(x.dtype), da, db


normalize.defvjp(_normalize_forward, _normalize_backward)


def _over_groups(x: Float[Array, "b c"], groups: int) -> Float[Array, "b c"]:
    """The mean of each group of channels, in the place of every channel."""
    rows, channels = x.shape
    means = x.reshape(rows, groups, channels // groups).mean(-1, keepdims=True)
    return jnp.broadcast_to(means, (rows, groups, channels // groups)).reshape(rows, channels)
