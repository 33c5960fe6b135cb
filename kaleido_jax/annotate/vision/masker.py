"""Masker, the protocol of box-prompted masks that SAM and ONNX mask models share."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from kaleido_jax.array_types import Boxes, Image


@runtime_checkable
class Masker(Protocol):
    """A model that finds the object in a box."""

    def __call__(self, image: Image, boxes: Boxes) -> Bool[np.ndarray, "n h w"]:
        """A mask of the image's size for each box; boxes are in px of the image."""
        ...
