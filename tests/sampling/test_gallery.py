"""What the grid shows."""

import pytest

from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.errors import UserError
from kaleido_jax.sampling.gallery import _are_there, captions_to_sample
from tests.tiny import tiny_config


def test_the_grid_has_the_captions_asked_for_or_the_class_names(tmp_path):
    assert captions_to_sample(tiny_config(sample__captions=()), tmp_path) == list(KINDS)
    assert captions_to_sample(tiny_config(sample__captions=("a dog",)), tmp_path) == ["a dog"]
    with pytest.raises(UserError, match="sample.captions"):
        captions_to_sample(tiny_config(sample__captions=(), data__source="records"), tmp_path)


def test_samples_with_a_recipe_that_cannot_be_read_are_drawn_again(tmp_path):
    assert not _are_there(tmp_path, {})
    (tmp_path / "recipe.json").write_text('{"model": {}, "rows": []}')  # of a version without a format
    (tmp_path / "00-fruit-0.png").touch()
    assert not _are_there(tmp_path, {}) and not (tmp_path / "00-fruit-0.png").exists()
