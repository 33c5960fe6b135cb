"""Masks, boxes and ellipses on the 0..1000 canvas of the square crop; plain numpy.

x runs to the right, y down; a pixel (column i, row j) covers [i, i+1) x [j, j+1). An angle is measured from
+x towards +y, so a positive theta turns clockwise on the screen; theta and theta + 180 are the same ellipse.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from kaleido_jax.errors import user_error
from kaleido_jax.latents.types import HALF_TURN, MAX_COORDINATE

# Second moment of a unit square about its centre: pixels are squares, not points. It makes the moments of a
# filled rectangle exact and keeps the minor axis of a one-pixel line above zero.
_PIXEL_MOMENT = 1 / 12


def to_thousandths(position_px, size_px):
    """Positions in pixels (0..size_px, any shape) -> float 0..1000."""
    return np.asarray(position_px, np.float64) * (MAX_COORDINATE / np.asarray(size_px))


def to_pixels(coordinate, size_px):
    """Coordinates 0..1000 (any shape) -> float pixels 0..size_px."""
    return np.asarray(coordinate, np.float64) * (np.asarray(size_px) / MAX_COORDINATE)


def mask_to_box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """The smallest box (x1, y1, x2, y2), ints 0..1000, that holds the mask.

    Raises:
      UserError: the mask is empty.
    """
    _check_not_empty(mask)
    x1, x2 = _extent(mask.any(axis=0))
    y1, y2 = _extent(mask.any(axis=1))
    return x1, y1, x2, y2


def mask_to_ellipse(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "5"]:
    """The ellipse with the mask's second moments: (xc, yc, r_major, r_minor, theta).

    Lengths in 0..1000, theta in degrees [0, 180). A semi-axis is 2 * sqrt(eigenvalue of the covariance), so
    that a filled ellipse gives itself.

    Raises:
      UserError: the mask is empty.
    """
    _check_not_empty(mask)
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    x, y = to_thousandths(columns + 0.5, width), to_thousandths(rows + 0.5, height)
    dx, dy = x - x.mean(), y - y.mean()
    xx = np.mean(dx * dx) + _PIXEL_MOMENT * (MAX_COORDINATE / width) ** 2
    yy = np.mean(dy * dy) + _PIXEL_MOMENT * (MAX_COORDINATE / height) ** 2
    xy = np.mean(dx * dy)
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    theta = np.degrees(0.5 * np.arctan2(2 * xy, xx - yy)) % HALF_TURN
    return np.array([x.mean(), y.mean(), 2 * np.sqrt(middle + spread), 2 * np.sqrt(max(middle - spread, 0.0)), theta])


def ellipse_to_blob(ellipse) -> tuple[int, int, int, int, int]:
    """An ellipse (5 floats as of mask_to_ellipse) rounded to a valid blob."""
    xc, yc, major, minor, theta = (int(v) for v in np.rint(np.asarray(ellipse, np.float64)))
    major = min(max(major, 1), MAX_COORDINATE)
    return (
        min(max(xc, 0), MAX_COORDINATE),
        min(max(yc, 0), MAX_COORDINATE),
        major,
        min(max(minor, 1), major),
        theta % HALF_TURN,
    )


def ellipse_to_polygon(blob: Float[np.ndarray, "*n 5"], num_points: int = 64) -> Float[np.ndarray, "*n p 2"]:
    """Points (x, y) on the ellipse in 0..1000, starting at the end of the major axis; not clipped."""
    xc, yc, major, minor, theta = np.moveaxis(np.asarray(blob, np.float64), -1, 0)[..., None]
    turn = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    along, across = major * np.cos(turn), minor * np.sin(turn)
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    return np.stack([xc + along * cos - across * sin, yc + along * sin + across * cos], axis=-1)


def ellipse_mask(blob: Float[np.ndarray, "*n 5"], size_px: int) -> Bool[np.ndarray, "*n s s"]:
    """Which pixel centres of a size_px canvas lie inside the ellipse."""
    xc, yc, major, minor, theta = np.moveaxis(np.asarray(blob, np.float64), -1, 0)[..., None, None]
    centres = to_thousandths(np.arange(size_px) + 0.5, size_px)
    dx, dy = centres[None, :] - xc, centres[:, None] - yc
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    return (along / major) ** 2 + (across / minor) ** 2 <= 1


def box_iou(a: Int[np.ndarray, "*n 4"], b: Int[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n"]:
    """Intersection over union of boxes (x1, y1, x2, y2), 0..1; leading axes broadcast."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    return shared / (_area(a) + _area(b) - shared)


def _area(box):
    return np.prod(box[..., 2:] - box[..., :2], axis=-1)


def _extent(line):
    filled = np.flatnonzero(line)
    first, last = np.rint(to_thousandths([filled[0], filled[-1] + 1], line.size))
    # On canvases above 1000 px one pixel can be thinner than one unit; a box is never empty.
    first = min(int(first), MAX_COORDINATE - 1)
    return first, max(int(last), first + 1)


def _check_not_empty(mask):
    if not mask.any():
        raise user_error("an empty mask", "at least one pixel set", "skip the object or lower the threshold")
