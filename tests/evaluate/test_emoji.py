import json
from pathlib import Path

import numpy as np
import pytest

from kaleido_jax.config.schema import Eval
from kaleido_jax.data.sources.emoji import KINDS, SHARES
from kaleido_jax.evaluate import emoji, modes
from kaleido_jax.evaluate.scene_reading import Seen
from kaleido_jax.evaluate.sprite_reader import open_reader
from tests.evaluate.scenes import SIZE, PretendedModel, some_real_samples


def seen_of(sprites):
    common = {"size": "small", "place": "top", "tilt": 0.0, "box": (0.0, 0.0, 500.0, 500.0)}
    return [Seen(sprite=int(s), background=("white", "black")[i % 2], **common) for i, s in enumerate(sprites)]


def test_exact_samples_have_the_true_modes_within_the_sampling_error():
    kind = 3
    sprites = 12 * kind + np.random.default_rng(0).choice(12, 200, p=SHARES[kind])
    found = emoji.modes_of_caption(seen_of(sprites), kind)
    assert found["samples"] == 200 and found["kind_right"] == 1 and found["modes_found"] == 12
    assert found["effective_number"] == pytest.approx(found["effective_number_exact"], abs=0.6)
    assert found["effective_number_exact"] < found["effective_number_true"] < found["effective_number_exact"] + 0.5
    assert found["total_variation"] < 2 * found["total_variation_exact"] < 0.2
    assert found["entropy_background"] == pytest.approx(np.log(2)) and found["entropy_place"] == 0


def test_one_mode_is_one_and_its_distance_is_the_share_of_the_others():
    found = emoji.modes_of_caption(seen_of([12 * 4 + 7] * 50), 4)
    assert found["effective_number"] == found["modes_found"] == 1
    assert found["total_variation"] == pytest.approx(1 - SHARES[4, 7])


def test_other_kinds_count_against_the_kind_and_not_as_modes():
    found = emoji.modes_of_caption(seen_of([24, 25, 0, 119]), 2)
    assert found["kind_right"] == 0.5 and found["effective_number"] == pytest.approx(2)
    none = emoji.modes_of_caption(seen_of([0, 1]), 9)
    assert none["kind_right"] == none["modes_found"] == 0 and none["effective_number"] is None


def test_real_scenes_reach_the_ceiling_and_a_collapsed_model_one_mode():
    real, reader = some_real_samples(), open_reader(SIZE, Path())
    report = emoji.report_of(real, reader)
    assert report["kind_right"] > 0.95 and "latents_parsed" not in report
    assert report["effective_number"] == pytest.approx(report["effective_number_exact"], abs=0.8)
    assert report["effective_number_true"] == pytest.approx(np.mean([modes.effective_number(s) for s in SHARES]))
    assert report["modes_found"] == np.mean([one["modes_found"] for one in report["captions"].values()])
    same = [int(np.flatnonzero(real.kinds == kind)[0]) for kind in real.kinds]
    collapsed = emoji.report_of(emoji.Samples(kinds=real.kinds, pixels=real.pixels[same], z=[]), reader)
    assert collapsed["effective_number"] == pytest.approx(1) and "sprite_as_said" not in collapsed
    assert list(collapsed["captions"]) == list(KINDS)


def test_a_stopped_run_draws_only_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "PART", 20)
    whole, stopped = PretendedModel(), PretendedModel()
    sample = whole.override({})
    expected = emoji.draw(whole, sample, 50, 0, tmp_path / "whole")
    assert whole.sampled == list(range(50)) and len(expected.z) == 50
    emoji.draw(stopped, sample, 40, 0, tmp_path / "stopped")
    found = emoji.draw(stopped, sample, 50, 0, tmp_path / "stopped")
    assert stopped.sampled == list(range(50))
    assert np.array_equal(found.pixels, expected.pixels) and found.z == expected.z
    assert all(row.latents is not None for row in found.z)
    baseline = emoji.draw(PretendedModel(collapsed=True), sample, 20, 0, tmp_path / "baseline")
    assert baseline.z == [] and baseline.pixels.shape == (20, SIZE, SIZE, 3)


def test_a_report_is_measured_again_only_if_its_stamp_differs(tmp_path, monkeypatch):
    model = PretendedModel()
    monkeypatch.setattr(emoji.KaleidoPipeline, "from_pretrained", lambda workdir, config: model)

    def measured(**changes):
        object.__setattr__(
            model.config, "eval", Eval(**{"num_samples": 40, "num_steps": 4, "real_scenes": 20} | changes)
        )
        model.sampled = []
        return emoji.measure(model.config, tmp_path), len(model.sampled)

    report, drawn = measured()
    assert drawn == 40 and report["latents_parsed"] == 1 and report["reader"]["accuracy"] > 0.97
    assert report["real"]["kind_right"] > 0.9 and set(report["captions"]) == set(KINDS)
    assert json.loads((tmp_path / "eval" / "emoji.json").read_text()) == report
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["emoji.json"]
    assert measured() == (report, 0)
    for change in ({"gamma": 3.0}, {"num_samples": 30}):
        assert measured(**change)[1] > 0
