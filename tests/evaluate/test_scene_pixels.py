import numpy as np
import pytest

from kaleido_jax.data.sources.emoji import BACKGROUNDS, draw_scene, render, visible_boxes
from kaleido_jax.evaluate.scene_pixels import background_of, box_of
from kaleido_jax.latents.geometry import box_iou


@pytest.mark.parametrize(("size", "ceiling"), [(32, 0.95), (64, 0.97)])
def test_background_and_box_of_held_out_scenes_are_read_from_their_pixels(size, ceiling):
    rng = np.random.default_rng(3)
    scenes = [draw_scene(rng, held_out=True, two_share=0.0) for _ in range(80)]
    images = [render(scene, size)[0] for scene in scenes]
    assert [background_of(image) for image in images] == [scene.background for scene in scenes]
    true = [1000 * np.asarray(visible_boxes(scene)[0]) for scene in scenes]
    overlaps = [float(box_iou(box_of(image), box)) for image, box in zip(images, true, strict=True)]
    assert np.median(overlaps) >= ceiling and np.mean(np.asarray(overlaps) > 0.8) >= 0.9


def test_two_sprites_have_one_box_around_both():
    rng = np.random.default_rng(4)
    scene = draw_scene(rng, held_out=False, two_share=1.0)
    boxes = 1000 * np.asarray(visible_boxes(scene))
    both = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    assert box_iou(box_of(render(scene, 64)[0]), both) > 0.9


def test_noise_and_specks_are_no_foreground():
    rng = np.random.default_rng(5)
    plain = np.full((32, 32, 3), BACKGROUNDS["pink"], np.uint8)
    assert box_of(plain) is None
    assert box_of((plain + rng.integers(-5, 6, plain.shape)).astype(np.uint8)) is None
    speck = plain.copy()
    speck[3, 4] = 0
    assert box_of(speck) is None
    drawn = speck.copy()
    drawn[16:24, 8:28] = 0
    assert box_of(drawn) == (250, 500, 875, 750)
    assert background_of(drawn) == "pink"
