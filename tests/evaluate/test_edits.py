"""The protocol `edits` on models that draw exactly what z says, or what it said before, and on random weights."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from kaleido_jax.config.schema import Eval
from kaleido_jax.data.scene_words import placed_in, said_by
from kaleido_jax.data.sources.emoji import SPRITE_NAMES, PlacedSprite, Scene, render
from kaleido_jax.errors import UserError
from kaleido_jax.evaluate import edits
from kaleido_jax.latents.geometry import box_iou
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from kaleido_jax.sampling.tokens import SampledLatents
from tests.evaluate.scenes import SIZE, PretendedModel, some_real_samples

REAL = [z for z in some_real_samples().latents if z][:40]
KEYS = {f"{kind}_{name}" for kind in edits.EDITS for name in ("box_iou_median", "box_right", "sprite_right")}


class ExactModel(PretendedModel):
    """Draws the sprite of the text in the first box; `stubborn` draws the z of the sample index, whatever is edited."""

    def __init__(self, stubborn=False):
        super().__init__()
        self.stubborn = stubborn

    def sample_latents(self, captions, *, seed, indices=None, sample=None, prefix=None):
        found = []
        for i, row in enumerate(super().sample_latents(captions, seed=seed, indices=indices, sample=sample)):
            z = row.latents
            if prefix:
                kept = {name: getattr(prefix[i], name) for name in ("text", "bbox") if getattr(prefix[i], name)}
                z = z.replace(**{"bbox": (Box(said_by(kept["text"]).name, z.bbox[0].box),)} | kept)
            found.append(SampledLatents(tokens=tuple(self.codec.encode(z)), latents=z))
        return found

    def sample_images(self, captions, latents, *, seed, indices=None, sample=None):
        self.sampled += list(indices)
        z = [self.codec.decode(ids) for ids in latents]
        if self.stubborn:
            z = [row.latents for row in self.sample_latents(captions, seed=seed, indices=indices)]
        return np.stack([(self._drawn(one).astype(np.float32) - 127) / 128 for one in z])

    @staticmethod
    def _drawn(z):
        said, sprite = said_by(z.text), SPRITE_NAMES.index(said_by(z.text).name)
        x, y, side = placed_in(z.bbox[0].box, sprite, 0)
        placed = PlacedSprite(sprite=sprite, x=x, y=y, side=side, tilt=0)
        return render(Scene(sprites=(placed,), background=said.background), SIZE)[0]


def measured(model, folder, monkeypatch, **changes):
    monkeypatch.setattr(edits.KaleidoPipeline, "from_pretrained", lambda workdir, config: model)
    values = {"num_samples": 40, "num_steps": 4, "protocol": "edits"} | changes
    config = dataclasses.replace(model.config, eval=Eval(**values))
    model.sampled = []
    return edits.measure(config, folder)


def test_edits_stay_in_the_picture_and_are_those_of_seed_and_index():
    for i, z in enumerate(REAL):
        found, (x1, y1, x2, y2) = edits.scene_edits(z, 3, i), z.bbox[0].box
        assert found == edits.scene_edits(z, 3, i) and list(found) == list(edits.EDITS)
        move, resize = found["move"].box, found["resize"].box
        assert (move[2] - move[0], move[3] - move[1]) == (x2 - x1, y2 - y1) and move != z.bbox[0].box
        if min(x2 - x1, y2 - y1) < 500:
            assert np.hypot(move[0] - x1, move[1] - y1) >= 200
        assert min(move + resize) >= 0 and max(move + resize) <= 1000
        area = np.sqrt((resize[2] - resize[0]) * (resize[3] - resize[1]) / ((x2 - x1) * (y2 - y1)))
        assert 0.4 < area < 2.1 and abs(np.log(area)) > 0.99 * np.log(1.2) or max(resize) == 1000 or min(resize) == 0
        word, color = (said_by(found[kind].segments["text"]) for kind in ("word", "color"))
        said = said_by(z.text)
        assert dataclasses.replace(word, name=said.name) == said != word
        assert dataclasses.replace(color, background=said.background) == said != color
        assert SPRITE_NAMES.index(word.name) // 12 == SPRITE_NAMES.index(said.name) // 12
    different = [edits.scene_edits(REAL[0], seed, i)["move"].box for seed in (0, 1) for i in (0, 1)]
    assert len(set(different)) == 4


def test_only_a_z_of_one_sprite_that_agrees_with_itself_is_edited():
    z = REAL[0]
    for other in (
        None,
        z.replace(bbox=()),
        z.replace(bbox=z.bbox * 2),
        z.replace(text="a fruit"),
        Latents(text=z.text),
    ):
        assert edits.scene_edits(other, 0, 0) == {}
    assert edits.scene_edits(z.replace(bbox=(Box("boot", z.bbox[0].box),)), 0, 0) == {}


def test_a_model_that_draws_its_z_follows_all_edits_and_changes_nothing_elsewhere(tmp_path, monkeypatch):
    report = measured(ExactModel(), tmp_path, monkeypatch)
    assert report["edited"] == 1 and report["before_box_right"] > 0.9 and set(report) >= KEYS
    for one in (report, report["kept"], report["follow"]):
        assert one["move_box_right"] > 0.9 and one["resize_box_iou_median"] > 0.85
        assert one["word_sprite_right"] > 0.9 and one["color_background_right"] == 1
        assert one["move_outside_of_fresh_seed"] < 0.03 and "color_outside_of_fresh_seed" not in one
        assert one["move_outside_of_fresh_noise"] is None  # its images do not depend on noise
    assert set(report["kept"]) == set(report["follow"]) < set(report)


def test_a_model_that_does_not_look_at_its_z_follows_none(tmp_path, monkeypatch):
    report = measured(ExactModel(stubborn=True), tmp_path, monkeypatch)
    assert report["before_box_right"] > 0.9 and report["before_sprite_right"] > 0.9
    assert report["move_box_right"] < 0.2 and report["word_sprite_right"] < 0.1
    assert report["color_background_right"] == 0 and report["color_sprite_right"] > 0.9
    assert report["move_outside_of_fresh_seed"] == 0


def test_a_stopped_run_draws_only_what_is_missing_and_a_report_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(edits, "PART", 20)
    whole = measured(ExactModel(), tmp_path / "whole", monkeypatch)
    model = ExactModel()
    with monkeypatch.context() as patch:
        patch.setattr(edits, "report_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measured(model, tmp_path / "stopped", monkeypatch)
    assert set(model.sampled) == set(range(80))  # before and edits, then another seed's
    stored = next((tmp_path / "stopped").rglob("000020.npz"))
    stored.unlink()
    assert measured(model, tmp_path / "stopped", monkeypatch) == whole and min(model.sampled) == 20
    assert json.loads((tmp_path / "stopped" / "eval" / "edits.json").read_text()) == whole
    assert [path.name for path in (tmp_path / "stopped" / "eval").iterdir()] == ["edits.json"]
    assert measured(model, tmp_path / "stopped", monkeypatch) == whole and not model.sampled
    assert measured(model, tmp_path / "stopped", monkeypatch, num_samples=20)["of"] != whole["of"] and model.sampled


def test_nothing_to_edit_is_no_number():
    size = (0, SIZE, SIZE, 3)
    part = {name: np.zeros(size, np.uint8) for name in ("before", "fresh_seed", "fresh_noise")}
    part |= {"after": np.zeros((0, 4, 3, *size[1:]), np.uint8), "boxes": np.zeros((0, 4, 3, 4), np.int64)}
    part |= {"rows": np.zeros(0, np.int64), "tokens": np.zeros((0, 8), np.int32)}
    report = edits.report_of([part], [], 4, 0, edits.open_reader(SIZE, Path()))
    assert report.pop("edited") == 0
    assert {value for value in report.values() if not isinstance(value, dict)} == {None}


def test_a_model_without_boxes_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="edits of a model without text and bbox; expected one with both"):
        edits.measure(PretendedModel(collapsed=True).config, tmp_path)


@pytest.mark.slow
def test_it_draws_what_edit_draws(tmp_path):
    pipe = edits.KaleidoPipeline.from_pretrained("emoji-tiny")
    out = pipe(["fruit", "vegetable"], seed=0, num_steps=3, gamma=1.0)
    sample = pipe.override({"num_steps": 3, "gamma": 1.0, "grammar": True})
    arrays = edits.draw(pipe, sample, [0, 1], 2, 0)
    for row in range(2):
        np.testing.assert_allclose(arrays["before"][row].astype(int), out.pixels[row, 0], atol=1)
        wanted = edits.scene_edits(out.latents[row], 0, row)
        for i, kind in enumerate(edits.EDITS):
            for j, follow in enumerate((None, False, True)):
                edited = pipe.edit(out.recipe_of(row, 0), **wanted[kind].segments, follow=follow)
                np.testing.assert_allclose(arrays["after"][row, i, j].astype(int), np.asarray(edited.after), atol=1)
                assert box_iou(arrays["boxes"][row, i, j], edited.latents.bbox[0].box) == 1
