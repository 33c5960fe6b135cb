"""The job as a whole: stopped, killed, spread over processes, limited; its failures and its report."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.annotate import registry as annotators
from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.job import engines, report, shards
from kaleido_jax.annotate.job.report import agreement_rows, sample_indices, write_report
from kaleido_jax.annotate.job.run import annotate, reasons
from kaleido_jax.annotate.prepare import prepare_records
from kaleido_jax.config import load_config, validate
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Annotate, default_config
from kaleido_jax.data.records import Records, decode_image, open_records, read_manifest
from kaleido_jax.errors import Terminated, UserError, user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.segments import names
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import Latents
from kaleido_jax.main import main
from tests.annotate.vlm.openai_server import GOOD, serving
from tests.emoji import make_records

EMOJI = {
    "num_examples": 60,
    "seed": 1,
    "image_size": 32,
    "codebook_size": 8,
    "fit_examples": 50,
    "shard_size": 20,
}
DATE = "2026-01-01"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("emoji", 64)


def _hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


# ----------------------------------------------------------------------------------------------- killing
_TWO_THOUSAND = {
    "num_examples": 2000,
    "seed": 0,
    "image_size": 32,
    "codebook_size": 16,
    "fit_examples": 100,
    "shard_size": 250,
}
_RUN = """
import sys
from pathlib import Path
from kaleido_jax.annotate.job import engines
from kaleido_jax.config.schema import Annotate
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.runtime import signals
from tests.annotate.job import test_run
from tests.emoji import make_records

