"""One row is one failure, whatever it raises; a source registered from outside; names that are no UTF-8."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.annotate import registry
from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.job import shards
from kaleido_jax.annotate.job.report import summary, write_report
from kaleido_jax.annotate.job.run import annotate
from kaleido_jax.config.checks import validate
from kaleido_jax.config.schema import Data, default_config
from kaleido_jax.data import sources
from kaleido_jax.data.records import Records, class_names
from kaleido_jax.data.sources.base import Example, SourceSettings
from kaleido_jax.errors import UserError
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import Latents

TOKENIZER = load_tokenizer("emoji", 64)


class Odd:
    """A source whose examples 1 and 2 raise what no reader foresees; the id of 2 as well."""

    class_names, fingerprint = ("cat", "dog"), "odd/1"

    def __init__(self, settings: SourceSettings):
        self._size = len(settings.data.labels)

    def __len__(self):
        return self._size

    def id(self, index):
        if index == 2:
            raise OverflowError("no id")
        return f"odd/{index} \udce9"

    def label(self, index):
        return index % 2

    def __getitem__(self, index):
        if index in (1, 2):
            raise [RecursionError, ZeroDivisionError][index - 1]("deep \ud83d\ndown")
        image = np.full((8, 10, 3), index, np.uint8)
        return Example(
            id=self.id(index), image=image, caption=f"cat {index} \ud83d", description="words", credit="\udcff"
        )


def _config(number, **annotate_fields):
    config = default_config()
    config.data.source, config.data.labels = "odd", ("x",) * number
    config.model.t5.vocabulary = "emoji"
    config.latents.codebook_size = 64
    config.annotate.image_size, config.annotate.segments = 8, ("text",)
    for field, value in annotate_fields.items():
        config.annotate[field] = value
    return validate(config)


@pytest.fixture(autouse=True)
def odd():
    sources.register("odd", Odd)
    yield
    del sources._KINDS["odd"]  # and no other: kinds whose modules came in meanwhile would not register again


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_from_outside_is_annotated_and_a_row_that_raises_is_one_failure(tmp_path, workers):
    config = _config(5, num_workers=workers)
    [manifest] = annotate(config, tmp_path, TOKENIZER).values()
    assert manifest.num_records == 3 and manifest.left_out == 2
    assert [(f["id"], f["segment"], f["reason"]) for f in manifest.failures] == [
        (r"odd/00000002", "image", "ZeroDivisionError: deep down"),
        (r"odd/1 \xe9", "image", "RecursionError: deep down"),
    ]
    first = Records(tmp_path, manifest)[0]
    assert (first.id, first.caption, first.credit) == (r"odd/0 \xe9", "cat 0", r"\xff")
    assert class_names(config, tmp_path) == ["cat", "dog"]


class Raising:
    """An annotator that raises for some examples, and then for the whole batch."""

    segments, needs, sees, metadata = ("text",), (), "view", {"model": "raising", "version": "1"}

    def __init__(self, bad):
        self.bad = bad

    def __call__(self, examples, so_far):
        if any(self.bad(int(e.image[0, 0, 0])) for e in examples):
            raise TypeError("not\nthis one")
        return [Latents(text="good") for _ in examples]


def _with(monkeypatch, bad):
    monkeypatch.setitem(registry.OPENERS, ("text", "labels"), lambda settings: Raising(bad))


@pytest.mark.parametrize("batch_size", [1, 16])
def test_an_annotator_that_raises_for_one_example_costs_only_that(tmp_path, monkeypatch, batch_size):
    _with(monkeypatch, lambda number: number % 5 == 3)
    [manifest] = annotate(_config(20, batch_size=batch_size), tmp_path, TOKENIZER).values()
    assert manifest.num_records == 20 - 2 - 4
    assert manifest.reasons["text: TypeError: not this one"] == 4


def test_an_annotator_that_raises_for_all_examples_stops_the_job(tmp_path, monkeypatch):
    _with(monkeypatch, lambda number: True)
    with pytest.raises(TypeError, match="this one"):
        annotate(_config(60, batch_size=16), tmp_path, TOKENIZER)
    assert not (tmp_path / "manifest.json").exists()


def test_an_image_that_cannot_be_made_a_record_is_a_failure(tmp_path, monkeypatch):
    encode = shards.encode_image
    monkeypatch.setattr(shards, "encode_image", lambda image: 1 / 0 if image[0, 0, 0] == 3 else encode(image))
    [manifest] = annotate(_config(5), tmp_path, TOKENIZER).values()
    assert manifest.num_records == 2 and manifest.reasons["record: ZeroDivisionError: division by zero"] == 1


def test_a_failures_answer_still_counts_for_its_segment(tmp_path, monkeypatch):
    answer = Failure(segment="text", reason="half \ud83d")
    monkeypatch.setattr(Raising, "__call__", lambda self, examples, so_far: [answer for _ in examples])
    _with(monkeypatch, lambda number: False)
    with pytest.raises(UserError, match="none of 4 examples has all of text .* take text out of annotate.segments, "):
        annotate(_config(4), tmp_path, TOKENIZER)


def test_an_object_whose_label_cannot_be_written_does_not_cost_its_photo(tmp_path):
    images, annotations, names = [], [], ("dog", "出口", "( )")
    for image, labels in enumerate([(1, 2, 3), (2,), (3,)]):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "images" / f"{image}.png")
        images.append({"id": image, "file_name": f"{image}.png", "captions": ["a dog"]})
        for category in labels:
            outline, box = [[4, 4, 30, 4, 30, 30]], [4, 4, 26, 26]
            number = {"id": len(annotations), "image_id": image, "category_id": category}
            annotations.append(number | {"bbox": box, "segmentation": outline})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    told = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(told))
    config = _config(1, segments=("bbox", "blob"), required=("bbox", "blob"))
    config = replace(config, data=Data(source="coco", root=str(tmp_path)))
    [manifest] = annotate(config, tmp_path / "w", load_tokenizer("t5", 64)).values()
    [record] = Records(tmp_path / "w", manifest)
    assert [o.phrase for o in record.latents.bbox + record.latents.blob] == ["dog", "dog"]
    told = "\n".join(summary(manifest))
    for said in (
        "1 record, 2 images left out",
        "1 object left out of bbox, since the vocabulary has no character of its phrase",
        "1 object left out of blob, since",
        "2 labeled objects without a readable label",
        "1 x bbox: words '出口' that cannot be written; expected characters the vocabulary knows",
        "1 x blob: no label with a readable character ('( )'); expected words; name the objects",
    ):
        assert said in told, told


def test_names_that_are_no_utf8_go_through_the_whole_job(tmp_path):
    folder, work = tmp_path / "data" / "猫 cat", tmp_path / os.fsdecode(b"w\xe9")
    folder.mkdir(parents=True)
    for name in (b"caf\xe9.png", "ä.png".encode()):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            Image.new("RGB", (40, 30)).save(file, "png")
    config = _config(1)
    config = replace(config, data=Data(source="folder", root=str(tmp_path / "data"), max_caption_tokens=128))
    [manifest] = annotate(config, work, load_tokenizer("t5", 64)).values()
    assert [record.id for record in Records(work, manifest)] == [r"folder/猫 cat/caf\xe9.png", "folder/猫 cat/ä.png"]
    assert manifest.class_names == ["猫 cat"] and "猫 cat" in write_report(work, num_samples=2, seed=0).read_text()
