"""Tiny autoencoders (Ollin Boer Bohan's TAESD family): their encoders, forward in JAX.

The network is read from the names and shapes of the tensors, those of the public taesd.py: a chain of numbered parts,
each a 3x3 convolution (`4.weight`; without bias it halves the size) or a block (`5.conv.0.weight` ...), whose `pool`
is TAEF2's branch with a group norm.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, UInt8

from kaleido_jax.array_types import Image
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.interop.files.weights import open_weights, read_float32
from kaleido_jax.runtime.files import fingerprint

Part = Mapping[str, np.ndarray]  # tensors of one part, by their names in it

_POOL_GROUPS = 4
_NORM_EPS = 1e-5
_PARTS = {  # tensors that a part of each kind may have: those it must have, then the others
    "conv": ({"weight"}, {"bias"}),
    "block": (
        {f"conv.{i}.{name}" for i in (0, 2, 4) for name in ("weight", "bias")},
        {"skip.weight", "pool.0.weight", "pool.1.weight", "pool.1.bias", "pool.3.weight"},
    ),
}


@runtime_checkable
class Forward(Protocol):
    """A compiled forward pass."""

    def __call__(self, image: UInt8[np.ndarray | Array, "h w 3"]) -> Float[Array, "h8 w8 c"]:
        """The latents of one image."""
        ...


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """image -> latents."""

    apply: Forward
    fingerprint: str  # 16 hex digits that change with any weight

    def __call__(self, image: Image) -> Float[np.ndarray, "h8 w8 c"]:
        """Float32 latents, one for each square of 8x8 px."""
        return np.asarray(self.apply(image))


def open_encoder(path: Path) -> Encoder:
    """Reads an encoder's weights: .npz, .safetensors or torch's .pth (whose pickle is not run).

    Raises:
      UserError: the file is missing, unreadable, or its names are not those of such an encoder.
    """
    weights = read_float32(open_weights(path, "the weights of a tiny autoencoder's encoder"))
    contents = (
        content for name in sorted(weights) for content in (name, np.ascontiguousarray(weights[name]).tobytes())
    )
    return Encoder(apply=_compiled(_parts(path, weights)), fingerprint=fingerprint(*contents))


def _compiled(parts: list[Part]) -> Forward:
    import jax
    import jax.numpy as jnp

    Map = Float[Array, "1 _ _ _"]  # batch of one, channels first

    def conv(x: Map, weight: np.ndarray, bias: np.ndarray | None = None, stride: int = 1) -> Map:
        pad = [(weight.shape[2] // 2,) * 2] * 2
        x = jax.lax.conv_general_dilated(
            x, weight, (stride, stride), pad, dimension_numbers=("NCHW", "OIHW", "NCHW"), precision="highest"
        )
        return x if bias is None else x + bias[None, :, None, None]

    def pool(x: Map, tensors: Part) -> Map:
        h = conv(x, tensors["pool.0.weight"])
        grouped = h.reshape(_POOL_GROUPS, -1)
        mean, variance = grouped.mean(1, keepdims=True), grouped.var(1, keepdims=True)
        h = ((grouped - mean) / jnp.sqrt(variance + _NORM_EPS)).reshape(h.shape)
        h = h * tensors["pool.1.weight"][None, :, None, None] + tensors["pool.1.bias"][None, :, None, None]
        return conv(jax.nn.relu(h), tensors["pool.3.weight"])

    def block(x: Map, tensors: Part) -> Map:
        if "pool.0.weight" in tensors:
            x = x + pool(x, tensors)
        h = x
        for i in (0, 2, 4):
            h = conv(h, tensors[f"conv.{i}.weight"], tensors[f"conv.{i}.bias"])
            h = jax.nn.relu(h) if i < 4 else h
        return jax.nn.relu(h + (conv(x, tensors["skip.weight"]) if "skip.weight" in tensors else x))

    @jax.jit
    def apply(image: UInt8[Array, "h w 3"]) -> Float[Array, "h8 w8 c"]:
        x = image.astype(jnp.float32).transpose(2, 0, 1)[None] / 255
        for tensors in parts:
            if "weight" in tensors:
                x = conv(x, tensors["weight"], tensors.get("bias"), stride=1 if "bias" in tensors else 2)
            else:
                x = block(x, tensors)
        return x[0].transpose(1, 2, 0)

    return apply


def _parts(path: Path, weights: Part) -> list[Part]:
    """Tensors of each part in order, their names and shapes checked."""
    parts: dict[int, dict[str, np.ndarray]] = {}
    for name, array in weights.items():
        match = re.fullmatch(r"(\d+)\.(.+)", name)
        if match is None:
            raise _foreign(path, name)
        parts.setdefault(int(match[1]), {})[match[2]] = array
    if sorted(parts) != list(range(len(parts))):
        raise _foreign(path, f"parts {sorted(parts)}")
    width = 3
    for number, tensors in sorted(parts.items()):
        must, may = _PARTS["conv" if "weight" in tensors else "block"]
        pools = {name for name in tensors if name.startswith("pool")}
        if not must <= set(tensors) <= must | may or len(pools) not in (0, 4):
            raise _foreign(path, f"{number}.{min(set(tensors) ^ must)}")
        first = tensors["weight" if "weight" in tensors else "conv.0.weight"]
        last = tensors.get("weight", tensors.get("conv.4.weight"))
        if first.ndim != 4 or first.shape[1:] != (width, 3, 3):
            raise _foreign(path, f"{number} of shape {first.shape}")
        width = last.shape[0]
    return [parts[number] for number in sorted(parts)]


def _foreign(path: Path, what: str) -> UserError:
    expected = "an encoder of TAESD's family (0.weight, 1.conv.0.weight, ...)"
    return user_error(f"{path} with {what}", expected, "name the encoder's file, not the decoder's")