engines.make_shard, engines._worker_make = test_run._make_held, test_run._worker_make_held
signals.GRACE_SEC = 60
settings = Annotate(date="2026-01-01", num_workers=int(sys.argv[2]))
make_records(Path(sys.argv[1]), tokenizer=load_tokenizer("emoji", 64), annotate_settings=settings, **{keywords})
"""


def _start(folder, workers=0, held="0", **more):
    """Starts the job; held: "4/2" waits in the shards from number 4 on until it is told 2, "0" nowhere."""
    program = [sys.executable, "-c", _RUN.format(keywords=_TWO_THOUSAND), str(folder), str(workers)]
    return subprocess.Popen(program, env=os.environ | {"KALEIDO_TEST_HELD": held}, **more)


def _make_held(job, place, indices, advance):
    """Makes a shard; however late the test looks, the job is not over."""
    number, _, told = os.environ["KALEIDO_TEST_HELD"].partition("/")

    def hold_and_advance(done):
        heard = 0
        while told and done and place.number >= int(number) and heard < int(told):
            if engines._WORKER and engines._WORKER["told"].value > heard:
                heard += 1
                os.write(2, f"told {heard}\n".encode())
            time.sleep(0.01)
        advance(done)

    return shards.make_shard(job, place, indices, hold_and_advance)


def _worker_make_held(place, indices):
    return _make_held(engines._WORKER["job"], place, indices, engines._count_images)


def _wait_for(condition, process=None):
    end = time.monotonic() + 300
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_started_again_gives_the_shards_of_an_undisturbed_run(tmp_path, tokenizer):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    make_records(undisturbed, tokenizer=tokenizer, annotate_settings=Annotate(date=DATE), **_TWO_THOUSAND)
    process = _start(killed, held="4/1")
    shard = killed / "train" / "emoji-train-00002.array_record"
    _wait_for(shard.with_suffix(".json").exists, process)  # written when the shard is finished
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = shard.stat().st_mtime_ns
    assert len(list(shard.parent.glob("*.array_record"))) < 8 and not (shard.parent / "manifest.json").exists()
    assert _start(killed).wait(300) == 0
    assert shard.stat().st_mtime_ns == written  # finished shards are not made twice
    assert _hashes(killed) == _hashes(undisturbed)
    assert read_manifest(killed / "train").num_records == 2000


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_in_a_pool_keeps_what_is_finished(tmp_path, tokenizer, signals):
    stopped, log = tmp_path / "stopped", tmp_path / "log"
    with log.open("wb") as file:  # what is in hand is finished when the job is told to stop, or never
        process = _start(stopped, workers=2, held=f"1/{signals}", start_new_session=True, stderr=file)
    _wait_for(lambda: list(stopped.glob("train/*-00001.journal")), process)
    for _ in range(signals):  # as a terminal does, to all processes
        os.killpg(process.pid, signal.SIGINT)
        # The second not before the job has heard the first: Python takes two at once for one.
        _wait_for(lambda: {"stopping after the images in hand", "told 1"} <= set(re.split("[;\n]", log.read_text())))
    code, error = {1: (-signal.SIGINT, "KeyboardInterrupt"), 2: (1, "kaleido_jax.errors.Aborted")}[signals]
    assert process.wait(300) == code
    said = log.read_text()
    assert said.rstrip().endswith(error)
    assert said.count("Traceback") == 1  # the program's own, whose main does not catch the interrupt
    assert not (stopped / "train" / "manifest.json").exists()
    _wait_for(lambda: not _children(process.pid))  # no worker outlives the program
    again, whole = (Annotate(date=DATE, num_workers=workers) for workers in (2, 0))
    make_records(stopped, tokenizer=tokenizer, annotate_settings=again, **_TWO_THOUSAND)
    make_records(tmp_path / "whole", tokenizer=tokenizer, annotate_settings=whole, **_TWO_THOUSAND)
    assert _hashes(stopped) == _hashes(tmp_path / "whole")


def test_a_signal_while_the_last_shard_is_written_stops_the_job_too(tmp_path, tokenizer, monkeypatch, caplog):
    """As in training; the job went on with the next split, and ended with exit code 0."""
    caplog.set_level("INFO", "kaleido_jax")

    def make_shard(job, place, *args):
        notes = shards.make_shard(job, place, *args)
        if place.number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return notes

    settings = Annotate(date=DATE)
    with monkeypatch.context() as patch, pytest.raises(Terminated):
        patch.setattr(engines, "make_shard", make_shard)
        make_records(tmp_path / "stopped", tokenizer=tokenizer, annotate_settings=settings, **EMOJI)
    assert "stopped as asked: 60 of 60 images are kept; the same command goes on from there" in caplog.text
    assert not list((tmp_path / "stopped").rglob("manifest.json"))
    for name in ("stopped", "whole"):
        make_records(tmp_path / name, tokenizer=tokenizer, annotate_settings=settings, **EMOJI)
    assert _hashes(tmp_path / "stopped") == _hashes(tmp_path / "whole")


def test_records_of_a_pool_are_those_of_one_process(tmp_path, tokenizer):
    together = make_records(tmp_path / "a", tokenizer=tokenizer, annotate_settings=Annotate(date=DATE), **EMOJI)
    pool = Annotate(date=DATE, num_workers=2)
    assert make_records(tmp_path / "b", tokenizer=tokenizer, annotate_settings=pool, **EMOJI) == together
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")


def test_a_worker_process_that_dies_is_reported_in_one_line(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(engines, "_worker_make", _die)
    with pytest.raises(UserError, match="a worker process was killed.*finished images are kept") as error:
        make_records(tmp_path, tokenizer=tokenizer, annotate_settings=Annotate(num_workers=1), **EMOJI)
    assert "\n" not in str(error.value)


def test_a_dead_worker_ends_the_job_while_another_is_busy(tmp_path):
    """The pool ends the others by SIGTERM, and waits for them."""
    program = _RUN.format(keywords=_TWO_THOUSAND).replace("test_run._worker_make_held", "test_run._die_or_work_on")
    command = [sys.executable, "-c", program, str(tmp_path), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "a worker process was killed" in done.stderr


def _die_or_work_on(place, indices):
    time.sleep(0 if place.number else 600)
    _die(place, indices)


def _die(place, indices):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="finds children in /proc")
def test_a_pool_ends_with_its_killed_parent(tmp_path):
    parent = _start(tmp_path, workers=1, held="1/1")
    _wait_for(lambda: list(tmp_path.glob("train/emoji-*.json")), parent)
    children = _children(parent.pid)
    assert children
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_for(lambda: not any(_stat(child) for child in children))  # no worker outlives its parent


def _children(parent):
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _stat(p.name)[1:2] == [str(parent)]]


def _stat(pid):
    """State and parent of a process; [] if it has ended, also while this looks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] == "Z" else fields


# ------------------------------------------------------------------------------------------ what is stored
def test_the_day_of_the_first_start_stays(tmp_path, tokenizer):
    make_records(tmp_path, tokenizer=tokenizer, **EMOJI)
    path = tmp_path / "train" / "job.json"
    job = json.loads(path.read_text())
    path.write_text(json.dumps(job | {"date": "1999-12-31"}))
    manifest = make_records(tmp_path, tokenizer=tokenizer, **EMOJI)
    assert manifest.date == "1999-12-31"  # and the shards with the other day were made again
    record = Records(tmp_path / "train", manifest)[0]
    assert record.provenance["bbox"] == {"model": "labels", "version": "labels/1", "date": "1999-12-31"}
    other = make_records(tmp_path, tokenizer=tokenizer, annotate_settings=Annotate(date=DATE), **EMOJI)
    assert other.date == DATE


