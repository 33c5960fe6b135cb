import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.latents import geometry
from kaleido_jax.latents.segments.bbox import check_box
from kaleido_jax.latents.segments.blob import check_blob


def test_box_of_a_mask_is_its_pixel_edges():
    mask = np.zeros((32, 64), bool)
    mask[8:16, 16:48] = True
    assert geometry.mask_to_box(mask) == (250, 250, 750, 500)
    assert geometry.mask_to_box(np.ones((5, 5), bool)) == (0, 0, 1000, 1000)


@pytest.mark.parametrize("size", [3, 32, 1500])
def test_single_pixels_give_valid_boxes_and_blobs(size):
    for row, column in ((0, 0), (size - 1, size - 1), (size // 2, 0)):
        mask = np.zeros((size, size), bool)
        mask[row, column] = True
        check_box(geometry.mask_to_box(mask))
        check_blob(geometry.ellipse_to_blob(geometry.mask_to_ellipse(mask)))


def test_moments_of_a_rectangle_are_exact():
    mask = np.zeros((40, 40), bool)
    mask[10:20, 4:36] = True
    # A side of length s has variance s**2 / 12, so the semi-axis is s / sqrt(3).
    expected = [500, 375, 800 / np.sqrt(3), 250 / np.sqrt(3), 0]
    np.testing.assert_allclose(geometry.mask_to_ellipse(mask), expected, atol=1e-9)


@pytest.mark.parametrize("theta", [0, 30, 45, 90, 135, 179])
def test_filled_ellipse_gives_itself(theta):
    blob = np.array([480, 520, 300, 120, theta], float)
    found = geometry.mask_to_ellipse(geometry.ellipse_mask(blob, 256))
    np.testing.assert_allclose(found[:4], blob[:4], atol=2)  # half a pixel of 256 is 2 units
    assert abs((found[4] - theta + 90) % 180 - 90) < 0.5


def test_angle_turns_from_x_towards_y_downwards():
    mask = np.eye(20, dtype=bool)  # from the upper left to the lower right
    assert geometry.mask_to_ellipse(mask)[4] == pytest.approx(45)
    assert geometry.mask_to_ellipse(mask[:, ::-1])[4] == pytest.approx(135)


def test_polygon_lies_on_the_ellipse():
    blobs = np.array([[500, 500, 300, 100, 30], [200, 700, 90, 90, 0]], float)
    polygon = geometry.ellipse_to_polygon(blobs, 200)
    assert polygon.shape == (2, 200, 2)
    np.testing.assert_allclose(polygon.mean(axis=1), blobs[:, :2], atol=1e-9)
    x, y = polygon[..., 0], polygon[..., 1]
    area = 0.5 * np.abs(np.sum(x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1), axis=1))
    np.testing.assert_allclose(area, np.pi * blobs[:, 2] * blobs[:, 3], rtol=1e-3)  # 200-gon in its circle


def test_rounded_ellipses_are_valid():
    rng = np.random.default_rng(0)
    for _ in range(200):
        major, minor = sorted(rng.uniform(0, 1100, 2))[::-1]
        ellipse = [*rng.uniform(-5, 1005, 2), major, minor, rng.uniform(0, 180)]
        check_blob(geometry.ellipse_to_blob(ellipse))


def test_box_iou_broadcasts():
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])
    np.testing.assert_allclose(geometry.box_iou(a, b), [1, 1 / 3, 0])
    np.testing.assert_allclose(geometry.box_iou(a[0], b), [1, 1 / 3, 0])


def test_pixels_and_thousandths_are_inverse():
    pixels = np.linspace(0, 640, 7)
    np.testing.assert_allclose(geometry.to_pixels(geometry.to_thousandths(pixels, 640), 640), pixels)


def test_empty_mask_is_reported():
    for measure in (geometry.mask_to_box, geometry.mask_to_ellipse):
        with pytest.raises(UserError, match="empty mask"):
            measure(np.zeros((4, 4), bool))


# ----------------------------------------------------------------------------------------- fitted ellipses
def turned(a, b):
    """Degrees between two axes; theta and theta + 180 are one."""
    return np.abs((a - b + 90) % 180 - 90)


