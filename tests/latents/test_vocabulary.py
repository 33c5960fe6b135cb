"""Vocabularies trained on captions: they write every caption back, in few tokens, and what the grammar needs."""

import pytest

from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.vocabulary import CHARACTERS, train_vocabulary

CAPTIONS = ("Käfer auf Blüte", "grand piano", "schöner Tag – ½ Liter …", "一只猫")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    characters = CHARACTERS + "".join(sorted({c for c in "".join(CAPTIONS) if not c.isspace()} - {*CHARACTERS}))
    settings = {"max_pieces": 400, "characters": characters, "normalization": "identity"}
    words = {"Käfer": 0.1, "piano": 0.1}
    path.write_bytes(train_vocabulary(CAPTIONS * 20, words=words, **settings))
    assert path.read_bytes() == train_vocabulary(CAPTIONS * 20, words=words, **settings)
    return Tokenizer(path, extra_ids=0, codebook_size=16)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_every_character_of_the_captions_comes_back(caption, own):
    ids = own.encode(caption)
    assert own.unk_id not in ids and own.decode(ids) == caption


def test_words_that_are_named_are_one_piece_each(own):
    assert len(own.encode("Käfer")) == len(own.encode("piano")) == 1


def test_latents_are_written_and_read_in_it(own):
    codec = Codec(tokenizer=own, segments=("text", "bbox", "voken"), vokens_per_image=2, coordinate_step=10)
    z = Latents(text="Käfer auf Blüte", bbox=(Box(phrase="Käfer", box=(0, 10, 500, 1000)),), voken=(3, 15))
    ids = codec.encode(z)
    assert codec.decode(ids) == z
    assert len(codec.separator) == 1
    numbers = [i for i in ids if own.piece(i).strip("▁,()").isdigit()]
    assert len(numbers) == 4  # one token each
    assert codec.constraint is not None  # it has the pieces that constrained sampling needs
