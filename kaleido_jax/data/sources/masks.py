"""Masks as COCO writes them: polygons, and run lengths plain or compressed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from kaleido_jax import array_types as at
from kaleido_jax.errors import UserError, user_error


def decode_segmentation(segmentation: Any, height: int, width: int) -> at.ImageMask:
    """The mask of one COCO annotation.

    Args:
      segmentation: polygons [x0, y0, x1, y1, ...] in px, whose union is the mask, or {"size": [h, w], "counts"}.
      height: px of the image.
      width: px of the image.

    Raises:
      UserError: it is neither, or does not fit the image.
    """
    if isinstance(segmentation, list | tuple):
        return fill_polygons(segmentation, height, width)
    if not isinstance(segmentation, Mapping):
        raise _bad(f"a segmentation that is {type(segmentation).__name__}", "polygons or run lengths")
    if segmentation.get("size") != [height, width]:  # before allocating an array of another size
        raise _bad(f"a mask of size {str(segmentation.get('size'))[:40]}", f"the image's {[height, width]}")
    return decode_rle(segmentation)


def fill_polygons(polygons: Sequence[Any], height: int, width: int) -> at.ImageMask:
    """The union of polygons, in px; a pixel belongs to a polygon if its center lies inside (even-odd rule).

    Polygons of fewer than three points or without numbers are left out, as is common with pycocotools, and so are those
    within the first pixel, whose numbers are fractions of the image. Pillow's own filling rounds corners to whole
    pixels and draws their border, 10 % too much for a disc of 20 px.

    Raises:
      UserError: no polygon is left.
    """
    usable = [points for points in map(_points, polygons) if points is not None]
    if not usable:
        raise _bad("no polygon of 3 points or more", "x, y in turns")
    mask = np.zeros((height, width), bool)
    for points in usable:
        # Only in the polygon's rows and columns: most objects are small.
        (left, top), (right, bottom) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
        left, right = (int(np.clip(v, 0, width)) for v in (left, right))
        top, bottom = (int(np.clip(v, 0, height)) for v in (top, bottom))
        mask[top:bottom, left:right] |= _fill(points - (left, top), bottom - top, right - left)
    return mask


def _points(polygon: Any) -> Float[np.ndarray, "n 2"] | None:
    try:
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        return None
    return points if len(points) >= 3 and np.isfinite(points).all() and points.max() > 1 else None


def _fill(points: Float[np.ndarray, "n 2"], height: int, width: int) -> at.ImageMask:
    """Scan lines through the pixel centers: each crossed edge toggles between inside and outside."""
    (x0, y0), (x1, y1) = points.T[..., None], np.roll(points, -1, axis=0).T[..., None]
    lines = np.arange(height) + 0.5
    edge, row = np.nonzero((y0 <= lines) != (y1 <= lines))
    x0, y0, x1, y1 = (values[edge, 0] for values in (x0, y0, x1, y1))
    crossing = x0 + (lines[row] - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    turns = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return np.cumsum(turns[:, :width], axis=1) % 2 == 1


def decode_rle(rle: Mapping[str, Any]) -> at.ImageMask:
    """Run lengths, column by column, zeros first; `counts` is a list or COCO's compressed string.

    Raises:
      UserError: the runs do not fill {"size": [h, w]}.
    """
    try:
        counts, (height, width) = rle["counts"], map(_whole, rle["size"])
        runs = [_whole(n) for n in (decompress(counts) if isinstance(counts, str | bytes) else counts)]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _bad("run lengths without size and counts", '{"size": [h, w], "counts": ...}') from error
    # Summed as Python integers, which do not overflow, before allocating an array of that size.
    if min(height, width, *runs, 0) < 0 or sum(runs) != height * width:
        raise _bad(f"run lengths that sum to {sum(runs)}", f"{height * width} px")
    ones = np.arange(len(runs)) % 2 == 1
    return np.repeat(ones, runs).reshape(width, height).T


def _whole(number: Any) -> int:
    """A number of JSON as int: some programs write 30 as 30.0.

    Raises:
      TypeError or ValueError: it is not a whole number.
    """
    if int(number) != number:
        raise ValueError(f"{number} is not whole")
    return int(number)


def decompress(counts: str | bytes) -> list[int]:
    """The runs in COCO's compressed string: five bits per character, low ones first; differences from the third run on.

    Raises:
      ValueError: a character outside "0".."o", or a string that ends inside a number.
    """
    codes = counts.encode() if isinstance(counts, str) else counts
    runs, value, shift = [], 0, 0
    for code in codes:
        code -= 48
        if not 0 <= code < 64:
            raise ValueError("not a character of compressed run lengths")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last character of a number; its fifth bit is the sign
            value -= (code & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end inside a number")
    return runs


def _bad(found: str, expected: str) -> UserError:
    return user_error(found, expected, "correct the segmentation")
