"""Square crop of an example: the center square of the image, resized, with its boxes and masks under the same map.

Latents are given on the square crop.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from kaleido_jax import array_types as at
from kaleido_jax.data.sources.base import Example, LabeledObject
from kaleido_jax.errors import user_error
from kaleido_jax.latents.validity import MAX_COORDINATE

MIN_VISIBLE = 0.25  # an object is left out if the crop keeps a smaller share of its box's or mask's area


# ---------------------------------------------------------------------------------------------- geometry
def crop_window(size_px: tuple[int, int]) -> tuple[float, float, float]:
    """(left, top, side) in px of the largest centered square of an image of (width, height)."""
    width, height = size_px
    side = min(width, height)
    return (width - side) / 2, (height - side) / 2, float(side)


def boxes_to_crop(boxes_px: Float[np.ndarray, "*n 4"], size_px: tuple[int, int]) -> Float[np.ndarray, "*n 4"]:
    """Boxes (x1, y1, x2, y2) in px of the whole image -> 0..1000 of its square crop, and beyond for parts outside.

    Boxes in thousandths of the whole image must first be multiplied by its size and divided by 1000.

    Args:
      boxes_px: of any leading shape.
      size_px: (width, height) of the whole image.
    """
    left, top, side = crop_window(size_px)
    shift = np.array([left, top, left, top])
    return (np.asarray(boxes_px, np.float64) - shift) * (MAX_COORDINATE / side)


def cut_boxes(
    boxes: Float[np.ndarray, "*n 4"], limit: float = MAX_COORDINATE
) -> tuple[Float[np.ndarray, "*n 4"], Float[np.ndarray, "*n"]]:
    """Boxes clipped to 0..limit, and the share of its area that each keeps, 0..1; a box without area keeps 0."""
    boxes = np.asarray(boxes, np.float64)
    cut = np.clip(boxes, 0, limit)
    before, after = _areas(boxes), _areas(cut)
    return cut, np.where(before > 0, after / np.where(before > 0, before, 1), 0.0)


def _areas(boxes: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n"]:
    return np.asarray(np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1))


# ------------------------------------------------------------------------------------------------ images
def square_crop(example: Example, size_px: int) -> Example:
    """The example's center square at size_px, with its objects in px of the result.

    The short side is resized to size_px and the center kept (MDM), in one step with Pillow's Lanczos filter, which
    widens when it shrinks and so avoids aliasing. A square of that size is not changed. Objects are left out if the
    crop keeps less than MIN_VISIBLE of their box or mask; objects with neither stay.

    Raises:
      UserError: size_px is not positive, or a mask is not of the image's size.
    """
    if size_px < 1:
        raise user_error(f"a crop of {size_px} px", "at least 1", "raise the size")
    height, width = example.image.shape[:2]
    objects = _crop_objects(example, (width, height), size_px)
    return replace(
        example, image=crop_image(example.image, size_px), objects=objects, shorter_side_px=min(width, height)
    )


def crop_image(image: at.Image, size_px: int) -> UInt8[np.ndarray, "s s 3"]:
    """The pixels of `square_crop`."""
    height, width = image.shape[:2]
    if (height, width) == (size_px, size_px):
        return image
    left, top, side = crop_window((width, height))
    if side == size_px and left.is_integer() and top.is_integer():
        return np.ascontiguousarray(image[int(top) : int(top) + size_px, int(left) : int(left) + size_px])
    box, size = (left, top, left + side, top + side), (size_px, size_px)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, box=box))


def _crop_objects(example: Example, whole_px: tuple[int, int], size_px: int) -> tuple[LabeledObject, ...]:
    cropped = []
    for found in example.objects:
        box, mask = found.box, found.mask
        if mask is not None and mask.shape != whole_px[::-1]:
            raise user_error(
                f"a mask of {mask.shape[1]} x {mask.shape[0]} px in {example.id}",
                f"{whole_px[0]} x {whole_px[1]} as its image",
                "make both of one size",
            )
        box, box_share = (None, 1.0) if box is None else _crop_box(box, whole_px, size_px)
        mask, mask_share = (None, 1.0) if mask is None else crop_mask(mask, size_px)
        if min(box_share, mask_share) >= MIN_VISIBLE:
            cropped.append(replace(found, box=box, mask=mask))
    return tuple(cropped)


def _crop_box(box: Sequence[float], whole_px: tuple[int, int], size_px: int) -> tuple[tuple[float, ...], float]:
    cut, share = cut_boxes(boxes_to_crop(np.array(box), whole_px))
    return tuple(float(v) for v in cut * (size_px / MAX_COORDINATE)), float(share)


def crop_mask(mask: Bool[np.ndarray, "h w"], size_px: int) -> tuple[Bool[np.ndarray, "s s"], float]:
    """The mask on the center square at size_px, and the share of its area that the square keeps (0 for an empty mask).

    A pixel is set if the object covers at least half of it. For an object too thin for that, the pixel that it covers
    most is set, so that no object in the crop becomes empty.
    """
    height, width = mask.shape
    left, top, side = crop_window((width, height))
    rows = _area_resize(mask.astype(np.float64), top, side, size_px)
    cover = _area_resize(rows.T, left, side, size_px).T
    share = cover.mean() * side**2 / mask.sum() if mask.any() else 0.0
    out = cover >= 0.5 - 1e-9  # sums of halves are exact, those of thirds are not
    if share > 0 and not out.any():
        out[np.unravel_index(np.argmax(cover), cover.shape)] = True
    return out, float(share)


def _area_resize(values: Float[np.ndarray, "n m"], start: float, side: float, size_px: int) -> Float[np.ndarray, "s m"]:
    """Means over size_px equal parts of [start, start + side] along the first axis; exact also within a pixel."""
    edges = start + np.linspace(0, side, size_px + 1)
    below = np.minimum(np.floor(edges).astype(int), len(values) - 1)
    until = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    at_edges = until[below] + (edges - below)[:, None] * values[below]
    return np.diff(at_edges, axis=0) * (size_px / side)
