import hashlib
import json
import pickle
import string
from pathlib import Path

import pytest

import kaleido_jax
from kaleido_jax.errors import UserError
from kaleido_jax.latents.tokenizer import SHIPPED, Tokenizer, load_tokenizer
from tests.t5_files import FOLDER

MODEL, ENCODINGS = FOLDER / "vocab" / "spiece.model", FOLDER / "vocab" / "encodings.json"
GOLDEN = json.loads(ENCODINGS.read_text()) if ENCODINGS.exists() else {"cases": []}
PACKAGE = Path(kaleido_jax.__file__).parent


@pytest.fixture(scope="module")
def t5():
    return load_tokenizer("t5", 8192)


@pytest.fixture(scope="module")
def golden_t5():
    """The vocabulary that the reference encodings were made with: the folder's own, or the shipped one."""
    return Tokenizer(MODEL) if MODEL.exists() else load_tokenizer("t5", 8192)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["text"][:20])
def test_t5_golden_encodings_equal(golden_t5, case):
    assert golden_t5.encode(case["text"]) == case["ids"]
    assert golden_t5.decode(case["ids"]) == case["decoded"]
    for token, piece in zip(case["ids"], case.get("pieces", ()), strict="pieces" in case):
        assert token == golden_t5.unk_id or golden_t5.piece(token) == piece  # the reference shows what was unknown


@pytest.mark.skipif(not GOLDEN["cases"], reason=f"{ENCODINGS} is not there")
def test_t5_golden_vocabulary_has_the_reference_sizes(golden_t5):
    model = (MODEL if MODEL.exists() else PACKAGE / SHIPPED["t5"][0]).read_bytes()
    assert (len(model), hashlib.sha256(model).hexdigest()) == (GOLDEN["size_bytes"], GOLDEN["sha256"])
    assert (golden_t5.pad_id, golden_t5.eos_id, golden_t5.unk_id) == (GOLDEN["pad"], GOLDEN["eos"], GOLDEN["unk"])
    assert (golden_t5.num_pieces, golden_t5.extra_ids) == (GOLDEN["piece_size"], GOLDEN["extra_ids"])
    assert golden_t5.base_vocab_size == GOLDEN["model_vocab_rows"]
    assert golden_t5.decode([GOLDEN["extra_id_0"]]) == "<extra_id_0>"


def test_t5_rows_are_the_papers(t5):
    assert (t5.num_pieces, t5.num_text_ids, t5.base_vocab_size, t5.vocab_size) == (32000, 32100, 32128, 40320)
    assert t5.vocab_size == 315 * 128


def test_vokens_come_after_the_pieces_and_show_by_name(t5):
    assert t5.voken_id(17) == 32145 and t5.voken_index(32145) == 17
    assert t5.voken_index(32127) is None and t5.voken_index(40320) is None
    assert t5.decode([t5.voken_id(17), t5.hash_id, t5.voken_id(403), 1, 9]) == "I17#I403"
    with pytest.raises(UserError, match="voken 8192"):
        t5.voken_id(8192)


def test_control_strings_in_text_stay_text(t5):
    for text in ("</s>", "<pad>", "<extra_id_0>", "I17"):
        ids = t5.encode(text)
        assert not {t5.pad_id, t5.eos_id} & set(ids) and max(ids) < t5.num_pieces


def test_emoji_vocabulary_is_small_and_knows_plain_english():
    emoji = load_tokenizer("emoji", 64)
    assert emoji.base_vocab_size == 384 and emoji.vocab_size == 448
    assert emoji.unk_id not in emoji.encode(string.ascii_letters + string.digits)
    sentence = "a large red apple, upper left, tilted left and a small bird, lower right, upright, on blue"
    assert emoji.decode(emoji.encode(sentence)) == sentence
    assert len(emoji.encode(sentence)) == len(sentence.split()) + sentence.count(",")  # a token a word and a comma
    assert emoji.decode(emoji.encode("Quite another thing")) == "Quite another thing"
    box = [emoji.piece(i) for i in emoji.encode("red apple (0, 370, 1000, 625)")]
    # A multiple of ten is a token; other numbers are spelled.
    assert box == ["▁red", "▁apple", "▁(", "0", ",▁", "370", ",▁", "1000", ",▁", "6", "2", "5", ")"]


def test_fingerprint_tells_vocabularies_apart(t5):
    assert t5.fingerprint == load_tokenizer("t5", 8192).fingerprint == pickle.loads(pickle.dumps(t5)).fingerprint
    others = {load_tokenizer("t5", 64).fingerprint, load_tokenizer("emoji", 64).fingerprint}
    assert len({t5.fingerprint, *others}) == 3


def test_tokenizers_of_one_vocabulary_are_equal(t5):
    same = load_tokenizer("t5", 8192)
    assert t5 == same and hash(t5) == hash(same) and t5 != load_tokenizer("t5", 64)


def test_half_a_surrogate_pair_is_refused_in_one_line(t5):
    with pytest.raises(UserError, match=r"text with '\\ud83d'; expected characters of UTF-8"):
        t5.encode("x \ud83d")
    assert t5.encode("x \U0001f600")


@pytest.mark.parametrize(
    "content",
    [
        *(b"<!DOCTYPE html><html>Sign in</html>", b"", b"version https://git-lfs.github.com/spec/v1\n"),
        b'{\n  "version": "1.0",\n  "model": {"type": "Unigram"}\n}',  # tokenizer.json
    ],
)
def test_file_that_is_no_model_is_reported_in_one_line(tmp_path, content):
    path = tmp_path / "spiece.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is not a model file; expected a sentencepiece model") as error:
        Tokenizer(path)
    assert "\n" not in str(error.value) and ("git lfs pull" in str(error.value)) == (b"git-lfs" in content)
    assert ("name the spiece.model beside it" in str(error.value)) == content.startswith(b"{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(str(tmp_path / "absent"), 8)
