from pathlib import Path

import numpy as np
import pytest

from kaleido_jax.data.sources.emoji import SPRITE_NAMES, describe, draw_scene, visible_boxes
from kaleido_jax.evaluate.scene_reading import Said, agreement, placed_in, said_by, see
from kaleido_jax.evaluate.sprite_reader import open_reader
from kaleido_jax.latents.types import Latents
from tests.evaluate.scenes import SIZE, some_real_samples


@pytest.fixture(scope="module")
def seen():
    return see(some_real_samples().pixels, open_reader(SIZE, Path()))


def test_a_text_is_read_as_the_source_writes_it():
    rng = np.random.default_rng(0)
    for scene in (draw_scene(rng, held_out=False, two_share=0.5) for _ in range(300)):
        first = scene.sprites[0]
        size, place, tilt = first.words
        name = SPRITE_NAMES[first.sprite]
        expected = Said(name=name, size=size, place=place, tilt=tilt, background=scene.background)
        assert said_by(describe(scene)) == expected


def test_center_and_side_follow_from_the_box_and_the_tilt():
    rng = np.random.default_rng(1)
    for scene in (draw_scene(rng, held_out=False, two_share=0.0) for _ in range(30)):
        placed = scene.sprites[0]
        box = tuple(1000 * edge for edge in visible_boxes(scene)[0])
        # The box is measured on 128 pixels, and the largest sprites are cut a little.
        expected = pytest.approx((placed.x, placed.y, placed.side), abs=0.03)
        assert placed_in(box, placed.sprite, placed.tilt) == expected


@pytest.mark.parametrize(
    "text",
    ["", "a red apple", "a huge red apple, top, upright, on pink", "a small red apple, top, upright, on red"],
)
def test_other_texts_are_not_guessed_at(text):
    assert said_by(text) is None


def test_real_scenes_agree_with_their_own_z_up_to_the_readers_errors(seen):
    real = some_real_samples()
    found = agreement(seen, real.latents, real.kinds.tolist())
    assert found["phrase_of_kind"] == found["text_readable"] == found["background_as_said"] == 1
    assert found["sprite_as_said"] > 0.94 and found["box_iou_median"] > 0.95 and found["no_foreground"] == 0
    assert min(found["size_as_said"], found["place_as_said"], found["tilt_as_said"]) > 0.8
    assert found["blob_tilt_error_degrees_median"] < 8


def test_the_z_of_other_scenes_does_not_agree(seen):
    real = some_real_samples()
    found = agreement(seen, real.latents[1:] + real.latents[:1], real.kinds.tolist())
    assert found["phrase_of_kind"] < 0.3 and found["sprite_as_said"] < 0.1 and found["background_as_said"] < 0.3
    assert found["box_iou_median"] < 0.8 and found["blob_tilt_error_degrees_median"] > 15
    assert max(found["size_as_said"], found["tilt_as_said"], found["place_as_said"]) < 0.6


def test_what_does_not_parse_is_left_out_and_what_is_not_readable_counts_as_wrong(seen):
    real = some_real_samples()
    some = [z if i % 2 else None for i, z in enumerate(real.latents)]
    kept = agreement(seen[1::2], real.latents[1::2], real.kinds.tolist()[1::2])
    assert agreement(seen, some, real.kinds.tolist()) == kept
    silent = [z.replace(text="a fruit", bbox=None, blob=None) for z in real.latents]
    found = agreement(seen, silent, real.kinds.tolist())
    assert found["text_readable"] == found["background_as_said"] == 0
    assert found["sprite_as_said"] is None and found["blob_tilt_error_degrees_median"] is None
    assert agreement(seen[:1], [Latents(text="")], [0])["box_iou_median"] is None
