"""Resizing of images for a feature network, as three programs do it. Their Frechet distances differ by this alone.

Each is linear and separable: one matrix for the rows, one for the columns. The input is uint8; nothing is rounded
between resizing and the network in any of the three. Of the same weights, `clean-fid` is what new work reports.
"""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

Rule = Literal["clean-fid", "torch-fidelity", "pytorch-fid"]
RULES: tuple[Rule, ...] = get_args(Rule)


def resized(images: UInt8[Array, "b h w 3"], side_px: int, rule: Rule) -> Float[Array, "b s s 3"]:
    """Images of 0..255 with sides of `side_px`."""
    rows, columns = (resize_matrix(size, side_px, rule) for size in images.shape[1:3])
    x = jnp.einsum("sh,bhwc->bswc", rows, images.astype(jnp.float32), precision="highest")
    x = jnp.einsum("tw,bswc->bstc", columns, x, precision="highest")
    return jnp.clip(x, 0, 255) if rule == "clean-fid" else x  # only a bicubic filter overshoots


def resize_matrix(size: int, new_size: int, rule: Rule) -> Float32[np.ndarray, "new old"]:
    """Weights of the old pixels in each new one.

    clean-fid: Pillow's bicubic filter (a = -1/2), which is widened when it shrinks an image, so nothing is aliased.
    torch-fidelity: TensorFlow 1's bilinear one: a new pixel i reads at i * size / new_size, so images move by up to
    half a pixel, and shrunk images are aliased. pytorch-fid: bilinear between the centers of pixels, aliased too.
    """
    scale, new = size / new_size, np.arange(new_size)
    if rule == "clean-fid":
        widened = max(scale, 1)
        distance = np.abs(np.arange(size) + 0.5 - (new[:, None] + 0.5) * scale) / widened
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    if rule == "torch-fidelity":
        position = new.astype(np.float32) * np.float32(scale)  # in float32, as the original rounds
    else:
        position = np.maximum((new + 0.5) * scale - 0.5, 0)
    low = np.minimum(position.astype(np.int64), size - 1)
    share = (position - low).astype(np.float32)
    weights = np.zeros((new_size, size), np.float32)
    np.add.at(weights, (new, low), 1 - share)
    np.add.at(weights, (new, np.minimum(low + 1, size - 1)), share)
    return weights
