import json
import pickle
import string
from pathlib import Path

import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.latents.tokenizer import Tokenizer, load_tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "t5_encodings.json").read_text())


@pytest.fixture(scope="module")
def t5():
    return load_tokenizer("t5", 8192)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["text"][:20])
def test_t5_encodes_and_decodes_as_the_reference(t5, case):
    assert t5.encode(case["text"]) == case["ids"]
    assert t5.decode(case["ids"]) == case["decoded"]


def test_t5_rows_are_the_papers(t5):
    assert (t5.pad_id, t5.eos_id, t5.unk_id) == (GOLDEN["pad"], GOLDEN["eos"], GOLDEN["unk"])
    assert (t5.num_pieces, t5.vocab_size, t5.base_rows, t5.rows) == (32000, 32100, 32128, 40320)
    assert t5.decode([GOLDEN["extra_id_0"]]) == "<extra_id_0>"
    assert t5.rows == 315 * 128


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


def test_fashion_vocabulary_is_small_and_knows_plain_english():
    fashion = load_tokenizer("fashion", 64)
    assert fashion.base_rows == 1152 and fashion.rows == 1216
    assert fashion.unk_id not in fashion.encode(string.ascii_letters + string.digits)
    sentence = "a small bright ankle boot at the lower left, wide, full and plain"
    assert fashion.decode(fashion.encode(sentence)) == sentence
    assert len(fashion.encode(sentence)) == len(sentence.split()) + 2  # a token a word, and one a comma
    box = [fashion.piece(i) for i in fashion.encode("sneaker (0, 375, 1000, 625)")]
    assert box == ["▁sneaker", "▁(", "0", ",▁", "375", ",▁", "1000", ",▁", "625", ")"]  # a coordinate is a token


def test_fingerprint_tells_vocabularies_apart(t5):
    assert t5.fingerprint == load_tokenizer("t5", 8192).fingerprint == pickle.loads(pickle.dumps(t5)).fingerprint
    others = {load_tokenizer("t5", 64).fingerprint, load_tokenizer("fashion", 64).fingerprint}
    assert len({t5.fingerprint, *others}) == 3


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>Sign in</html>", b"", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_file_that_is_no_model_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "spiece.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is not a model file; expected a sentencepiece model") as error:
        Tokenizer(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(str(tmp_path / "absent"), 8)