def test_a_raised_limit_keeps_the_shards_there_are(tmp_path, tokenizer):
    small = make_records(tmp_path, tokenizer=tokenizer, annotate_settings=Annotate(date=DATE, limit=40), **EMOJI)
    assert small.num_records == 40
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "train").glob("*.array_record")}
    whole = make_records(tmp_path, tokenizer=tokenizer, annotate_settings=Annotate(date=DATE), **EMOJI)
    assert whole.num_records == 60 and whole.shards[:2] == small.shards
    assert all((tmp_path / "train" / name).stat().st_mtime_ns == time for name, time in times.items())


class _Picky:
    """Boxes for images of even number only, and no image alike with another in the batch."""

    segments, needs, sees, metadata = ("bbox",), ("text",), "view", {"model": "picky", "version": "1"}

    def __call__(self, examples, so_far):
        assert all(z.text for z in so_far)
        return [self._one(e) for e in examples]

    def _one(self, example):
        if int(example.id[-1]) % 2:
            return Failure(segment="bbox", reason=f"odd\nnumber {example.id[-3:]}")
        return Latents(bbox=(Box(phrase="it", box=(0, 0, 500, 500)),))


@pytest.fixture
def picky(monkeypatch):
    monkeypatch.setitem(annotators.OPENERS, ("bbox", "onnx"), lambda settings: _Picky())
    monkeypatch.delitem(annotators.CHECKS, ("bbox", "onnx"))
    settings = Annotate(date=DATE)
    return replace(settings, bbox=replace(settings.bbox, kind="onnx"))


def test_images_without_what_is_required_are_left_out_and_counted(tmp_path, tokenizer, picky):
    manifest = make_records(tmp_path, tokenizer=tokenizer, annotate_settings=picky, **EMOJI)
    assert manifest.num_records == manifest.left_out == 30
    assert manifest.counts == dict.fromkeys(names(), 30)
    assert manifest.reasons == {"bbox: odd number 059 (and the like)": 30}
    assert manifest.failures[0] == {"id": "emoji/train/000001", "segment": "bbox", "reason": "odd number 001"}
    notes = json.loads((tmp_path / "train" / "emoji-train-00001.json").read_text())
    assert [f["id"][-2:] for f in notes["failures"]] == [str(n) for n in range(21, 40, 2)]
    records = Records(tmp_path / "train", manifest)
    assert {r.provenance["bbox"]["model"] for r in records} == {"picky"}
    assert {r.provenance["text"]["model"] for r in records} == {"labels"}


def test_records_may_lack_what_is_not_required_and_are_then_refused_where_it_is_needed(tmp_path, tokenizer, picky):
    picky = replace(picky, required=("text", "voken"))
    manifest = make_records(tmp_path, tokenizer=tokenizer, annotate_settings=picky, **EMOJI)
    assert manifest.num_records == 60 and manifest.left_out == 0 and manifest.counts["bbox"] == 30
    codec = Codec(tokenizer=tokenizer, segments=("text", "voken"))
    assert len(open_records(tmp_path / "train", codec=codec, image_size=32)) == 60
    with pytest.raises(UserError, match="without bbox"):
        open_records(tmp_path / "train", codec=replace(codec, segments=("text", "bbox")), image_size=32)


def test_an_annotator_without_what_it_needs_is_refused_before_any_image(tmp_path, tokenizer, picky):
    with pytest.raises(UserError, match="bbox without text"):
        make_records(tmp_path, tokenizer=tokenizer, annotate_settings=picky, segments=("bbox", "blob"), **EMOJI)


