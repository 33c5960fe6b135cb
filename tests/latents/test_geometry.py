import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.latents import geometry
from kaleido_jax.latents.draw import draw_blobs, draw_boxes, latents_panel
from kaleido_jax.latents.types import Blob, Box, Latents, check_blob, check_box


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


def test_empty_mask_is_told():
    for measure in (geometry.mask_to_box, geometry.mask_to_ellipse):
        with pytest.raises(UserError, match="empty mask"):
            measure(np.zeros((4, 4), bool))


def test_panel_shows_every_segment():
    z = Latents(
        text="a very long sentence " * 8 + "w" * 200,
        bbox=(Box(phrase="boot", box=(0, 0, 1000, 1000)),),
        blob=(Blob(phrase="boot", blob=(500, 500, 400, 100, 30)),),
        voken=tuple(range(32)),
    )
    empty = latents_panel(Latents(), 160)
    assert empty.size == (160, 160)
    full = latents_panel(z, 160)
    assert full.width == 160 and full.height > 320
    for segment in ("text", "bbox", "blob", "voken"):
        part = latents_panel(Latents(**{segment: getattr(z, segment)}), 160)
        assert len(part.getcolors(1 << 16)) > 2, segment


def test_drawing_leaves_the_given_image_alone():
    image = latents_panel(Latents(), 64)
    before = image.tobytes()
    assert draw_boxes(image, [Box(phrase="a", box=(0, 0, 500, 500))]).tobytes() != before
    assert draw_blobs(image, [Blob(phrase="a", blob=(500, 500, 300, 200, 0))]).tobytes() != before
    assert image.tobytes() == before
