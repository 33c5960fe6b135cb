"""The verb `annotate` with a server: every image of the data ends in the records or in the list of failures."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.annotate.vlm.openai_server import GOOD, serving

pytest.importorskip("openai", reason="openai is not installed: pip install 'kaleido_jax[annotate]'")

from kaleido_jax.annotate.job.report import summary
from kaleido_jax.config import load_config, validate
from kaleido_jax.config.schema import default_config
from kaleido_jax.data.records import read_manifest
from kaleido_jax.errors import UserError
from kaleido_jax.verbs import annotate

BOXES = '```json\n[{"bbox_2d": [14, 7, 28, 28], "label": "the apple"}]\n```'


def answers(text, boxes=(BOXES,)):
    """Behaviors by what is asked: a description, or boxes."""
    counts = {"text": 0, "boxes": 0}

    def behave(body):
        kind = "boxes" if "bbox_2d" in body["messages"][0]["content"][1]["text"] else "text"
        script = boxes if kind == "boxes" else text
        counts[kind] += 1
        return script[min(counts[kind], len(script)) - 1]

    return behave


@pytest.fixture
def data(tmp_path):
    """Three classes of one image each."""
    for k, name in enumerate(("image_good", "image_late", "image_never")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full((40, 50, 3), 60 * k, np.uint8)).save(folder / "one.png")
    return tmp_path / "data"


def config(data, server):
    values = default_config()
    values.model.t5.vocabulary = "emoji"
    values.data.source, values.data.root = "folder", str(data)
    values.latents.segments = values.annotate.segments = ("text", "bbox")
    values.annotate.image_size, values.annotate.date = 32, "2026-01-01"
    values.annotate.endpoint.base_url, values.annotate.endpoint.model = server.base_url, "tiny"
    values.annotate.endpoint.retries = 2
    values.annotate.text.kind = values.annotate.bbox.kind = "openai"
    values.annotate.bbox.coordinates, values.annotate.bbox.image_size = "pixels", 28
    return validate(values)


def test_each_image_is_in_the_records_or_among_the_failures(data, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    scripts = {
        "good": answers([GOOD]),
        "late": answers(["I'm sorry, I can't help with that.", GOOD], ["no boxes here", BOXES]),
        "never": answers(["I'm sorry, I can't help with that."]),
    }
    workdir = tmp_path / "run"
    with serving(scripts) as server:
        annotate.run(config(data, server), workdir)
        manifest = read_manifest(workdir)
        assert manifest.num_records == 2
        [failure] = [f for path in workdir.rglob("*.json") for f in _failures(path)]
        assert failure["id"] == "folder/image_never/one.png" and failure["segment"] == "text"
        assert failure["reason"].startswith("refusal") and failure["reason"].endswith("(3 tries)")
        asked = sum(map(len, server.requests.values()))
        annotate.run(config(data, server), workdir)  # all is done already
        assert sum(map(len, server.requests.values())) == asked


def _failures(path):
    content = json.loads(path.read_text())
    return content["failures"] if isinstance(content, dict) and "shard" in content else []


def test_a_server_that_is_away_stops_the_job_and_it_goes_on_later(data, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("kaleido_jax.annotate.vlm.endpoint.FIRST_BACKOFF_SEC", 0.01)
    workdir = tmp_path / "run"
    with serving() as server:
        given = config(data, server)
    with pytest.raises(UserError, match="no answer from"):
        annotate.run(given, workdir)
    with serving(default=answers([GOOD])) as server:
        annotate.run(config(data, server), workdir)
    assert read_manifest(workdir).num_records == 3


def test_images_that_only_the_server_is_to_blame_for_are_asked_about_again(data, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("kaleido_jax.annotate.vlm.endpoint.FIRST_BACKOFF_SEC", 0.01)
    workdir = tmp_path / "run"

    def run(down, *, asked):
        with serving({name: answers([503], [503]) for name in down}, default=answers([GOOD])) as server:
            annotate.run(config(data, server), workdir)
            assert set(server.requests) == set(asked)
        return read_manifest(workdir)

    manifest = run(["late", "never"], asked=["good", "late", "never"])
    assert (manifest.num_records, manifest.left_out, manifest.again) == (1, 2, 2)
    assert "  2 images left out, since the server had no answer: the same command asks again" in summary(manifest)
    shards = {path: path.read_bytes() for path in workdir.rglob("*.array_record")}
    manifest = run(["never"], asked=["late", "never"])  # what has a record is left alone
    assert (manifest.num_records, manifest.left_out, manifest.again) == (2, 1, 1)
    for _ in range(2):  # shards without a record are not piled up
        run(["never"], asked=["never"])
    assert len(list(workdir.rglob("*.array_record"))) == 3
    manifest = run([], asked=["never"])
    assert (manifest.num_records, manifest.left_out, manifest.again, manifest.failures) == (3, 0, 0, [])
    run([], asked=[])
    assert all(path.read_bytes() == content for path, content in shards.items())


@pytest.mark.parametrize("name, instruction, source", [("imagenet", "label", "folder"), ("cc12m", "caption", "table")])
def test_the_recipes_ask_as_the_paper_does_and_fit_its_models(name, instruction, source):
    recipe = load_config(f"annotate_{name}", **{"annotate.voken.model": "seed"})
    model = load_config({"imagenet": "imagenet_combined", "cc12m": "cc12m:combined"}[name])
    assert (recipe.annotate.text.instruction, recipe.data.source) == (instruction, source)
    assert (recipe.annotate.text.kind, recipe.annotate.bbox.kind, recipe.annotate.voken.kind) == (
        "openai",
        "openai",
        "seed",
    )
    assert recipe.latents == model.latents
    assert recipe.model.t5.vocabulary == model.model.t5.vocabulary
    assert recipe.data.max_caption_tokens == model.data.max_caption_tokens
    assert recipe.annotate.image_size == model.model.denoiser.image_size