def random_ellipses(count, size_px, seed=0):
    """Ellipses inside the canvas, at least four pixels thin."""
    rng = np.random.default_rng(seed)
    major = rng.uniform(4000 / size_px, 400, count)
    minor = np.maximum(major * rng.uniform(0.2, 1, count), 2000 / size_px)
    xc, yc = rng.uniform(major, 1000 - major, (2, count))
    return np.stack([xc, yc, major, minor, rng.uniform(0, 180, count)], axis=-1)


def test_fit_to_exact_points_is_exact():
    for ellipse in random_ellipses(50, 64):
        # From a third of the outline, and from a handful of points.
        for points in (geometry.ellipse_to_polygon(ellipse, 90)[:30], geometry.ellipse_to_polygon(ellipse, 5)):
            found = geometry.fit_ellipse(points)
            np.testing.assert_allclose(found[:4], ellipse[:4], rtol=1e-6)
            assert turned(found[4], ellipse[4]) < 1e-4


@pytest.mark.parametrize("size", [48, 200])
@pytest.mark.parametrize("fit", [geometry.mask_to_fitted_ellipse, geometry.mask_to_ellipse])
def test_rasterized_ellipse_is_found_again(size, fit):
    ellipses = random_ellipses(100, size)
    found = np.stack([fit(mask) for mask in geometry.ellipse_mask(ellipses, size)])
    pixel = 1000 / size
    # The outline is known to half a pixel at each of its points; no parameter is worse, though the ends of a long
    # axis rest on few of them, hence a whole one there. An angle shows by how far it moves those ends.
    np.testing.assert_array_less(np.abs(found - ellipses)[:, [0, 1, 3]], 0.5 * pixel)
    np.testing.assert_array_less(np.abs(found - ellipses)[:, 2], pixel)
    moved = np.radians(turned(found[:, 4], ellipses[:, 4])) * (ellipses[:, 2] - ellipses[:, 3])
    np.testing.assert_array_less(moved, 0.5 * pixel)
    assert (found[:, 2] >= found[:, 3]).all() and ((found[:, 4] >= 0) & (found[:, 4] < 180)).all()


@pytest.mark.parametrize("fit", [geometry.mask_to_fitted_ellipse, geometry.mask_to_ellipse])
def test_fits_turn_and_move_with_the_mask(fit):
    rng = np.random.default_rng(0)
    for ellipse in random_ellipses(20, 64, seed=1):
        # No ellipse, so that the fit has something to decide: bites out of it, within rows and columns 12 to 52.
        ellipse[:2] = 500 + (ellipse[:2] - 500) * 0.1
        ellipse[2:4] *= 0.5
        mask = geometry.ellipse_mask(ellipse, 64) & ~(
            geometry.ellipse_mask([*rng.uniform(400, 600, 2), 80, 60, 20], 64)
        )
        if mask.sum() < 20:
            continue
        found = fit(mask)
        xc, yc, *axes, theta = fit(np.rot90(mask))  # a quarter turn against the clock: (x, y) -> (y, 1000 - x)
        np.testing.assert_allclose([1000 - yc, xc, *axes], found[:4], atol=1e-6)
        assert turned(theta, found[4] - 90) < 1e-4
        moved = fit(np.roll(mask, (5, -7), axis=(0, 1)))
        np.testing.assert_allclose(moved[:4] - found[:4], [-7000 / 64, 5000 / 64, 0, 0], atol=1e-6)
        mirrored = fit(mask[:, ::-1])
        assert turned(mirrored[4], -found[4]) < 1e-4


def test_fit_follows_an_object_that_the_border_cuts():
    ellipse = np.array([60, 500, 300, 200, 30.0])
    mask = geometry.ellipse_mask(ellipse, 128)
    np.testing.assert_allclose(geometry.mask_to_fitted_ellipse(mask), ellipse, atol=1000 / 128)
    assert abs(geometry.mask_to_ellipse(mask)[0] - ellipse[0]) > 50  # its moments see what is left of it


def test_holes_do_not_change_the_fit():
    mask = geometry.ellipse_mask([500, 500, 400, 300, 20], 64)
    holed = mask & ~geometry.ellipse_mask([450, 520, 150, 100, 0], 64)
    np.testing.assert_array_equal(geometry.mask_to_fitted_ellipse(holed), geometry.mask_to_fitted_ellipse(mask))


