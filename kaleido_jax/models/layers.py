"""Layers: dense, convolution and norms, as in MDM and T5, with float32 parameters."""

import math
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from kaleido_jax.array_types import PerChannel
from kaleido_jax.models import cpu
from kaleido_jax.runtime.mesh import constrain

NORM_EPS = 1e-5  # PyTorch's; Flax's default is 1e-6
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


# ------------------------------------------------------------------------------------------ formulas
@cpu.switch(cpu.project)
def project(x: Float[Array, "*rows a"], kernel: Float[Array, "a b"]) -> Float[Array, "*rows b"]:
    """x @ kernel."""
    return x @ kernel


@cpu.switch(cpu.add_bias)
def add_bias(x: Float[Array, "*rows c"], bias: Float[Array, "c"]) -> Float[Array, "*rows c"]:
    """x + bias, in the dtype of x."""
    wide = jnp.promote_types(x.dtype, jnp.float32)  # for the bias's gradient: a sum of bfloat16 would stop growing
    return (x.astype(wide) + bias.astype(wide).reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


@cpu.switch(cpu.group_norm)
def group_norm(
    x: Float[Array, "b h w c"], a: PerChannel, b: PerChannel, groups: int, eps: float
) -> Float[Array, "b h w c"]:
    """(x - mean) / std * a + b with mean and std of a sample's group of channels, in the dtype of x.

    Statistics have the dtype of a and b, float32 or wider, and take two passes (parity needs them).
    """
    rows, _, _, channels = x.shape
    grouped = x.astype(a.dtype).reshape(rows, -1, groups, channels // groups)
    centered = grouped - grouped.mean((1, 3), keepdims=True)
    normed = centered * jax.lax.rsqrt((centered**2).mean((1, 3), keepdims=True) + eps)
    return (normed.reshape(x.shape) * a[:, None, None] + b[:, None, None]).astype(x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact erf form; MDM does not use the tanh approximation."""
    return nn.gelu(x, approximate=False)


# ------------------------------------------------------------------------------------------ layers
class Dense(nn.Module):
    """x @ kernel + bias over the last axis; no bias without bias_init. The first axis is the batch."""

    features: int
    dtype: DTypeLike
    kernel_init: Callable
    bias_init: Callable | None = None
    out_axis: str = "embed"  # logical name of the last axis

    @nn.compact
    def __call__(self, x: Float[Array, "*rows a"]) -> Float[Array, "*rows b"]:
        """In dtype, from parameters in float32."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = project(x.astype(self.dtype), kernel.astype(self.dtype))
        y = constrain(y, "batch", *(None,) * (y.ndim - 2), f"act_{self.out_axis}")
        if self.bias_init is None:
            return y
        return add_bias(y, self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype))


class Conv(nn.Module):
    """A convolution padded by size // 2 on all sides, even if strided, where "SAME" would pad (0, 1)."""

    features: int
    size: int
    stride: int
    dtype: DTypeLike
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
        y = constrain(y, "batch", None, None, "act_conv")
        return add_bias(y, self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype))


class GroupNorm(nn.Module):
    """Group norm over contiguous channel ranges; see `group_norm`."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], scale: PerChannel | None = None, shift: PerChannel | None = None
    ) -> Float[Array, "b h w c"]:
        """norm(x), or norm(x) * (1 + scale) + shift if both are given; one pass over x in both cases."""
        inits, wide = _norm_inits(), jnp.promote_types(self.dtype, jnp.float32)
        a = self.param("scale", inits["scale_init"], x.shape[-1:], jnp.float32).astype(wide)[None]
        b = self.param("bias", inits["bias_init"], x.shape[-1:], jnp.float32).astype(wide)[None]
        if scale is not None:
            scale = 1 + scale.astype(wide)
            a, b = a * scale, b * scale + shift.astype(wide)
        a, b = (jnp.broadcast_to(each, (x.shape[0], x.shape[-1])) for each in (a, b))
        return group_norm(x.astype(self.dtype), a, b, self.groups, NORM_EPS)


# ------------------------------------------------------------------------------------------ MDM's initialization
def linear(
    fan_in: int,
    features: int,
    dtype: DTypeLike,
    *,
    zero: bool = False,
    bias: bool = True,
    axes: Sequence[str] = ("embed", "mlp"),
) -> Dense:
    """A dense layer with PyTorch's initialization: uniform in +-1/sqrt(fan_in), also for the bias."""
    inits = _inits(fan_in, zero, axes)
    return Dense(features, dtype, inits["kernel_init"], inits["bias_init"] if bias else None, axes[-1])


def conv(fan_in: int, features: int, dtype: DTypeLike, *, size: int = 3, stride: int = 1, zero: bool = False) -> Conv:
    """A convolution with PyTorch's initialization: uniform in +-1/sqrt(fan_in), also for the bias."""
    inits = _inits(fan_in * size * size, zero, ("height", "width", "conv_in", "conv_out"))
    return Conv(features, size, stride, dtype, **inits)


def layer_norm(dtype: DTypeLike) -> nn.LayerNorm:
    """Layer norm over the last axis."""
    return nn.LayerNorm(epsilon=NORM_EPS, dtype=dtype, use_fast_variance=False, **_norm_inits())


def _inits(fan_in: int, zero: bool, axes: Sequence[str]) -> Mapping[str, Callable]:
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel, bias = (nn.initializers.zeros, nn.initializers.zeros) if zero else (_UNIFORM, uniform)
    return {
        "kernel_init": nn.with_logical_partitioning(kernel, tuple(axes)),
        "bias_init": nn.with_logical_partitioning(bias, tuple(axes[-1:])),
    }


def _norm_inits() -> Mapping[str, Callable]:
    return {
        "scale_init": nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        "bias_init": nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
    }