def test_an_annotator_that_cannot_work_stops_the_job_and_loses_no_shard(tmp_path, tokenizer, monkeypatch):
    class Server(_Picky):
        calls = 0

        def __call__(self, examples, so_far):
            Server.calls += 1
            if Server.calls > 3:  # batches of 16: in the second shard
                raise user_error("no server", "one", "start it")
            return [Latents(bbox=()) for _ in examples]

    monkeypatch.setitem(annotators.OPENERS, ("bbox", "onnx"), lambda settings: Server())
    monkeypatch.delitem(annotators.CHECKS, ("bbox", "onnx"))
    settings = Annotate(date=DATE)
    settings = replace(settings, bbox=replace(settings.bbox, kind="onnx"))
    with pytest.raises(UserError, match="no server"):
        make_records(tmp_path, tokenizer=tokenizer, annotate_settings=settings, **EMOJI)
    files = sorted(p.name for p in (tmp_path / "train").iterdir())
    shard = ["emoji-train-00000.array_record", "emoji-train-00000.json"]
    assert files == [*shard, "emoji-train-00001.journal", "job.json"]  # with the first batch of the second shard


def test_reasons_that_differ_in_numbers_count_as_one_and_the_largest_stands_for_them():
    failures = [{"segment": "image", "reason": f"a photo of {n}x2 px in UTF-8"} for n in (10, 300, 10)]
    failures.append({"segment": "text", "reason": "none"})
    assert reasons(failures) == {"image: a photo of 300x2 px in UTF-8 (and the like)": 3, "text: none": 1}


def test_reasons_hold_numbers_of_any_length():
    numbers = ("9" * 5000, "1" + "0" * 5000, "00", "0" * 6000 + "7")
    failures = [{"segment": "text", "reason": f"number {number}"} for number in numbers]
    assert reasons(failures) == {f"text: number {numbers[1]} (and the like)": 4}


def test_a_shard_is_the_same_in_batches_of_any_size(tmp_path, tokenizer):
    for name, batch in (("a", 1), ("b", 16)):
        settings = Annotate(date=DATE, batch_size=batch)
        make_records(tmp_path / name, tokenizer=tokenizer, annotate_settings=settings, **EMOJI)
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")


def test_a_job_opens_its_annotators_once(tmp_path, tokenizer, monkeypatch):
    opened = []
    monkeypatch.setattr(shards, "open_annotators", lambda *a: opened.append(1) or annotators.open_annotators(*a))
    make_records(tmp_path, tokenizer=tokenizer, **EMOJI)
    assert opened == [1, 1]  # of each split


