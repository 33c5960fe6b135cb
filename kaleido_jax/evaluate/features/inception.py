"""Inception-v3 in the form of FID: torchvision's network with the pooling of the TensorFlow graph of 2015-12-05.

It differs from torchvision's in three places: average pooling leaves the padding out, the last block pools by the
maximum, and it has 1,008 classes. The weights are pytorch-fid's and torch-fidelity's file, by the user's path.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kaleido_jax.evaluate.features.network import Conv, FeatureRows, Layer, Maps, mean_of_positions
from kaleido_jax.evaluate.features.resize import Rule

NAME, FID_NAME = "inception-v3", "inception-v3 of FID"
HEAD = "fc"
SIDE_PX = 299
# First digits of the file's sha256, as its name says: pt_inception-2015-12-05-6726825d.pth. Only with this file a
# Frechet distance is called FID.
FID_SHA256 = "6726825d"


def normalize(x: Float[Array, "b h w 3"], rule: Rule) -> Float[Array, "b h w 3"]:
    """0..255 -> about -1..1, where clean-fid and torch-fidelity differ from pytorch-fid by half a step of uint8."""
    return x / 127.5 - 1 if rule == "pytorch-fid" else (x - 128) / 128


@runtime_checkable
class Unit(Protocol):
    """A convolution, its norm and a rectifier; `kernel` is one side, or height and width."""

    def __call__(self, x: Maps, name: str, width: int, *kernel: int, **keywords: Any) -> Maps:
        """`keywords` are `stride` and `padding` of the Layer."""
        ...


def inception_v3(x: Maps, conv: Conv) -> FeatureRows:
    """Features (2048) of normalized images; any side from 75 px, but only 299 gives those of FID."""

    def unit(x: Maps, name: str, width: int, *kernel: int, **keywords: Any) -> Maps:
        sides = (kernel[0], kernel[-1])
        layer = Layer(name=f"{name}.conv", norm=f"{name}.bn", width=width, kernel=sides, **keywords)
        return jax.nn.relu(conv(x, layer))

    x = unit(x, "Conv2d_1a_3x3", 32, 3, stride=2, padding="VALID")
    x = unit(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
    x = _max_pool(unit(x, "Conv2d_2b_3x3", 64, 3), 2, "VALID")
    x = unit(x, "Conv2d_3b_1x1", 80, 1)
    x = _max_pool(unit(x, "Conv2d_4a_3x3", 192, 3, padding="VALID"), 2, "VALID")
    for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
        x = _block_a(x, unit, f"Mixed_5{letter}.", pooled)
    x = _block_b(x, unit, "Mixed_6a.")
    for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        x = _block_c(x, unit, f"Mixed_6{letter}.", width)
    x = _block_d(x, unit, "Mixed_7a.")
    x = _block_e(x, unit, "Mixed_7b.", _average_pool(x))
    x = _block_e(x, unit, "Mixed_7c.", _max_pool(x, 1, "SAME"))
    return mean_of_positions(x)


def _block_a(x: Maps, unit: Unit, at: str, pooled: int) -> Maps:
    ones = unit(x, at + "branch1x1", 64, 1)
    fives = unit(unit(x, at + "branch5x5_1", 48, 1), at + "branch5x5_2", 64, 5)
    threes = unit(unit(x, at + "branch3x3dbl_1", 64, 1), at + "branch3x3dbl_2", 96, 3)
    threes = unit(threes, at + "branch3x3dbl_3", 96, 3)
    return _join(ones, fives, threes, unit(_average_pool(x), at + "branch_pool", pooled, 1))


def _block_b(x: Maps, unit: Unit, at: str) -> Maps:
    threes = unit(x, at + "branch3x3", 384, 3, stride=2, padding="VALID")
    deep = unit(unit(x, at + "branch3x3dbl_1", 64, 1), at + "branch3x3dbl_2", 96, 3)
    deep = unit(deep, at + "branch3x3dbl_3", 96, 3, stride=2, padding="VALID")
    return _join(threes, deep, _max_pool(x, 2, "VALID"))


def _block_c(x: Maps, unit: Unit, at: str, width: int) -> Maps:
    ones = unit(x, at + "branch1x1", 192, 1)
    sevens = unit(unit(x, at + "branch7x7_1", width, 1), at + "branch7x7_2", width, 1, 7)
    sevens = unit(sevens, at + "branch7x7_3", 192, 7, 1)
    deep = unit(unit(x, at + "branch7x7dbl_1", width, 1), at + "branch7x7dbl_2", width, 7, 1)
    deep = unit(unit(deep, at + "branch7x7dbl_3", width, 1, 7), at + "branch7x7dbl_4", width, 7, 1)
    deep = unit(deep, at + "branch7x7dbl_5", 192, 1, 7)
    return _join(ones, sevens, deep, unit(_average_pool(x), at + "branch_pool", 192, 1))


def _block_d(x: Maps, unit: Unit, at: str) -> Maps:
    threes = unit(x, at + "branch3x3_1", 192, 1)
    threes = unit(threes, at + "branch3x3_2", 320, 3, stride=2, padding="VALID")
    sevens = unit(unit(x, at + "branch7x7x3_1", 192, 1), at + "branch7x7x3_2", 192, 1, 7)
    sevens = unit(sevens, at + "branch7x7x3_3", 192, 7, 1)
    sevens = unit(sevens, at + "branch7x7x3_4", 192, 3, stride=2, padding="VALID")
    return _join(threes, sevens, _max_pool(x, 2, "VALID"))


def _block_e(x: Maps, unit: Unit, at: str, pooled: Maps) -> Maps:
    ones = unit(x, at + "branch1x1", 320, 1)
    threes = unit(x, at + "branch3x3_1", 384, 1)
    threes = _join(unit(threes, at + "branch3x3_2a", 384, 1, 3), unit(threes, at + "branch3x3_2b", 384, 3, 1))
    deep = unit(unit(x, at + "branch3x3dbl_1", 448, 1), at + "branch3x3dbl_2", 384, 3)
    deep = _join(unit(deep, at + "branch3x3dbl_3a", 384, 1, 3), unit(deep, at + "branch3x3dbl_3b", 384, 3, 1))
    return _join(ones, threes, deep, unit(pooled, at + "branch_pool", 192, 1))


def _join(*parts: Maps) -> Maps:
    return jnp.concatenate(parts, axis=-1)


def _max_pool(x: Maps, stride: int, padding: str) -> Maps:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: Maps) -> Maps:
    """3x3 with stride 1, over the positions inside the map only."""
    sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    inside = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return sums / jax.lax.reduce_window(inside, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
