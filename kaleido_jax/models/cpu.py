"""CPU forms: the same results as the plain formulas of layers.py and t5.py, in the form that XLA runs fastest on a CPU.

`enabled` is the only switch. Other backends run the plain formulas, whose gradients XLA fuses; everything here was
measured on CPUs only. A program that is exported for several platforms holds both (`each_platform`).
"""

import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from kaleido_jax.array_types import PerChannel

_TRACED_FOR: ContextVar[str] = ContextVar("traced_for", default="here")  # or "elsewhere", "each platform", a platform


def enabled() -> bool:
    """Whether code that is traced now uses the forms of this module."""
    return jax.default_backend() == "cpu" and _TRACED_FOR.get() == "here"


def traced_for() -> str | None:
    """The platform, as JAX names it ("cpu", "gpu", "tpu"), that code traced now runs on; None where that is open."""
    where = _TRACED_FOR.get()
    return {"here": jax.default_backend(), "elsewhere": None, "each platform": None}.get(where, where)


@contextmanager
def plain(platform: str = "elsewhere") -> Iterator[None]:
    """Inside, code is traced as for other backends, for programs that are compiled here but run elsewhere.

    `platform` is the one that they run on, if it is known (`traced_for`).
    """
    with _traced_for(platform):
        yield


@contextmanager
def each_platform() -> Iterator[None]:
    """Inside, code is traced for programs that are lowered for several platforms: forward passes only.

    Functions under `switch` hold both forms, and the platform decides, so that such a program draws the pipeline's bits
    on a CPU too. `enabled` is False: cached decoding has one form.
    """
    with _traced_for("each platform"):
        yield


@contextmanager
def _traced_for(where: str) -> Iterator[None]:
    token = _TRACED_FOR.set(where)
    try:
        yield
    finally:
        _TRACED_FOR.reset(token)


def switch(form: Callable) -> Callable[[Callable], Callable]:
    """Decorates a plain formula: if `enabled`, `form` runs instead."""

    def decorate(plain: Callable) -> Callable:
        @functools.wraps(plain)
        def switched(*args: Any) -> Any:
            if _TRACED_FOR.get() != "each platform":
                return (form if enabled() else plain)(*args)
            arrays = [arg for arg in args if isinstance(arg, jax.Array)]
            rest = args[len(arrays) :]  # numbers such as that of the groups
            here, there = (lambda *each, function=function: function(*each, *rest) for function in (form, plain))
            return jax.lax.platform_dependent(*arrays, cpu=here, default=there)

        return switched

    return decorate


# ------------------------------------------------------------------------------------------ sums, biases, projections
def sum_positions(x: Float[Array, "b *positions c"]) -> PerChannel:
    """The sum over all axes between the first and the last, in float32 or wider.

    A product with ones: XLA's own sum strides through memory on CPU, and was up to 14 times slower.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows, channels = x.shape[0], x.shape[-1]
    x = x.reshape(rows, -1, channels)
    ones = jnp.ones((rows, 1, x.shape[1]), x.dtype)
    return jnp.einsum("bop,bpc->boc", ones, x, preferred_element_type=wide)[:, 0]


@jax.custom_vjp
def add_bias(x: Float[Array, "*rows c"], bias: Float[Array, "c"]) -> Float[Array, "*rows c"]:
    """x + bias; the gradient of the bias is summed by `sum_positions`."""
    return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return add_bias(x, bias), bias


def _add_bias_backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    return dy, sum_positions(dy[None])[0].astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def project(x: Float[Array, "*rows a"], kernel: Float[Array, "a b"]) -> Float[Array, "*rows b"]:
    """x @ kernel; for the kernel's gradient XLA on CPU transposes the first factor, so the narrower one comes first."""
    return x @ kernel


def _project_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return project(x, kernel), (x, kernel)


def _project_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))
    wider = x.shape[-1] > dy.shape[-1]
    return dy @ kernel.T, jnp.tensordot(dy, x, (rows, rows)).T if wider else jnp.tensordot(x, dy, (rows, rows))


project.defvjp(_project_forward, _project_backward)


# ------------------------------------------------------------------------------------------------- softmax over keys
def max_last(x: Float[Array, "*rows k"]) -> Float[Array, "*rows 1"]:
    """The maximum over the last axis, by halves that may overlap.

    XLA's own reduction of the last axis is a scalar loop on CPU: 7.5 times slower for 120 keys.
    """
    while x.shape[-1] > 8:
        size, half = x.shape[-1], (x.shape[-1] + 1) // 2
        x = jnp.maximum(x[..., :half], x[..., size - half :])
    return x.max(-1, keepdims=True)


@jax.custom_vjp
def sum_last(x: Float[Array, "*rows k"]) -> Float[Array, "*rows 1"]:
    """The sum over the last axis, as a product with ones."""
    return x @ jnp.ones((x.shape[-1], 1), x.dtype)


def _sum_last_forward(x: Array) -> tuple[Array, tuple[Array]]:
    return sum_last(x), (x,)


def _sum_last_backward(kept: tuple[Array], dy: Array) -> tuple[Array]:
    return (jnp.broadcast_to(dy, kept[0].shape),)


sum_last.defvjp(_sum_last_forward, _sum_last_backward)


