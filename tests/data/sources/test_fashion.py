import hashlib

import numpy as np
import pytest

from kaleido_jax.annotate import build_vocab
from kaleido_jax.annotate.job.run import QUANTIZER
from kaleido_jax.annotate.labels import LabeledBlobs, LabeledBoxes, LabeledText
from kaleido_jax.annotate.vokens.features import appearance_features
from kaleido_jax.annotate.vokens.quality import quality
from kaleido_jax.annotate.vokens.quantizer import fit_quantizer, load_quantizer, save_quantizer
from kaleido_jax.data.sources.fashion import FOREGROUND_FROM, labeled
from kaleido_jax.errors import UserError
from kaleido_jax.latents.tokenizer import Tokenizer, load_tokenizer
from kaleido_jax.latents.types import Latents, validate
from tests.fashion import garments, make_records

SETTINGS = {
    "num_examples": 70,
    "seed": 3,
    "image_size": 32,
    "codebook_size": 16,
    "shard_size": 32,
    "fit_examples": 100,
}


@pytest.fixture(scope="module")
def source():
    return garments("train", 200)


@pytest.fixture(scope="module")
def features(source):
    return np.stack([appearance_features(source[i].image) for i in range(len(source))])


@pytest.fixture(scope="module")
def quantizer(features):
    return fit_quantizer(features, codebook_size=16)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("fashion", 64)


def test_source_is_a_function_of_seed_split_and_index(source):
    again = garments("train", 9)
    for index in (0, 7):
        assert source[index].id == again[index].id
        np.testing.assert_array_equal(source[index].image, again[index].image)
    other = garments("train", 9, seed=1)
    assert any((source[i].image != other[i].image).any() for i in range(9))


def test_source_places_whole_garments_on_exact_black(source):
    images = np.stack([source[i].image for i in range(len(source))])
    assert images.shape == (200, 32, 32, 3) and images.dtype == np.uint8
    assert (images[..., 0] == images[..., 1]).all()
    tones = images[..., 0]
    assert (tones == 0).mean() > 0.3
    assert ((tones >= FOREGROUND_FROM).sum(axis=(1, 2)) > 30).all()
    assert garments("test", 1, image_size=64)[0].image.shape == (64, 64, 3)


def test_source_has_every_class_in_any_ten_in_a_row(source):
    assert sorted(source.label(i) for i in range(30, 40)) == list(range(10))
    assert source[13].caption == source.class_names[source.label(13)]


def _latents(example):
    """What the annotators of labels make of it."""
    [text], [boxes], [blobs] = (a([example], [Latents()]) for a in (LabeledText(), LabeledBoxes(1), LabeledBlobs(1)))
    return Latents(text=text.text, bbox=boxes.bbox, blob=blobs.blob)


def test_box_is_the_thresholded_garment(source):
    for index in range(40):
        example = source[index]
        z = validate(_latents(example))
        rows, columns = np.nonzero(example.image[..., 0] >= FOREGROUND_FROM)
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        np.testing.assert_allclose(z.bbox[0].box, edges * 1000 / 32, atol=0.5)  # rounded to whole units
        assert z.bbox[0].phrase == z.blob[0].phrase == example.caption
        assert z == _latents(labeled("another", example.image, example.caption))  # a function of the pixels


def test_text_says_what_is_measured():
    image = np.zeros((32, 32, 3), np.uint8)
    image[22:30, 1:13] = 200
    z = _latents(labeled("it", image, "Ankle Boot"))
    assert z.text == "a tiny bright ankle boot at the lower left, wide, full and plain"
    with pytest.raises(UserError, match="without a garment"):
        labeled("it", np.zeros_like(image), "bag")


