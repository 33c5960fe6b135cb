"""Vocabularies trained on captions: they write every caption back, in few tokens, and what the grammar needs."""

import pytest

from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.tokenizer import Tokenizer, load_tokenizer
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import clean_phrase, clean_text
from kaleido_jax.latents.vocabulary import CHARACTERS, train_vocabulary, vocabulary_of

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


def of(sentences, folder):
    (folder / "spiece.model").write_bytes(vocabulary_of(sentences))
    return Tokenizer(folder / "spiece.model", extra_ids=0, codebook_size=16)


def test_the_character_that_sentencepiece_reserves_is_unknown_and_costs_nothing_else(tmp_path):
    own = of(["a ▅ Käfer"] * 5, tmp_path)
    assert own.encode("a ▅ Käfer").count(own.unk_id) == 1 and own.unk_id not in own.encode("a Käfer")
    codec = Codec(tokenizer=own, segments=("text",))
    assert codec.fit(Latents(text="a ▅ Käfer")).text == "a Käfer"


@pytest.mark.parametrize("sentence", ["word and other things " * 300, "一只猫在树上" * 800, "x" * 9_000])
def test_sentences_that_are_longer_than_sentencepiece_takes_are_learned_from_too(sentence, tmp_path):
    own = of([sentence] * 3, tmp_path)
    assert own.unk_id not in own.encode(sentence) and len(own.encode(sentence)) < len(sentence) / 2


@pytest.mark.parametrize("sentences", [[], ["", " "], ["▅"], ["1"]])
def test_of_no_words_the_vocabulary_is_that_of_the_characters(sentences, tmp_path):
    own = of(sentences, tmp_path)
    text = "a red dog (10, 20, 30, 40)"
    assert own.decode(own.encode(text)) == text


JOINED = ("او می\u200cخواند", "क्\u200dष dog", "👩\u200d🚀 in space")


def test_joiners_are_written_where_the_captions_have_them(tmp_path):
    codec = Codec(tokenizer=of(JOINED, tmp_path), segments=("text", "bbox"))
    for words in JOINED:
        z = Latents(text=clean_text(words), bbox=(Box(phrase=clean_phrase(f"({words}\u200d)"), box=(0, 0, 1, 1)),))
        assert z.text == z.bbox[0].phrase == words
        assert codec.decode(codec.encode(z)) == codec.fit(z) == z
    pieces = {codec.tokenizer.piece(i) for i in range(codec.tokenizer.num_pieces)}
    assert {"\u200c", "\u200d"} <= pieces and codec.constraint is not None


@pytest.mark.parametrize("name", ["t5", "emoji"])
def test_what_a_vocabulary_lacks_of_joiners_and_hidden_characters_is_no_space(name):
    codec = Codec(tokenizer=load_tokenizer(name, 64), segments=("text",))
    text = clean_text("a soft\u200d\u200cly s\xadhaded \u200b dog\ufeff")
    assert text == "a soft\u200d\u200cly shaded dog"
    assert codec.fit(Latents(text=text)).text == "a softly shaded dog"
