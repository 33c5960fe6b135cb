"""Masks as COCO writes them: polygons, and run lengths plain or compressed."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

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
    """The union of polygons, in px; a pixel belongs to it by its centre.

    Raises:
      UserError: a polygon of fewer than three points, or no numbers.
    """
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        try:
            # Pillow counts from the centre of the first pixel, COCO from its corner.
            points = (np.asarray(polygon, np.float64) - 0.5).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            raise _bad("a polygon that is no list of x, y", "numbers in pairs") from error
        if len(points) < 3 or not np.isfinite(points).all():
            raise _bad("a polygon of fewer than 3 points", "x, y in turns")
        draw.polygon([tuple(p) for p in points.tolist()], fill=1)
    return np.array(canvas, dtype=bool)


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
