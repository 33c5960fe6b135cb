"""Latents from an untrained model: the grammar, locked segments and settings a sample, through the public API."""

import dataclasses

import flax.linen as nn
import jax
import pytest

from kaleido_jax.config.codec import open_codec
from kaleido_jax.errors import UserError
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents, select
from kaleido_jax.models.kaleido import build_model, init_params
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from tests.tiny import single_net_config

CONFIG = single_net_config(sample__temperature=1.0, sample__top_p=1.0)
CAPTIONS = ["fruit", "bird", "bug", "fruit"]
GRAMMAR = dataclasses.replace(CONFIG.sample, grammar=True)
TEXT = Latents(text="a small fruit")
BOX = Latents(text="a fruit", bbox=(Box(phrase="fruit", box=(100, 100, 400, 400)),))


@pytest.fixture(scope="module")
def pipeline():
    codec = open_codec(CONFIG)
    params = nn.meta.unbox(init_params(build_model(CONFIG, codec.tokenizer.base_vocab_size), jax.random.key(0)))
    return KaleidoPipeline(CONFIG, params, codec, chunk=4)  # one compiled function for many tests


def test_an_untrained_model_parses_always_with_the_grammar_and_never_without(pipeline):
    rows = pipeline.sample_latents(CAPTIONS * 6, seed=1, sample=GRAMMAR)
    assert all(row.latents is not None for row in rows), [row.problem for row in rows if row.problem]
    assert len({row.tokens for row in rows}) == len(rows)
    assert not any(row.latents for row in pipeline.sample_latents(CAPTIONS, seed=1))


def test_locked_segments_come_back_and_the_others_differ(pipeline):
    locked = [TEXT, None, BOX, pipeline.codec.tokenizer.encode("a small")]
    rows = pipeline.sample_latents(CAPTIONS, seed=2, sample=GRAMMAR, prefix=locked)
    assert select(rows[0].latents, ("text",)) == TEXT
    assert select(rows[2].latents, ("text", "bbox")) == BOX
    assert rows[3].latents.text.startswith("a small")
    again = pipeline.sample_latents(CAPTIONS, seed=3, sample=GRAMMAR, prefix=locked)
    assert all(a.tokens != b.tokens for a, b in zip(rows, again, strict=True))
    backwards = pipeline.sample_latents(
        CAPTIONS[::-1], seed=2, indices=[3, 2, 1, 0], sample=GRAMMAR, prefix=locked[::-1]
    )
    assert backwards == rows[::-1]
    free = pipeline.sample_latents(CAPTIONS, seed=2, sample=GRAMMAR)
    assert free[1].tokens == rows[1].tokens


def test_a_prefix_is_kept_without_the_grammar_too(pipeline):
    rows = pipeline.sample_latents(["fruit"], seed=2, prefix=[TEXT])
    ids = pipeline.codec.tokenizer.encode("a small fruit |")
    assert rows[0].tokens[: len(ids)] == tuple(ids)


def test_settings_of_a_sample_hold_for_it_alone(pipeline):
    settings = [
        dataclasses.replace(GRAMMAR, temperature=t, top_k=k) for t, k in ((0.0, 0), (1.0, 3), (1.0, 0), (2.0, 9))
    ]
    rows = pipeline.sample_latents(CAPTIONS, seed=4, sample=settings)
    assert rows[2] == pipeline.sample_latents(CAPTIONS, seed=4, sample=GRAMMAR)[2]
    other = pipeline.sample_latents(CAPTIONS, seed=5, sample=settings)
    assert [a == b for a, b in zip(rows, other, strict=True)] == [True, False, False, False]  # the first is greedy


def test_prefixes_that_cannot_be_are_refused(pipeline):
    draw = lambda prefix, sample=GRAMMAR: pipeline.sample_latents(["fruit"], seed=0, sample=sample, prefix=[prefix])  # noqa: E731
    with pytest.raises(UserError, match="a prefix of bbox; expected the first of text, bbox"):
        draw(Latents(bbox=()))
    with pytest.raises(UserError, match="as token 0"):
        draw(pipeline.codec.tokenizer.encode("|"))
    with pytest.raises(UserError, match="which needs"):
        draw(Latents(text="a fruit " * 28 + "end"))
    with pytest.raises(UserError, match="ids 1.."):
        draw([0], CONFIG.sample)
    with pytest.raises(UserError, match="with and without grammar"):
        pipeline.sample_latents(["fruit", "fruit"], seed=0, sample=[GRAMMAR, CONFIG.sample])
