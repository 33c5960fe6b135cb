"""Edits on random weights: the same noise, what is locked, what is sampled anew, chains, and what is told."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.errors import UserError
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.segments.blob import Blob
from kaleido_jax.latents.types import Latents, select
from kaleido_jax.sampling.editing import edit_seed
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import load_recipe
from tests.sampling.test_call import CONFIG, pipe  # noqa: F401

SEGMENTS = CONFIG.latents.segments
SHORT = Latents(text="a fruit", bbox=(), blob=(Blob("fruit", (500, 500, 200, 100, 30)),), voken=(1, 2, 3, 4))


@pytest.fixture(scope="module")
def out(pipe):  # noqa: F811
    return pipe("fruit", latents=SHORT, seed=3)  # random weights fill all tokens with text


@pytest.fixture(scope="module")
def z(out):
    return out.latents[0]


def difference(a, b):
    return np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean()


def test_an_edit_that_changes_nothing_is_the_same_picture(pipe, out, z):  # noqa: F811
    for edited in (pipe.edit(out.recipe), pipe.edit(out.recipe, text=z.text, gamma=CONFIG.sample.gamma, follow=True)):
        np.testing.assert_array_equal(np.asarray(edited.before), out.pixels[0, 0])
        np.testing.assert_array_equal(np.asarray(edited.after), np.asarray(edited.before))
        assert not np.asarray(edited.difference).any() and edited.latents == z
    assert pipe.edit(out.recipe).recipe == out.recipe
    assert "nothing was changed: the same image" in pipe.edit(out.recipe).messages


def test_an_edit_keeps_the_noise_and_draws_what_the_call_draws(pipe, out, z):  # noqa: F811
    edited = pipe.edit(out.recipe, text="a small fruit", follow=False)
    called = pipe("fruit", latents=z.replace(text="a small fruit"), seed=3)
    np.testing.assert_array_equal(np.asarray(edited.after), called.pixels[0, 0])
    fresh = pipe("fruit", latents=edited.latents, seed=4)
    assert 0 < difference(edited.before, edited.after) < 0.7 * difference(edited.before, fresh.images[0][0])
    np.testing.assert_array_equal(pipe.draw(edited.recipe).pixels[0, 0], np.asarray(edited.after))
    line = "bbox, blob and voken are behind text and may no longer fit; kept"
    assert edited.messages[0] == f"{line} (follow=True resamples bbox, blob and voken)"


def test_what_follows_is_sampled_under_all_that_is_before_it(pipe, out, z):  # noqa: F811
    edited = pipe.edit(out.recipe, text="a small fruit", follow=True, seed=9)
    assert edited.latents == pipe("fruit", prefix=Latents(text="a small fruit"), seed=9).latents[0]
    box = (Box("fruit", (100, 100, 400, 400)),)
    edited = pipe.edit(out.recipe, bbox=box, follow=True, seed=9)
    locked = z.replace(bbox=box)
    assert select(edited.latents, ("text", "bbox")) == select(locked, ("text", "bbox"))
    (sampled,) = pipe.sample_latents(
        ["fruit"],
        seed=9,
        sample=dataclasses.replace(CONFIG.sample, grammar=True),
        prefix=[select(locked, ("text", "bbox"))],
    )
    assert edited.latents == sampled.latents and edited.latents.voken != z.voken
    last = edited.recipe["history"][-1]
    assert (last["changed"], last["resampled"], last["seed"]) == (["bbox"], ["blob", "voken"], 9)
    assert set(last["before"]) >= {"bbox", "voken"} and last["before"]["bbox"] == z.to_json()["bbox"]


def test_resampled_segments_take_those_behind_them_along(pipe, out, z):  # noqa: F811
    edited = pipe.edit(out.recipe, lock="text", resample=["blob"])
    assert select(edited.latents, ("text", "bbox")) == select(z, ("text", "bbox"))
    assert edited.latents.voken != z.voken and "voken is behind blob and resampled with it" in edited.messages
    again = pipe.edit(edited.recipe, resample="voken")  # a chain draws another seed by itself
    assert select(again.latents, SEGMENTS[:3]) == select(edited.latents, SEGMENTS[:3])
    assert again.latents.voken != edited.latents.voken
    follows = pipe.edit(out.recipe, text="a bug", lock=["blob"], follow=True)
    assert select(follows.latents, ("bbox", "blob")) == select(z, ("bbox", "blob"))
    assert follows.messages[0] == (
        "bbox is behind text and may no longer fit; kept, since a later segment is edited or locked"
    )
    whole = pipe.edit(out.recipe, caption="bird", follow=True, seed=3)
    assert whole.latents == pipe("bird", seed=3).latents[0]
    kept = pipe.edit(out.recipe, caption="bird", follow=False)
    assert kept.latents == z and "behind the caption and may no longer fit" in kept.messages[0]


def test_by_default_what_is_behind_an_edit_follows_but_not_another_background(pipe, out, z):  # noqa: F811
    box = (Box("fruit", (100, 100, 400, 400)),)
    edited = pipe.edit(out.recipe, bbox=box)
    assert edited.latents == pipe.edit(out.recipe, bbox=box, follow=True).latents and edited.latents.voken != z.voken
    assert edited.messages[0] == "blob and voken are behind the edit and sampled anew (follow=False keeps them)"
    assert pipe.edit(out.recipe, caption="bird", seed=3).latents == pipe("bird", seed=3).latents[0]
    assert pipe.edit(out.recipe, gamma=1.0).latents == z
    asked = pipe.edit(out.recipe, bbox=box, resample="voken")  # what is named is all that is sampled anew
    assert asked.latents.blob == z.blob and asked.latents.voken != z.voken
    last = pipe.edit(out.recipe, voken=(4, 3, 2, 1))
    assert last.latents == z.replace(voken=(4, 3, 2, 1)) and "behind" not in "".join(last.messages)
    texts = [f"a small {name}, left, upright, on {color}" for name, color in (("pear", "pink"), ("pear", "blue"))]
    pink = pipe.edit(out.recipe, latents=z.replace(text=texts[0]))
    blue = pipe.edit(pink.recipe, text=texts[1])
    assert blue.latents == pink.latents.replace(text=texts[1])
    assert blue.messages[0] == "bbox, blob and voken kept, since text says the same of the objects"
    for changes in ({"text": texts[1].replace("pear", "lemon")}, {"text": texts[1].replace("upright", "tilted left")}):
        assert pipe.edit(pink.recipe, **changes).recipe["history"][-1]["resampled"] == ["bbox", "blob", "voken"]


def test_edits_of_several_images_are_those_of_each(pipe, out, z):  # noqa: F811
    boxes = [(Box("fruit", (100, 100, 400, 400)),), (Box("fruit", (500, 500, 900, 900)),)]
    for follow in (None, False, True):
        found = pipe.edit_latents(
            ["fruit", "fruit", "fruit"],
            [z] * 3,
            [{"bbox": boxes[0]}, {"voken": (4, 3, 2, 1)}, {"bbox": boxes[1]}],
            seed=edit_seed(3, 0),
            indices=[0, 0, 0],
            sample=CONFIG.sample,
            follow=follow,
        )
        for new, change in zip(found, ({"bbox": boxes[0]}, {"voken": (4, 3, 2, 1)}, {"bbox": boxes[1]}), strict=True):
            assert new == pipe.edit(out.recipe, **change, follow=follow).latents


def test_edits_are_chained_and_saved(pipe, out, z, tmp_path):  # noqa: F811
    first = pipe.edit(out.recipe, text="a small fruit", follow=False)
    second = pipe.edit(first.recipe, gamma=1.0)
    third = pipe.edit(second.recipe, text=z.text, gamma=CONFIG.sample.gamma, follow=False)
    np.testing.assert_array_equal(np.asarray(third.after), out.pixels[0, 0])
    assert [edit["changed"] for edit in third.recipe["history"]] == [["text"], [], ["text"]]
    assert [edit["settings"] for edit in third.recipe["history"]] == [{}, {"gamma": 1.0}, {"gamma": 3.0}]
    path = third.save(tmp_path / "edit")
    assert third.save(tmp_path / "edit") == path and load_recipe(path) == third.recipe
    np.testing.assert_array_equal(pipe.draw(path).pixels[0, 0], np.asarray(Image.open(path)))
    assert {p.name for p in path.parent.iterdir()} == {"before.png", "after.png", "difference.png", "strip.png"}
    assert Image.open(path.with_name("strip.png")).width > 3 * 256
    for other in (first, pipe.edit(second.recipe, text="a fruit")):
        with pytest.raises(UserError, match="of another edit; expected a new folder"):
            other.save(tmp_path / "edit")
    assert load_recipe(path) == third.recipe


def test_contradictions_are_told_with_what_may_be_done(pipe, out, z):  # noqa: F811
    start = pipe.edit(
        out.recipe,
        text="a small red apple, left, upright, on pink",
        bbox=[Box("red apple", (0, 300, 400, 700))],
        voken=(4, 3, 2, 1),
    )
    line = "blob contradicts bbox: bbox.0 is 'red apple', blob.0 is 'fruit'"
    assert (
        f"{line}; follow=True resamples blob, follow=False keeps it"
        in pipe.edit(out.recipe, bbox=[Box("red apple", (500, 300, 700, 800))], follow=False).messages
    )
    behind = "blob is behind text and bbox and may no longer fit; kept, since a later segment is edited or locked"
    choice = "; edit blob too, or keep it (it is before voken, so it cannot follow)"
    places = "blob contradicts bbox: bbox.0 and blob.0 of 'red apple' are in different places (IoU 0.09)"
    assert start.messages == [behind, line + choice, places + choice]
    moved = pipe.edit(start.recipe, bbox=[Box("pear", (500, 300, 1000, 800))], follow=False)
    (line,) = [line for line in moved.messages if "'left'" in line]
    assert line.startswith("bbox contradicts text: the text says 'left' of 'red apple', which stands ")
    assert line.endswith("; edit text too, or keep it (it is before bbox, so it cannot follow)")
    assert any("the text says 'red apple', not 'pear'" in line for line in moved.messages)
    assert "blob contradicts bbox: bbox.0 is 'pear', blob.0 is 'fruit'" in "".join(moved.messages)
    again = pipe.edit(moved.recipe, voken=(1, 2, 3, 4))
    assert len(again.messages) > 2 and all(line.endswith(" (as before the edit)") for line in again.messages)
    fewer = pipe.edit(start.recipe, blob=(), lock="bbox")
    assert "blob contradicts bbox: 1 of bbox, 0 of blob" in fewer.messages
    assert not [line for line in start.messages if "contradicts text" in line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resample": "text", "lock": "bbox"}, "text resampled before bbox, which must stay"),
        ({"resample": "text", "voken": (1, 2, 3, 4)}, "text resampled before voken, which must stay"),
        ({"resample": "bbox", "follow": False}, "bbox resampled before blob and voken, which must stay"),
        ({"resample": "text", "lock": "text"}, "text locked and resampled"),
        ({"text": "a bug", "lock": ["text"]}, "text locked and edited"),
        ({"text": "a bug", "resample": SEGMENTS}, "text edited and resampled"),
        ({"lock": "bbx"}, "segment 'bbx'; expected one of text, bbox, blob, voken; did you mean 'bbox'"),
        ({"text": ""}, "empty text"),
        ({"text": "a | b"}, "text with"),
        ({"bbox": [Box("a", (5, 5, 1, 1))]}, "x1 < x2"),
        ({"voken": (1, 2, 3, 10**6)}, "voken 1000000"),
        ({"voken": (1, 2, 3)}, "3 vokens; expected 4 per image"),
        ({"text": "a fruit " * 200 + "a"}, "twice config.latents"),
        ({"latents": Latents(text="a bug"), "text": "a bug"}, "latents and text"),
        ({"gama": 3.0}, "unknown argument 'gama'; expected gamma"),
        ({"txet": "a bug"}, "unknown argument 'txet'; expected text; correct"),
        ({"boxes": []}, "unknown argument 'boxes'; expected bbox; correct"),
        ({"z": 3}, "unknown argument 'z'; expected one of text, bbox, blob, voken, sampler, num_steps"),
        ({"num_steps": 10**6}, "sampling steps"),
        ({"seed": -1}, "seed = -1"),
        ({"caption": "a fruit " * 40}, "tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_drawn(pipe, out, monkeypatch, arguments, message):  # noqa: F811
    monkeypatch.setattr(KaleidoPipeline, "draw", lambda *_: pytest.fail("drawn"))
    with pytest.raises(UserError, match=message) as error:
        pipe.edit(out.recipe, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "a bug", "follow": "no"}, "follow = 'no'; expected True, False or None"),
        ({"text": "a bug", "follow": 0}, "follow = 0; expected True, False or None"),
        ({"lock": 3}, "lock = 3; expected a segment, or a list of segments"),
        ({"resample": None}, "resample = None; expected a segment, or a list of segments"),
        ({"resample": [1]}, "resample = .1.; expected a segment, or a list of segments"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_an_argument_of_another_type_is_refused_in_one_line(pipe, out, monkeypatch, arguments, message):  # noqa: F811
    monkeypatch.setattr(KaleidoPipeline, "draw", lambda *_: pytest.fail("drawn"))
    with pytest.raises(UserError, match=message) as error:
        pipe.edit(out.recipe, **arguments)
    assert "\n" not in str(error.value)


def test_latents_that_do_not_parse_are_not_edited(pipe):  # noqa: F811
    with pytest.raises(UserError, match="latents that do not parse"):
        pipe.edit(pipe("fruit", seed=0, grammar=False).recipe, text="a fruit")
