"""Masks as COCO writes them: polygons, and run lengths plain or compressed."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from kaleido_jax.errors import user_error


def decode_segmentation(segmentation, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask of one COCO annotation.

    Args:
      segmentation: a list of polygons [x0, y0, x1, y1, ...] in px, whose union it is, or {"size": [h, w], "counts"}.
      height: px of the image.
      width: px of the image.

    Raises:
      UserError: it is neither, or does not fit the image.
    """
    if isinstance(segmentation, Mapping):
        mask = decode_rle(segmentation)
        if mask.shape != (height, width):
            raise _bad(f"a mask of {mask.shape[1]}x{mask.shape[0]} px", f"the image's {width}x{height} px")
        return mask
    return fill_polygons(segmentation, height, width)


def fill_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The union of polygons, in px; a pixel belongs to one that its center lies in (even-odd rule).

    Pillow's own filling rounds corners to whole pixels and draws their border, 10 % too much for a disc of 20 px.

    Raises:
      UserError: a polygon of fewer than three points, or no numbers.
    """
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            raise _bad("a polygon that is no list of x, y", "numbers in pairs") from error
        if len(points) < 3 or not np.isfinite(points).all():
            raise _bad("a polygon of fewer than 3 points", "x, y in turns")
        # Only where the polygon is: most objects are small.
        (left, top), (right, bottom) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
        left, right = (int(np.clip(v, 0, width)) for v in (left, right))
        top, bottom = (int(np.clip(v, 0, height)) for v in (top, bottom))
        mask[top:bottom, left:right] |= _fill(points - (left, top), bottom - top, right - left)
    return mask


def _fill(points, height, width):
    """Scan lines through the pixels' centers: each edge that one crosses turns inside to outside from there on."""
    (x0, y0), (x1, y1) = points.T[..., None], np.roll(points, -1, axis=0).T[..., None]
    lines = np.arange(height) + 0.5
    edge, row = np.nonzero((y0 <= lines) != (y1 <= lines))
    x0, y0, x1, y1 = (values[edge, 0] for values in (x0, y0, x1, y1))
    crossing = x0 + (lines[row] - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    turns = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return np.cumsum(turns[:, :width], axis=1) % 2 == 1


def decode_rle(rle: Mapping) -> Bool[np.ndarray, "h w"]:
    """Run lengths, column by column, zeros first; `counts` is a list or COCO's compressed string.

    Raises:
      UserError: the runs do not fill {"size": [h, w]}.
    """
    try:
        (height, width), counts = rle["size"], rle["counts"]
        runs = np.asarray(decompress(counts) if isinstance(counts, str | bytes) else counts, np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise _bad("run lengths without size and counts", '{"size": [h, w], "counts": ...}') from error
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise _bad(f"run lengths that sum to {int(runs.sum())}", f"{height * width} px")
    ones = np.arange(len(runs)) % 2 == 1
    return np.repeat(ones, runs).reshape(width, height).T


def decompress(counts: str | bytes) -> list[int]:
    """The runs in COCO's compressed string: five bits a character, low ones first, from the third run on differences.

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


def _bad(found, expected):
    return user_error(found, expected, "correct the segmentation")