def test_vokens_do_not_see_place_and_tone(quantizer):
    image = np.zeros((32, 32, 3), np.uint8)
    image[4:16, 4:20] = np.arange(40, 232, dtype=np.uint8).reshape(12, 16)[..., None]
    moved = np.roll(image, (8, 5), axis=(0, 1))
    np.testing.assert_allclose(appearance_features(moved), appearance_features(image))
    codes = quantizer.encode(np.stack([appearance_features(moved), appearance_features(image)]))
    np.testing.assert_array_equal(codes[0], codes[1])


def test_each_level_of_the_quantizer_brings_the_image_nearer(quantizer, features):
    message = quality(quantizer, features)
    assert (np.diff(message["rmse"]) < 0).all() and message["explained_variance"][-1] > 0.8
    assert min(message["codes_used"]) > 0.8  # no codebook is idle on what it was fitted on
    codes = quantizer.encode(features)
    assert codes.shape == (200, 8) and codes.min() >= 0 and codes.max() < 16


def test_quantizer_file_gives_the_same_codes_and_tells_damage(quantizer, features, tmp_path):
    path = tmp_path / QUANTIZER
    save_quantizer(quantizer, path, {"seed": 1})
    loaded, fitted_for = load_quantizer(path)
    assert fitted_for == {"seed": 1} and loaded.fingerprint == quantizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(features), quantizer.encode(features))
    assert fit_quantizer(features, codebook_size=16).fingerprint == quantizer.fingerprint
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    for damaged in (bytes(content), bytes(content[:100]), b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            load_quantizer(path)
    with pytest.raises(UserError, match="distinct images"):
        fit_quantizer(features[:10], codebook_size=16)


def test_shipped_vocabulary_is_what_the_tool_builds(tokenizer, tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(build_vocab.build())
    built = Tokenizer(path, extra_ids=0, codebook_size=64)
    # Pieces, not bytes: the last digits of the scores may differ between builds of sentencepiece.
    assert [built.piece(i) for i in range(built.num_pieces)] == [
        tokenizer.piece(i) for i in range(tokenizer.num_pieces)
    ]


def _hashes(folder):
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".array_record", ".safetensors"))
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_records_made_again_are_bit_identical(tmp_path, tokenizer):
    for name in ("a", "b"):
        make_records(tmp_path / name, num_test=70, tokenizer=tokenizer, **SETTINGS)
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    assert len(_hashes(tmp_path / "a")) == 3 + 3 + 1


def test_finished_shards_are_kept_and_lost_ones_made_again(tmp_path, tokenizer):
    make_records(tmp_path, tokenizer=tokenizer, **SETTINGS)
    before = _hashes(tmp_path)
    first, second, _ = sorted(tmp_path.glob("train/*.array_record"))
    manifest = (tmp_path / "train/manifest.json").read_bytes()
    written = first.stat().st_mtime_ns
    second.unlink()
    make_records(tmp_path, tokenizer=tokenizer, **SETTINGS)
    assert first.stat().st_mtime_ns == written
    assert _hashes(tmp_path) == before
    assert (tmp_path / "train/manifest.json").read_bytes() == manifest


def test_overlong_examples_are_dropped_and_counted(tmp_path, tokenizer):
    manifest = make_records(tmp_path, num_test=2, tokenizer=tokenizer, max_caption_tokens=3, **SETTINGS)
    assert manifest.left_out == 7 and manifest.num_records == 63  # only "t-shirt" has three tokens and eos
    assert manifest.max_tokens["caption"] == 3
    assert manifest.reasons == {"length: caption of 4 tokens, more than data.max_caption_tokens = 3": 7}
    assert manifest.failures[0]["id"] == "fashion/train/000000"


def test_quantizer_of_another_setup_is_not_overwritten(tmp_path, tokenizer):
    make_records(tmp_path, tokenizer=tokenizer, **SETTINGS)
    with pytest.raises(UserError, match="was fitted for"):
        make_records(tmp_path, tokenizer=tokenizer, **SETTINGS | {"codebook_size": 8})
    with pytest.raises(UserError, match="codebook of 128"):
        make_records(tmp_path, tokenizer=tokenizer, **SETTINGS | {"codebook_size": 128})