# ------------------------------------------------------------------------------- labels, by the same road
def _coco(folder):
    """Four photos of 40x30 px: one complete, one without captions, one without objects, one broken."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(folder / "images" / f"{number}.png")
    (folder / "images" / "3.png").write_bytes(b"\x89PNG, cut off")
    images = [
        {
            "id": n,
            "file_name": f"{n}.png",
            "width": 40,
            "height": 30,
            "license": 4,
            "captions": [] if n == 1 else ["a {bold} cat & co, one would say", "<b>a cat</b>"],
        }
        for n in range(4)
    ]
    objects = [
        {
            "id": n,
            "image_id": n,
            "category_id": 1,
            "iscrowd": 0,
            "bbox": [10, 5, 10, 20],
            "segmentation": [[10, 5, 20, 5, 20, 25, 10, 25]],
        }
        for n in (0, 1, 3)
    ]
    table = {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 1, "name": "cat"}],
        "licenses": [{"id": 4, "name": "CC <BY>"}],
    }
    (folder / "annotations.json").write_text(json.dumps(table))


def _annotated(config, work, tokenizer):
    [manifest] = annotate(validate(config), work, tokenizer).values()
    return manifest


@pytest.fixture(scope="module")
def annotated(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("coco")
    _coco(folder / "data")
    config = default_config()
    config.data.source, config.data.root = "coco", str(folder / "data")
    config.latents.codebook_size, config.latents.vokens_per_image = 64, 4
    config.annotate.image_size, config.annotate.date = 30, DATE
    config.annotate.segments = ("text", "bbox", "blob")
    config.model.t5.vocabulary = "emoji"
    return _annotated(config, folder / "work", tokenizer), folder / "work"


def test_labels_become_latents_on_the_square_crop(annotated):
    manifest, folder = annotated
    record = Records(folder, manifest)[0]
    assert record.id == "coco/000000000000" and record.caption == "<b>a cat</b>" and record.credit == "CC <BY>"
    assert decode_image(record.image).shape == (30, 30, 3)
    assert record.latents.text == "a bold cat & co, one would say"  # no braces in the vocabulary
    # The crop begins 5 px from the left: 5..15 of 30 px across, 5..25 down.
    assert record.latents.bbox == (Box(phrase="cat", box=(167, 167, 500, 833)),)
    xc, yc, major, minor, theta = record.latents.blob[0].blob
    assert (xc, yc, theta) == (333, 500, 90)
    np.testing.assert_allclose((major, minor), (2 / 12**0.5 * 20 / 30 * 1000, 2 / 12**0.5 * 10 / 30 * 1000), atol=1)
    assert [shard.file for shard in manifest.shards] == ["records/coco-00000.array_record"]


def test_failures_name_the_image_and_the_reason(annotated):
    manifest, _ = annotated
    assert manifest.num_records == 1 and manifest.left_out == 3
    failures = {(f["id"][-1], f["segment"]): f["reason"] for f in manifest.failures}
    assert failures.keys() == {("1", "text"), ("2", "bbox"), ("2", "blob"), ("3", "image")}
    assert failures["1", "text"] == "the data has no caption of it"


def test_the_report_is_whole_repeatable_and_escapes_the_data(annotated, tmp_path):
    _, folder = annotated
    page = write_report(folder, num_samples=100, seed=0).read_text()
    assert page == write_report(folder, num_samples=100, seed=0).read_text()
    assert "&lt;b&gt;a cat&lt;/b&gt;" in page and "cat &amp; co" in page and "CC &lt;BY&gt;" in page
    assert "<b>a cat" not in page and "<script" not in page
    assert page.count('class="kaleido-z"') == 1 and "the data has no caption of it" in page
    assert 'src="http' not in page and "data:image/png;base64," in page
    assert sample_indices(1000, 5, 0) == sample_indices(1000, 5, 0) != sample_indices(1000, 5, 1)
    assert sample_indices(3, 100, 0) == [0, 1, 2]


def test_the_verb_leaves_what_training_opens(tmp_path, capsys):
    _coco(tmp_path / "data")
    work, config = tmp_path / "work", tmp_path / "config.py"
    config.write_text(
        "from configs.annotate_coco import get_config as coco\n"
        "def get_config():\n"
        "    config = coco()\n"
        "    config.model.denoiser.image_size = 32\n"
        "    config.annotate.image_size = 0\n"
        "    config.latents.segments = config.annotate.segments = ('text', 'bbox', 'blob')\n"
        "    return config\n"
    )
    command = ["annotate", f"--config={config}", f"--config.data.root={tmp_path / 'data'}", f"--workdir={work}"]
    main([*command, "--limit=2", "--sample_report=7"])
    message = capsys.readouterr().out
    assert "1 record, 1 image left out\n" in message
    assert "  bbox: 1 image with objects, 0 without; 1 object, 1.0 an image, at most 1\n" in message
    assert f"report: {work / 'report.html'}" in message
    assert {p.name for p in work.iterdir()} == {"records", "manifest.json", "report.html", "job.json"}
    config = load_config(config)
    records = prepare_records(config, work, open_codec(config))
    assert len(records) == 1
    elsewhere = load_config(command[1].removeprefix("--config="), **{"data.records": str(work)})
    assert prepare_records(elsewhere, tmp_path / "other", open_codec(elsewhere))[0] == records[0]
    with pytest.raises(UserError, match="make them with `annotate`"):
        prepare_records(config, tmp_path / "empty", open_codec(config))


def _table(folder, captions):
    folder.mkdir()
    Image.new("RGB", (40, 30), (90, 140, 30)).save(folder / "one.png")
    rows = "".join(f"one.png,{caption}\n" for caption in captions)
    (folder / "train.csv").write_text(f"image,caption\n{rows}")


def _asking(folder, server):
    config = default_config()
    config.data.source, config.data.root, config.data.split = "table", str(folder), "train"
    config.annotate.text.kind, config.annotate.segments = "openai", ("text",)
    config.annotate.image_size, config.annotate.text.image_size, config.annotate.shard_size = 30, 28, 2
    config.annotate.endpoint.base_url, config.annotate.endpoint.model = server.base_url, "tiny"
    return config


def test_a_server_describes_the_images_and_what_it_refuses_is_counted(tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="the extra annotate is not installed")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tokenizer = load_tokenizer("t5", 8192)
    _table(tmp_path / "data", [f"image n{n}" for n in range(5)])
    with serving({"n1": [400]}) as server:
        manifest = _annotated(_asking(tmp_path / "data", server), tmp_path / "work", tokenizer)
        asked = len(server.times)
        _annotated(_asking(tmp_path / "data", server), tmp_path / "work", tokenizer)
        assert len(server.times) == asked  # a finished job asks nobody
    assert manifest.num_records == 4 and [f["id"] for f in manifest.failures] == ["table/train/00000001"]
    record = Records(tmp_path / "work", manifest)[0]
    assert record.latents.text == GOOD and record.caption == "image n0"
    assert record.provenance["text"].keys() >= {"model", "prompt", "date"}
    assert record.provenance["text"]["model"] == "tiny"


def test_all_images_bad_is_one_line(tmp_path, tokenizer):
    _coco(tmp_path / "data")
    for path in (tmp_path / "data" / "images").iterdir():
        path.unlink()
    config = default_config()
    config.data.source, config.data.root = "coco", str(tmp_path / "data")
    config.annotate.image_size, config.annotate.segments = 30, ("text",)
    config.latents.codebook_size = 64
    with pytest.raises(UserError, match="none of 4 examples has all of text .image: image file: No such file") as error:
        _annotated(config, tmp_path / "work", tokenizer)
    assert "\n" not in str(error.value)


def test_the_report_counts_classes_and_can_show_those_without_objects_alone(annotated, tmp_path, tokenizer):
    manifest, folder = annotated
    record = Records(folder, manifest)[0]
    bare = replace(record, latents=record.latents.replace(bbox=(), blob=()))
    page = "".join(report._page(manifest, [record, bare, record]))
    assert "only those without a box or ellipse (1)" in page and page.count('class="card bare"') == 1
    assert page.count('class="card"') == 2 and page.index('id="bare"') < page.index('<div class="cards">')
    assert 'id="bare"' not in "".join(report._page(manifest, [record]))

    for name, count in (("cat", 3), ("red fox", 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40), (number, 9, 9)).save(tmp_path / "data" / name / f"{number}.png")
    config = default_config()
    config.data.source, config.data.root = "folder", str(tmp_path / "data")
    config.annotate.image_size, config.annotate.segments, config.latents.codebook_size = 30, ("text",), 64
    made = _annotated(config, tmp_path / "work", tokenizer)
    assert "  classes: 2, of 1 (red fox) to 3 images each" in report.summary(made)
    page = write_report(tmp_path / "work", num_samples=9, seed=0).read_text()
    assert re.findall(r"<td>([a-z ]+)</td><td class=\"number\">(\d)</td>", page) == [("cat", "3"), ("red fox", "1")]


def test_a_table_with_other_columns_is_told_with_its_columns(tmp_path, tokenizer):
    """Its photos are there: a hint at the root would send one the wrong way."""
    (tmp_path / "data").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a fox"}\n' * 30)
    config = default_config()
    config.data.source, config.data.root = "table", str(tmp_path / "data")
    config.annotate.image_size, config.annotate.segments = 30, ("text", "voken")
    config.latents.codebook_size, config.latents.vokens_per_image = 64, 4
    reason = r"none of 30 images can be read; .*a row without image \(it has file_name, text\).* set data.table.columns"
    with pytest.raises(UserError, match=reason):
        _annotated(config, tmp_path / "work", tokenizer)


def test_where_nothing_can_be_written_is_one_line(tmp_path, tokenizer):
    _coco(tmp_path / "data")
    config = default_config()
    config.data.source, config.data.root = "coco", str(tmp_path / "data")
    config.annotate.image_size, config.annotate.segments = 30, ("text",)
    config.latents.codebook_size = 64
    (tmp_path / "file").touch()
    for work in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("a" * 300), Path("/proc/x")):
        with pytest.raises(UserError, match="nothing can be written to --workdir=.*; name another") as error:
            annotate(validate(config), work, tokenizer)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not os.environ.get("KALEIDO_COCO_FIXTURES"), reason="KALEIDO_COCO_FIXTURES names no folder")
def test_ellipses_of_human_masks_agree_with_them(tmp_path):
    from configs.annotate_coco import get_config

    config = get_config()
    config.data.root = os.environ["KALEIDO_COCO_FIXTURES"]
    config.annotate.segments = ("text", "bbox", "blob")
    manifest = _annotated(config, tmp_path, load_tokenizer("t5", 64))
    assert manifest.counts == {"text": 168, "bbox": 168, "blob": 168}
    assert manifest.agreement["ellipse_iou_median"] >= 0.75 and manifest.agreement["ellipse_objects"] > 400
    assert manifest.agreement["box_iou_median"] >= 0.98
    assert len(agreement_rows(manifest)) == 4