# --------------------------------------------------------------------------------------------------------- group norm
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "b h w c"], a: PerChannel, b: PerChannel, groups: int, eps: float
) -> Float[Array, "b h w c"]:
    """layers.group_norm with its gradient written out.

    Two sums over positions give the gradients of a and b and both corrections of that of x; automatic differentiation
    would pass over x for each parameter and each of the two passes.
    """
    return _group_norm_forward(x, a, b, groups, eps)[0]


def _group_norm_forward(x: Array, a: Array, b: Array, groups: int, eps: float) -> tuple[Array, tuple[Array, ...]]:
    positions = x.shape[1] * x.shape[2]
    mean = _over_groups(sum_positions(x.astype(a.dtype)) / positions, groups)
    centered = x - mean[:, None, None]
    std_inv = jax.lax.rsqrt(_over_groups(sum_positions(centered**2) / positions, groups) + eps)
    y = centered * (std_inv * a)[:, None, None] + b[:, None, None]
    return y.astype(x.dtype), (x, a, mean, std_inv)


def _group_norm_backward(groups: int, eps: float, kept: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    x, a, mean, std_inv = kept
    dy, centered = dy.astype(a.dtype), x - mean[:, None, None]
    positions = x.shape[1] * x.shape[2]
    db = sum_positions(dy)
    da = sum_positions(dy * centered) * std_inv
    constant = -std_inv * _over_groups(a * db / positions, groups)
    slope = -(std_inv**2) * _over_groups(a * da / positions, groups)
    dx = dy * (a * std_inv)[:, None, None] + centered * slope[:, None, None] + constant[:, None, None]
    return dx.astype(x.dtype), da, db


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def _over_groups(x: PerChannel, groups: int) -> PerChannel:
    """The mean of each group of channels, repeated for every channel."""
    rows, channels = x.shape
    means = x.reshape(rows, groups, channels // groups).mean(-1, keepdims=True)
    return jnp.broadcast_to(means, (rows, groups, channels // groups)).reshape(rows, channels)


# ------------------------------------------------------------------------------------------------ depthwise convolution
def depthwise_conv(
    x: Float[Array, "b h w c"], weight: Float[Array, "kh kw 1 c"], stride: int, padding: str
) -> Float[Array, "b h2 w2 c"]:
    """A convolution of each channel by itself, as a sum of shifted images.

    XLA's grouped convolution takes one channel after the other: EfficientNet-Lite0 ran at 37 images/s of 64 px on a
    core with it, and at 490 with this.
    """
    kernel, strides = weight.shape[:2], (1, stride, stride, 1)
    pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel, (stride, stride), padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = ((x.shape[i + 1] - kernel[i]) // stride * stride + 1 for i in (0, 1))
    shifted = (
        jax.lax.slice(x, (0, i, j, 0), (x.shape[0], i + height, j + width, x.shape[3]), strides)
        * weight[None, i, j][None]
        for i in range(kernel[0])
        for j in range(kernel[1])
    )
    return functools.reduce(operator.add, shifted)


# ----------------------------------------------------------------------------------------------------- cached decoding
class Unstacked(struct.PyTreeNode):
    """The cache of a scanned decoder split by layer, with each layer's parameters and the head's.

    A scan slices its layers out of their stacks at every token; here that is done once, before the loop over tokens.
    Kernels are stored transposed, which the CPU's products of a few rows read fastest. Together this made decoding
    about 1.3 times as fast (T5-small, 16 rows). It costs a second copy of the parameters while decoding.
    """

    caches: tuple[Any, ...]
    params: tuple[Any, ...]
    head: Any

    @property
    def max_len(self) -> int:
        """Positions of the cache."""
        return self.caches[0].max_len

    def step(
        self, x: Float[Array, "b 1 d"], args: tuple, layer: nn.Module, norm: nn.Module, head: nn.Module
    ) -> tuple[Float[Array, "b 1 d"], Float[Array, "b 1 v"], "Unstacked"]:
        """One position through all layers, the norm and the head, as Decoder.step; `args` are what every layer gets."""
        caches = []
        for params, cache in zip(self.params, self.caches, strict=True):
            variables = {"params": jax.tree.map(jnp.transpose, params)}
            x, (self_k, self_v) = layer.apply(variables, x, cache, *args, method="step")
            caches.append(cache.replace(self_k=self_k, self_v=self_v))
        x = norm(x)
        logits = head.clone(parent=None).apply({"params": jax.tree.map(jnp.transpose, self.head)}, x)
        return x, logits, self.replace(caches=tuple(caches))


def unstack(cache: Any, layers: nn.Module, head: nn.Module) -> Unstacked:
    """Splits the cache and the parameters of scanned layers, and transposes all kernels; scales have one axis."""
    params, head_params = (nn.meta.unbox(module.variables["params"]) for module in (layers, head))
    each = [operator.itemgetter(i) for i in range(len(jax.tree.leaves(params)[0]))]
    return Unstacked(
        caches=tuple(jax.tree.map(take, cache) for take in each),
        params=tuple(jax.tree.map(jnp.transpose, jax.tree.map(take, params)) for take in each),
        head=jax.tree.map(jnp.transpose, head_params),
    )
