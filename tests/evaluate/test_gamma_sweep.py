import json

import pytest
from PIL import Image

from kaleido_jax.errors import UserError
from kaleido_jax.evaluate import gamma_sweep
from kaleido_jax.evaluate.gamma_sweep import SHOWN_GAMMAS, picture, show, sweep
from tests.evaluate.scenes import PretendedModel


def test_a_sweep_shows_which_model_keeps_its_modes_and_continues_where_it_was(tmp_path):
    models = {"baseline": PretendedModel(collapsed=True), "Kaleido": PretendedModel()}
    result = sweep(models, tmp_path, gammas=(1.0, 4.0), num_samples=100, caption="bird")
    assert [len(model.sampled) for model in models.values()] == [200, 200]
    reports = result["models"]
    for gamma in ("1", "4"):
        baseline, kaleido = reports["baseline"][gamma], reports["Kaleido"][gamma]
        assert baseline["effective_number"] == pytest.approx(1) and kaleido["effective_number"] > 4
        assert baseline["total_variation"] > kaleido["total_variation"]
        assert kaleido["sprite_as_said"] > 0.9 and "sprite_as_said" not in baseline
    assert json.loads((tmp_path / "sweep.json").read_text()) == result
    rows = (tmp_path / "sweep.md").read_text().splitlines()
    assert len({row.count("|") for row in rows[:6]}) == 1 and rows[2].startswith("| baseline | 1 | 1.00 |")
    assert (tmp_path / "sweep.png").is_file() and not list(tmp_path.glob("*.parts"))
    more = sweep(models, tmp_path, gammas=(1.0, 4.0, 8.0), num_samples=100, caption="fruit")
    assert [len(model.sampled) for model in models.values()] == [300, 300]
    assert more["models"]["Kaleido"]["4"] == reports["Kaleido"]["4"]


def test_a_picture_alone_needs_few_samples_and_counts_their_modes(tmp_path, monkeypatch):
    models, drawn = {"baseline": PretendedModel(collapsed=True), "Kaleido": PretendedModel()}, []
    monkeypatch.setattr(gamma_sweep, "picture", lambda *args: drawn.append(args) or picture(*args))
    path = show(models, tmp_path, caption="bird")
    assert [len(model.sampled) for model in models.values()] == [8 * len(SHOWN_GAMMAS)] * 2
    with Image.open(path) as image:
        assert image.width == 1080
    [(caption, names, rows, notes)] = drawn
    assert (caption, names, list(rows)) == ("bird", ["baseline", "Kaleido"], [1.0, 4.0, 8.0])
    assert notes[4.0][0] == "1 of 12 modes in 8 images" and int(notes[4.0][1].split()[0]) > 1


def test_bad_arguments_are_refused_before_anything_is_sampled(tmp_path):
    model = PretendedModel()
    with pytest.raises(UserError, match="caption 'dog'"):
        sweep({"a": model}, tmp_path, caption="dog")
    with pytest.raises(UserError, match="num_stepz"):
        sweep({"a": model}, tmp_path, num_stepz=3)
    assert not model.sampled
