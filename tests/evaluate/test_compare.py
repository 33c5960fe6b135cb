import pytest
from PIL import Image

from kaleido_jax.errors import UserError
from kaleido_jax.evaluate import compare as comparing
from kaleido_jax.evaluate.compare import GAMMAS, compare, picture
from tests.evaluate.scenes import PretendedModel


def test_a_picture_needs_few_samples_and_counts_their_modes(tmp_path, monkeypatch):
    models, drawn = {"baseline": PretendedModel(collapsed=True), "Kaleido": PretendedModel()}, []
    monkeypatch.setattr(comparing, "picture", lambda *args: drawn.append(args) or picture(*args))
    path = compare(models, tmp_path, caption="bird")
    assert [len(model.sampled) for model in models.values()] == [8 * len(GAMMAS)] * 2
    with Image.open(path) as image:
        assert image.width == 1080
    [(caption, names, rows, notes)] = drawn
    assert (caption, names, list(rows)) == ("bird", ["baseline", "Kaleido"], [1.0, 4.0, 8.0])
    assert notes[4.0][0] == "1 of 12 modes in 8 images" and int(notes[4.0][1].split()[0]) > 1


def test_a_gamma_that_is_given_twice_is_drawn_once(tmp_path):
    model = PretendedModel()
    compare({"a": model}, tmp_path, gammas=(4.0, 1.0, 4.0))
    assert len(model.sampled) == 16


def test_bad_arguments_are_refused_before_anything_is_sampled(tmp_path):
    model = PretendedModel()
    with pytest.raises(UserError, match="caption 'dog'"):
        compare({"a": model}, tmp_path, caption="dog")
    with pytest.raises(UserError, match="num_stepz"):
        compare({"a": model}, tmp_path, num_stepz=3)
    assert not model.sampled