def _mask(*slices):
    mask = np.zeros((20, 20), bool)
    for rows, columns in slices:
        mask[rows, columns] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        _mask((5, 3)),
        _mask((5, slice(3, 5))),
        _mask((5, slice(3, 15))),
        _mask((5, slice(None))),
        _mask((slice(None), 19)),
        _mask((slice(None), slice(None))),
        _mask((slice(None), slice(0, 9))),
        _mask((0, 0), (19, 19)),
        np.eye(20, dtype=bool),
        np.random.default_rng(0).random((20, 20)) > 0.5,
    ],
)
def test_degenerate_masks_give_ordered_ellipses(mask):
    for fit in (geometry.mask_to_fitted_ellipse, geometry.mask_to_ellipse):
        ellipse = fit(mask)
        assert np.isfinite(ellipse).all() and ellipse[2] >= ellipse[3] > 0 and 0 <= ellipse[4] < 180
        check_blob(geometry.ellipse_to_blob(ellipse))
        check_box(geometry.round_box(geometry.ellipse_to_box(ellipse)))


def test_points_without_an_ellipse_give_none():
    line = np.stack([np.arange(9.0), 2 * np.arange(9.0)], axis=-1)
    for points in (line, line[:4], np.ones((9, 2)), np.zeros((0, 2))):
        assert geometry.fit_ellipse(points) is None


def test_axes_are_ordered_and_circles_have_angle_zero():
    np.testing.assert_allclose(geometry.order_axes([1, 2, 3, 4, 100]), [1, 2, 4, 3, 10])
    np.testing.assert_allclose(geometry.order_axes([1, 2, 4, 3, -30]), [1, 2, 4, 3, 150])
    np.testing.assert_allclose(geometry.order_axes([1, 2, 3, 3, 77]), [1, 2, 3, 3, 0])
    assert geometry.order_axes([1, 2, 4, 3, -1e-20])[4] == 0
    assert geometry.ellipse_to_blob([500, 500, 100.3, 99.8, 60]) == (500, 500, 100, 100, 0)
    assert geometry.ellipse_to_blob([500, 500, 100.3, 90.8, 179.7]) == (500, 500, 100, 91, 0)


def test_box_of_an_ellipse_is_tight():
    ellipses = random_ellipses(50, 64)
    polygons = geometry.ellipse_to_polygon(ellipses, 4000)
    tight = np.concatenate([polygons.min(axis=1), polygons.max(axis=1)], axis=-1)
    np.testing.assert_allclose(geometry.ellipse_to_box(ellipses), tight, atol=1e-3)  # 400 (1 - cos(pi / 4000)) = 1e-4
    np.testing.assert_allclose(geometry.ellipse_to_box([900, 100, 300, 200, 0]), [600, 0, 1000, 300])


def test_box_and_its_ellipse_are_inverse():
    for box in ([100, 200, 500, 900], [0, 0, 1000, 10], [3, 3, 5, 5]):
        np.testing.assert_allclose(geometry.ellipse_to_box(geometry.box_to_ellipse(box)), box)
    np.testing.assert_allclose(geometry.box_to_ellipse([100, 200, 500, 900]), [300, 550, 350, 200, 90])


def test_rounded_boxes_are_valid():
    rng = np.random.default_rng(0)
    for corners in np.sort(rng.uniform(-100, 1100, (200, 2, 2)), axis=1):
        check_box(geometry.round_box(corners.reshape(4)))
    assert geometry.round_box([999.8, 3.2, 1000, 3.4]) == (999, 3, 1000, 4)


def test_mask_iou_broadcasts():
    a, b, c = (geometry.ellipse_mask([x, 500, 200, 200, 0], 50) for x in (300, 300, 900))
    np.testing.assert_allclose(geometry.mask_iou(a, np.stack([b, c, np.zeros_like(a)])), [1, 0, 0])
    assert geometry.mask_iou(a & False, a & False) == 1
    half = np.zeros((4, 4), bool)
    half[:2] = True
    quarter = half & half.T
    assert geometry.mask_iou(half, quarter) == 0.5
