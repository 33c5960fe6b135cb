"""Convolutional networks with batch norm for inference: each norm is folded into the convolution before it.

A network is one function of images and of a `Conv`. Read with a Conv that only notes what it is asked for, the same
function says which tensors a file of weights has to hold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from kaleido_jax.interop.source import check_tensors
from kaleido_jax.models import cpu

NORM_EPS = 1e-3  # of all networks here
Params = dict[str, tuple[Float[Any, "kh kw c_in c_out"], Float[Any, "c_out"]]]  # by the convolution's name
Tensors = Mapping[str, Float32[np.ndarray, "..."]]  # under torch's names
Maps = Float[Array, "b _ _ _"]  # (images, height, width, channels)
FeatureRows = Float[Array, "b d"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution and the norm after it; names are the tensors' without .weight."""

    name: str
    norm: str
    width: int  # channels of the result
    kernel: tuple[int, int]
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"
    groups: int = 1


Conv = Callable[[Maps, Layer], Maps]
Network = Callable[[Maps, Conv], FeatureRows]  # normalized images -> features


def run(network: Network, params: Params, x: Maps) -> FeatureRows:
    """The features of normalized images."""

    def conv(x: Maps, layer: Layer) -> Maps:
        weight, bias = params[layer.name]
        convolve = _depthwise if layer.groups > 1 else _convolve
        return convolve(x, weight, layer.stride, layer.padding) + bias[None, None, None]

    return network(x, conv)


def _convolve(x: Maps, weight: Array, stride: int, padding: str, groups: int = 1) -> Maps:
    strides, axes, highest = (stride, stride), ("NHWC", "HWIO", "NHWC"), jax.lax.Precision.HIGHEST
    return jax.lax.conv_general_dilated(x, weight, strides, padding, None, None, axes, groups, precision=highest)


@cpu.switch(cpu.depthwise_conv)
def _depthwise(x: Maps, weight: Array, stride: int, padding: str) -> Maps:
    return _convolve(x, weight, stride, padding, groups=x.shape[-1])


def expected_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a state dict of the network has, without its classifier."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, channels in _layers(network):
        shapes[f"{layer.name}.weight"] = (layer.width, channels // layer.groups, *layer.kernel)
        norm = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"{layer.norm}.{part}": (layer.width,) for part in norm}
    return shapes


def fold(network: Network, tensors: Tensors, path: Path, what: str) -> Params:
    """The parameters of a network from a state dict; what is not a convolution's or a norm's is left out.

    Raises:
      UserError: tensors are missing or have other shapes.
    """
    expected, layers = expected_shapes(network), _layers(network)
    found = {name: tensors[name].shape for name in expected if name in tensors}
    check_tensors(found, expected, str(path), what, "name the file of that network")
    params = {}
    for layer, _ in layers:
        mean, variance = (tensors[f"{layer.norm}.running_{part}"].astype(np.float64) for part in ("mean", "var"))
        scale = tensors[f"{layer.norm}.weight"] / np.sqrt(variance + NORM_EPS)
        weight = (tensors[f"{layer.name}.weight"] * scale[:, None, None, None]).transpose(2, 3, 1, 0)
        bias = tensors[f"{layer.norm}.bias"] - mean * scale
        params[layer.name] = (weight.astype(np.float32), bias.astype(np.float32))
    return params


def _layers(network: Network) -> list[tuple[Layer, int]]:
    """All layers, each with the channels of its input."""
    noted = []

    def note(x: Maps, layer: Layer) -> Maps:
        noted.append((layer, x.shape[-1]))
        cut = 0 if layer.padding == "SAME" else 1
        rows, height, wide = (
            x.shape[0],
            x.shape[1] - cut * (layer.kernel[0] - 1),
            x.shape[2] - cut * (layer.kernel[1] - 1),
        )
        return jnp.zeros((rows, -(-height // layer.stride), -(-wide // layer.stride), layer.width))

    jax.eval_shape(lambda x: network(x, note), jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32))
    return noted


def mean_of_positions(x: Maps) -> FeatureRows:
    """The mean over the map, as a product with ones: no reduction, which jaxlib on CPU may do wrongly or slowly."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    share = jnp.full((flat.shape[1],), 1 / flat.shape[1], x.dtype)
    return jnp.einsum("p,bpc->bc", share, flat, precision="highest")
