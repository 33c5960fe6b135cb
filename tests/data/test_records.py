import dataclasses
import json
import shutil
from importlib import resources

import numpy as np
import pytest

from kaleido_jax.annotate.labels import LabeledBoxes, LabeledText
from kaleido_jax.data.records import decode_image, open_records, write_shard
from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.errors import UserError
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import Latents
from tests.emoji import make_records, scenes

SETTINGS = {"num_examples": 40, "seed": 0, "image_size": 32}
SMALL = {"codebook_size": 8, "shard_size": 16, "fit_examples": 50}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("emoji", 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("records")
    make_records(folder, tokenizer=tokenizer, segments=("text", "bbox", "voken"), **SETTINGS, **SMALL)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made / "train", tmp_path / "train")


@pytest.fixture
def opening(tokenizer):
    return {"codec": Codec(tokenizer=tokenizer, segments=("text", "bbox", "voken")), "image_size": 32}


def test_records_hold_what_the_source_and_the_annotator_gave(made, opening):
    records = open_records(made / "train", **opening)
    source = scenes("train", 40)
    assert len(records) == 40
    for index in (0, 15, 16, 39):
        record, example = records[index], source[index]
        assert (record.id, record.caption) == (example.id, example.caption)
        np.testing.assert_array_equal(decode_image(record.image), example.image)
        [text], [boxes] = (labels([example], [Latents()]) for labels in (LabeledText(), LabeledBoxes(10)))
        assert (record.latents.text, record.latents.bbox) == (text.text, boxes.bbox)
        for segment in ("text", "bbox", "voken"):
            assert record.tokens[segment] == opening["codec"].segment_tokens(record.latents, segment)
    with pytest.raises(IndexError):
        records[40]


def test_training_reads_the_same_without_the_latents(made, opening):
    records = open_records(made / "train", **opening)
    for index in (0, 39):
        whole, read = records[index], records.training_record(index)
        assert dataclasses.asdict(read) == {name: getattr(whole, name) for name in dataclasses.asdict(read)}
    with pytest.raises(IndexError, match="record 40 of 40"):
        records.training_record(40)


def test_manifest_tells_how_the_records_were_made(made, opening, tokenizer):
    manifest = open_records(made / "train", **opening).manifest
    sizes = {"num_train": 40, "num_test": 1, "two_share": 0.2, "image_size": 32}
    views = {"names_alone": False, "least_side": 0.45, "most_tilt": 45}
    assert manifest.source == {"name": "emoji", "split": "train", "seed": 0} | sizes | views
    assert manifest.class_names == list(KINDS)
    assert manifest.counts == {"text": 40, "bbox": 40, "voken": 40}
    assert [s.records for s in manifest.shards] == [16, 16, 8]
    assert manifest.vocabulary == tokenizer.fingerprint and manifest.codebook_size == 64
    assert manifest.max_tokens["voken"] == 16  # 8 vokens, 7 joints, eos
    assert manifest.max_tokens["text | voken"] == manifest.max_tokens["text"] + 16


def test_damaged_shard_is_named(copy, opening):
    path = sorted(copy.glob("*.array_record"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=f"{path.name} is damaged") as error:
        open_records(copy, **opening)
    assert "\n" not in str(error.value)
    open_records(copy, verify="size", **opening)  # a quick look does not find it
    path.write_bytes(bytes(content[:-10]))
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        open_records(copy, verify="size", **opening)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        open_records(copy, verify="size", **opening)


def test_damage_found_while_reading_is_a_user_error(copy, opening):
    path = sorted(copy.glob("*.array_record"))[0]
    path.write_bytes(bytes(path.stat().st_size))
    records = open_records(copy, verify="size", **opening)
    with pytest.raises(UserError, match="record 3 in .* is damaged"):
        records[3]


def test_missing_segments_are_named(made, tokenizer):
    with pytest.raises(UserError, match=r"without blob \(they hold text, bbox, voken\)"):
        open_records(made / "train", codec=Codec(tokenizer=tokenizer, segments=("text", "blob")), image_size=32)


def test_another_vocabulary_is_refused(made):
    with pytest.raises(UserError, match="made with vocabulary 'emoji'; expected vocabulary 't5'; correct model"):
        open_records(made / "train", codec=Codec(tokenizer=load_tokenizer("t5", 64), segments=()), image_size=32)
    own = resources.files("kaleido_jax").joinpath("assets/emoji/spiece.model")  # with other extra ids than "emoji" has
    with pytest.raises(UserError, match="'emoji'; expected a vocabulary of its own"):
        open_records(made / "train", codec=Codec(tokenizer=load_tokenizer(str(own), 64), segments=()), image_size=32)
    with pytest.raises(UserError, match="latents.codebook_size"):
        open_records(made / "train", codec=Codec(tokenizer=load_tokenizer("emoji", 128), segments=()), image_size=32)


def test_another_image_size_is_refused(made, opening):
    with pytest.raises(UserError, match="of 32 px; expected a multiple of 64 px"):
        open_records(made / "train", **opening | {"image_size": 64})


def test_missing_or_damaged_manifest_is_reported(made, copy, opening):
    with pytest.raises(UserError, match="name one of .*train"):
        open_records(made, **opening)
    with pytest.raises(UserError, match="no manifest.json"):
        open_records(made / "absent", **opening)
    manifest = json.loads((copy / "manifest.json").read_text())
    for content, message in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("null", "is damaged"),
        ("version https://git-lfs.github.com/spec/v1", "is a git-LFS pointer; .*git lfs pull"),
        (json.dumps(manifest | {"version": 0}), "of version 0"),
    ):
        (copy / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=message):
            open_records(copy, **opening)


def test_failed_write_leaves_the_old_shard(made, opening, tmp_path):
    records = open_records(made / "train", **opening)
    path = tmp_path / "shard.array_record"
    first = write_shard(path, [records[0], records[1]])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="stop"):
        write_shard(path, _then_fail(records[2]))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert dataclasses.replace(first, file="x") == dataclasses.replace(first, file="x", records=2, bytes=len(before))


def _then_fail(record):
    yield record
    raise ValueError("stop")
