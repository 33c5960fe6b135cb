"""What the grid shows."""

import pytest

from kaleido_jax.data.sources.base import FashionSource
from kaleido_jax.errors import UserError
from kaleido_jax.sampling.gallery import captions_to_sample
from tests.tiny import tiny_config


def test_the_grid_has_the_captions_asked_for_or_the_shipped_class_names():
    assert captions_to_sample(tiny_config(sample__captions=())) == list(FashionSource.class_names)
    assert captions_to_sample(tiny_config(sample__captions=("a dog",))) == ["a dog"]
    with pytest.raises(UserError, match="sample.captions"):
        captions_to_sample(tiny_config(sample__captions=(), data__source="records"))
