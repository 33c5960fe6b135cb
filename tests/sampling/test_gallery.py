"""What the grid shows."""

import pytest

from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.errors import UserError
from kaleido_jax.sampling.gallery import captions_to_sample
from tests.tiny import tiny_config


def test_the_grid_has_the_captions_asked_for_or_the_class_names(tmp_path):
    assert captions_to_sample(tiny_config(sample__captions=()), tmp_path) == list(KINDS)
    assert captions_to_sample(tiny_config(sample__captions=("a dog",)), tmp_path) == ["a dog"]
    with pytest.raises(UserError, match="sample.captions"):
        captions_to_sample(tiny_config(sample__captions=(), data__source="records"), tmp_path)
