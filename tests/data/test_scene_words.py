"""Texts of scenes against boxes: what fits is not blamed, what does not fit is named."""

import numpy as np
import pytest

from kaleido_jax.data.scene_words import all_said_by, misfits
from kaleido_jax.data.sources.emoji import SPRITE_NAMES, describe, draw_scene, visible_boxes


def scenes(number, two_share=0.3):
    """(text, objects with boxes as records have them) of random scenes."""
    rng = np.random.default_rng(0)
    for _ in range(number):
        scene = draw_scene(rng, held_out=False, two_share=two_share)
        boxes = [tuple(round(100 * edge) * 10 for edge in box) for box in visible_boxes(scene)]
        yield describe(scene), [(SPRITE_NAMES[p.sprite], b) for p, b in zip(scene.sprites, boxes, strict=True)]


def test_the_text_of_a_scene_fits_its_own_boxes_and_mostly_no_others():
    own = list(scenes(40))
    assert not [line for text, objects in own for line in misfits(text, objects)]
    alone = list(scenes(40, two_share=0.0))
    swapped = zip(alone, alone[1:], strict=False)
    blamed = [any(misfits(text, [(objects[0][0], others[0][1])])) for (text, objects), (_, others) in swapped]
    assert np.mean(blamed) > 0.4


@pytest.mark.parametrize(
    ("text", "objects", "lines"),
    [
        ("an apple on the left", [("pear", (0, 0, 10, 10))], []),
        ("a small red apple, left, upright, on pink", [], ["the text names 1 and there are 0"]),
        (
            "a small red apple, left, upright, on pink",
            [("red apple", (0, 300, 400, 700)), ("pear", (0, 0, 10, 10))],
            ["the text names 1 and there are 2"],
        ),
        (
            "a small red apple, left, upright, on pink",
            [("red apple", (500, 200, 980, 800))],
            ["the text says 'left' of 'red apple', which stands 'right'"],
        ),
        (
            "a large thing, center, upright, on pink",
            [("thing", (400, 400, 600, 600))],
            ["the text says 'large' of 'thing', which is 'small'"],
        ),
        (
            "a small red apple, left, upright and a small pear, right, upright, on pink",
            [("red apple", (0, 300, 400, 700)), ("plum", (600, 300, 1000, 700))],
            ["the text says 'pear', not 'plum'"],
        ),
        (
            "A small red apple, left, upright, on pink.",
            [("red apple", (500, 200, 980, 800))],
            ["the text says 'left' of 'red apple', which stands 'right'"],
        ),
        (
            "A small red apple, left, upright, and a small pear, right, upright, on pink",
            [("red apple", (0, 300, 400, 700)), ("plum", (600, 300, 1000, 700))],
            ["the text says 'pear', not 'plum'"],
        ),
    ],
)
def test_what_does_not_fit_is_named(text, objects, lines):
    assert list(misfits(text, objects)) == lines


def test_each_sprite_of_a_text_is_read_also_as_people_type_it():
    said = all_said_by("a small red apple, left, upright and a large pear, right, tilted left, on pink")
    assert [(one.name, one.size, one.place, one.tilt, one.background) for one in said] == [
        ("red apple", "small", "left", "upright", "pink"),
        ("pear", "large", "right", "tilted left", "pink"),
    ]
    typed = "A small red apple, left, upright, and a large pear, right, tilted left, on pink."
    assert all_said_by(typed) == said
