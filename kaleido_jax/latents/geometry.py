"""Masks, boxes and ellipses on the 0..1000 canvas of the square crop; plain numpy.

x runs to the right, y down; a pixel (column i, row j) covers [i, i+1) x [j, j+1). An angle is measured from
+x towards +y, so a positive theta turns clockwise on the screen; theta and theta + 180 are the same ellipse.
An ellipse is (xc, yc, r_major, r_minor, theta): r_major >= r_minor, theta in [0, 180), and 0 for a circle.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from kaleido_jax.errors import user_error
from kaleido_jax.latents.validity import HALF_TURN, MAX_COORDINATE

Numeric = float | int | np.generic | np.ndarray | Sequence[Any]  # numbers of any shape

# Second moment of a unit square about its center: pixels are squares, not points. This makes the moments of a filled
# rectangle exact and keeps the minor axis of a one-pixel line above zero.
_PIXEL_MOMENT = 1 / 12
_ROUND_TO = 1e-9  # relative difference of the axes below which an ellipse is a circle, in float64
_LARGEST_FIT = 10 * MAX_COORDINATE  # with a fitted axis above this, the outline is not an ellipse


def to_thousandths(position_px: Numeric, size_px: Numeric) -> Float[np.ndarray, "..."]:
    """Positions in pixels (0..size_px, any shape) -> float 0..1000."""
    return np.asarray(position_px, np.float64) * (MAX_COORDINATE / np.asarray(size_px))


def to_pixels(coordinate: Numeric, size_px: Numeric) -> Float[np.ndarray, "..."]:
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


def round_box(box: Shaped[np.ndarray, "4"] | Sequence[Any]) -> tuple[int, int, int, int]:
    """A box of floats, clipped to 0..1000 and rounded; at least one unit wide and high, hence valid."""
    x1, y1, x2, y2 = (int(v) for v in np.rint(np.clip(np.asarray(box, np.float64), 0, MAX_COORDINATE)))
    x1, y1 = min(x1, MAX_COORDINATE - 1), min(y1, MAX_COORDINATE - 1)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


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
    theta = np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))
    axes = 2 * np.sqrt(middle + spread), 2 * np.sqrt(max(middle - spread, 0.0))
    return order_axes(np.array([x.mean(), y.mean(), *axes, theta]))


def mask_to_fitted_ellipse(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "5"]:
    """The ellipse fitted to the mask's outline by least squares; ranges as mask_to_ellipse.

    Unlike the moments, it follows an object that the border of the image cuts: the cut itself is no outline, so the
    center may lie outside 0..1000. Holes are filled. A mask whose outline holds no ellipse (a pixel, a line, one that
    fills the image) gets that of its moments. For masks of any shape the moments overlap more: mean IoU 0.74 against
    0.71 over 743 masks of COCO photographs at 256 px.

    Raises:
      UserError: the mask is empty.
    """
    _check_not_empty(mask)
    ellipse = fit_ellipse(mask_outline(mask))
    return mask_to_ellipse(mask) if ellipse is None else ellipse


def mask_outline(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "p 2"]:
    """Points (x, y) in 0..1000 where the outline crosses the lines between neighboring pixel centers.

    Half a pixel is the error of each. The image's own border and the rims of holes give no points.
    """
    height, width = mask.shape
    from scipy import ndimage  # here, since it takes 0.2 s to import and sampling needs none of it

    filled = ndimage.binary_fill_holes(mask)
    row_v, column_v = np.nonzero(filled[:, 1:] != filled[:, :-1])  # crossed from left to right
    row_h, column_h = np.nonzero(filled[1:] != filled[:-1])  # crossed downwards
    x = np.concatenate([column_v + 1.0, column_h + 0.5])
    y = np.concatenate([row_v + 0.5, row_h + 1.0])
    return np.stack([to_thousandths(x, width), to_thousandths(y, height)], axis=-1)


def fit_ellipse(points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "5"] | None:
    """The ellipse with the least squared algebraic distance to the points; None if they hold none.

    Halir and Flusser (1998), the stable form of Fitzgibbon, Pilu and Fisher (1999): minimize |D a|^2 over conics a
    under 4 a_xx a_yy - a_xy^2 = 1, split into the quadratic and the linear part. Points on a line, fewer than five of
    them, or axes beyond ten canvases give None.
    """
    points = np.asarray(points, np.float64)
    if len(points) < 5:
        return None
    shift, scale = points.mean(axis=0), points.std()
    if scale == 0:
        return None
    # Centered and scaled, the columns are of one size; Fitzgibbon's notes call for it.
    x, y = ((points - shift) / scale).T
    quadratic, linear = np.stack([x * x, x * y, y * y], axis=-1), np.stack([x, y, np.ones_like(x)], axis=-1)
    s1, s2, s3 = quadratic.T @ quadratic, quadratic.T @ linear, linear.T @ linear
    if np.linalg.cond(s3) > 1e12:  # all on one line
        return None
    to_linear = -np.linalg.solve(s3, s2.T)
    reduced = s1 + s2 @ to_linear
    reduced = np.stack([reduced[2] / 2, -reduced[1], reduced[0] / 2])  # inverse of the constraint matrix, times it
    vectors = np.linalg.eig(reduced)[1].real
    is_ellipse = 4 * vectors[0] * vectors[2] - vectors[1] ** 2 > 0  # holds for exactly one
    if not is_ellipse.any():
        return None
    a = vectors[:, np.argmax(is_ellipse)]
    ellipse = _conic_to_ellipse(*a, *(to_linear @ a))
    if ellipse is None or not ellipse[2] * scale <= _LARGEST_FIT:
        return None
    return np.concatenate([ellipse[:2] * scale + shift, ellipse[2:4] * scale, ellipse[4:]])


def order_axes(ellipse: Shaped[np.ndarray, "5"] | Sequence[Any]) -> Float[np.ndarray, "5"]:
    """The same ellipse with r_major >= r_minor, theta in [0, 180), and theta 0 if it is a circle."""
    xc, yc, major, minor, theta = np.asarray(ellipse, np.float64)
    if major < minor:
        major, minor, theta = minor, major, theta + 90
    # A tiny negative angle modulo 180 rounds to 180 itself; the second modulo makes it 0.
    theta = 0.0 if major - minor <= _ROUND_TO * major else theta % HALF_TURN % HALF_TURN
    return np.array([xc, yc, major, minor, theta])


def ellipse_to_box(ellipse: Shaped[np.ndarray, "*n 5"] | Sequence[Any]) -> Float[np.ndarray, "*n 4"]:
    """The smallest box (x1, y1, x2, y2) around the ellipse, clipped to 0..1000."""
    xc, yc, major, minor, theta = np.moveaxis(np.asarray(ellipse, np.float64), -1, 0)
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    half_width, half_height = np.hypot(major * cos, minor * sin), np.hypot(major * sin, minor * cos)
    box = np.stack([xc - half_width, yc - half_height, xc + half_width, yc + half_height], axis=-1)
    return np.clip(box, 0, MAX_COORDINATE)


def box_to_ellipse(box: Shaped[np.ndarray, "4"] | Sequence[Any]) -> Float[np.ndarray, "5"]:
    """The upright ellipse that touches the four sides of the box (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    return order_axes(np.array([(x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2, 0.0]))


def ellipse_to_blob(ellipse: Numeric) -> tuple[int, int, int, int, int]:
    """An ellipse (5 floats as of mask_to_ellipse) rounded to a valid blob."""
    xc, yc, major, minor, theta = (int(v) for v in np.rint(np.asarray(ellipse, np.float64)))
    major = min(max(major, 1), MAX_COORDINATE)
    minor = min(max(minor, 1), major)
    center = min(max(xc, 0), MAX_COORDINATE), min(max(yc, 0), MAX_COORDINATE)
    return *center, major, minor, 0 if major == minor else theta % HALF_TURN


def ellipse_to_polygon(
    blob: Shaped[np.ndarray, "*n 5"] | Sequence[Any], num_points: int = 64
) -> Float[np.ndarray, "*n p 2"]:
    """Points (x, y) on the ellipse in 0..1000, starting at the end of the major axis; not clipped."""
    xc, yc, major, minor, theta = np.moveaxis(np.asarray(blob, np.float64), -1, 0)[..., None]
    turn = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    along, across = major * np.cos(turn), minor * np.sin(turn)
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    return np.stack([xc + along * cos - across * sin, yc + along * sin + across * cos], axis=-1)


def ellipse_mask(blob: Shaped[np.ndarray, "*n 5"] | Sequence[Any], size_px: int) -> Bool[np.ndarray, "*n s s"]:
    """Which pixel centers of a size_px canvas lie inside the ellipse."""
    xc, yc, major, minor, theta = np.moveaxis(np.asarray(blob, np.float64), -1, 0)[..., None, None]
    centers = to_thousandths(np.arange(size_px) + 0.5, size_px)
    dx, dy = centers[None, :] - xc, centers[:, None] - yc
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    return (along / major) ** 2 + (across / minor) ** 2 <= 1


def box_iou(
    a: Shaped[np.ndarray, "*#n 4"] | Sequence[Any], b: Shaped[np.ndarray, "*#n 4"] | Sequence[Any]
) -> Float[np.ndarray | np.generic, "..."]:
    """Intersection over union of boxes (x1, y1, x2, y2), 0..1; leading axes broadcast."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    return shared / (_area(a) + _area(b) - shared)


def mask_iou(a: Bool[np.ndarray, "*#n h w"], b: Bool[np.ndarray, "*#n h w"]) -> Float[np.ndarray | np.generic, "..."]:
    """Intersection over union of masks, 0..1; leading axes broadcast; two empty masks are equal, 1."""
    shared, joined = np.sum(a & b, axis=(-2, -1)), np.sum(a | b, axis=(-2, -1))
    return np.where(joined, shared / np.maximum(joined, 1), 1.0)


def _conic_to_ellipse(a: float, b: float, c: float, d: float, e: float, f: float) -> Float[np.ndarray, "5"] | None:
    """A conic a x^2 + b xy + c y^2 + d x + e y + f = 0 with 4ac > b^2 as an ellipse; None if it has no real point."""
    xc, yc = np.linalg.solve([[2 * a, b], [b, 2 * c]], [-d, -e])
    level = -(f + (d * xc + e * yc) / 2)  # the quadratic form on the outline, about the center
    bend, turns = np.linalg.eigh([[a, b / 2], [b / 2, c]])
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = level / bend
    if not np.all(np.isfinite(squares) & (squares > 0)):
        return None
    first, second = np.sqrt(squares)
    return order_axes(np.array([xc, yc, first, second, np.degrees(np.arctan2(turns[1, 0], turns[0, 0]))]))


def _area(box: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray | np.generic, "*n"]:
    return np.prod(box[..., 2:] - box[..., :2], axis=-1)


def _extent(line: Bool[np.ndarray, "n"]) -> tuple[int, int]:
    filled = np.flatnonzero(line)
    first, last = np.rint(to_thousandths([filled[0], filled[-1] + 1], line.size))
    # On canvases above 1000 px one pixel can be thinner than one unit; a box is never empty.
    first = min(int(first), MAX_COORDINATE - 1)
    return first, max(int(last), first + 1)


def _check_not_empty(mask: Bool[np.ndarray, "h w"]) -> None:
    if not mask.any():
        raise user_error("an empty mask", "at least one pixel set", "skip the object or lower the threshold")
