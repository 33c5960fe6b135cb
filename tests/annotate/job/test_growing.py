"""Records that grow, stop and go on: what stays byte for byte, what is held out, what each annotator sees."""

import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.annotate import registry
from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.job import run
from kaleido_jax.annotate.job.journal import open_journal
from kaleido_jax.annotate.job.report import content_rows, summary, write_report
from kaleido_jax.annotate.job.run import annotate
from kaleido_jax.annotate.job.shards import LARGEST_VIEW_PX
from kaleido_jax.annotate.vokens.annotator import QuantizerTokenizer
from kaleido_jax.annotate.vokens.quantizer import load_quantizer
from kaleido_jax.config.checks import validate
from kaleido_jax.config.schema import Data, default_config
from kaleido_jax.data.held_out import is_held_out
from kaleido_jax.data.records import MANIFEST, Records, decode_image, find_records, records_folder
from kaleido_jax.data.sources import open_source
from kaleido_jax.errors import UserError
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime import signals

TOKENIZER = load_tokenizer("emoji", 64)


def photo(path, seed, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


def album(folder, numbers, class_name="cat"):
    for number in numbers:
        photo(folder / class_name / f"{number:02d}.png", number)
    return folder


def config_of(root, **fields):
    config = default_config()
    config.data.source, config.data.root = "folder", str(root)
    config.model.t5.vocabulary, config.latents.codebook_size, config.latents.vokens_per_image = "emoji", 8, 2
    settings = config.annotate
    settings.image_size, settings.segments, settings.date = 8, ("bbox", "voken"), "2026-01-01"
    settings.bbox.kind, settings.voken.quantizer = "onnx", "fsq"
    settings.shard_size, settings.batch_size = 8, 4
    for name, value in fields.items():
        settings[name] = value
    return validate(config)


def made(config, work):
    return annotate(config, work, TOKENIZER)


def ids(folder, manifest):
    return [record.id.rpartition("/")[2] for record in Records(folder, manifest)]


def files(folder, *suffixes):
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix in suffixes)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


SHARDS = (".array_record", ".json", ".safetensors")


class Watching:
    """A detector of one box that remembers the sizes that it saw, and may do something after so many images."""

    segments, needs, sees, metadata = ("bbox",), (), "view", {"model": "watching", "version": "1"}

    def __init__(self):
        self.shapes, self.after, self.do = [], None, None

    def __call__(self, examples, so_far):
        self.shapes += [example.image.shape for example in examples]
        if self.after is not None and len(self.shapes) >= self.after:
            self.after = None
            self.do()
        return [Latents(bbox=(Box(phrase="cat", box=(0, 0, 500, 500)),)) for _ in examples]


@pytest.fixture(autouse=True)
def detector(monkeypatch):
    watching = Watching()
    monkeypatch.setitem(registry.OPENERS, ("bbox", "onnx"), lambda settings: watching)
    monkeypatch.delitem(registry.CHECKS, ("bbox", "onnx"))
    return watching


# ------------------------------------------------------------------------------------------------ the view
def test_annotators_see_the_photo_and_vokens_the_stored_image(tmp_path, detector, monkeypatch):
    seen, encode = [], QuantizerTokenizer.__call__

    def noted(self, examples, so_far):
        seen.extend(example.image.shape for example in examples)
        return encode(self, examples, so_far)

    monkeypatch.setattr(QuantizerTokenizer, "__call__", noted)
    photo(album(tmp_path / "data", range(20)) / "cat" / "99.png", 99, size=(1500, 2000))
    [manifest] = made(config_of(tmp_path / "data"), tmp_path / "own").values()
    assert detector.shapes == [(30, 30, 3)] * 20 + [(LARGEST_VIEW_PX,) * 2 + (3,)]
    assert set(seen) == {(8, 8, 3)} and len(seen) == 21
    detector.shapes.clear()
    [other] = made(config_of(tmp_path / "data", view_size=64), tmp_path / "set").values()
    assert set(detector.shapes) == {(64, 64, 3)}
    for one, two in zip(Records(tmp_path / "own", manifest), Records(tmp_path / "set", other), strict=True):
        assert one.image == two.image and decode_image(one.image).shape == (8, 8, 3)
        assert one.latents.voken == two.latents.voken


def test_another_view_is_another_job(tmp_path, detector):
    root = album(tmp_path / "data", range(20))
    made(config_of(root), tmp_path / "work")
    made(config_of(root), tmp_path / "work")
    assert len(detector.shapes) == 20
    made(config_of(root, view_size=16), tmp_path / "work")
    assert detector.shapes[20:] == [(16, 16, 3)] * 20


# ----------------------------------------------------------------------------------------------- new photos
def test_new_photos_extend_the_records_and_leave_the_old_ones_as_they_are(tmp_path, detector):
    root, work = album(tmp_path / "data", range(10, 30)), tmp_path / "work"
    [first] = made(config_of(root), work).values()
    before, asked = files(work, *SHARDS), len(detector.shapes)
    album(root, [0, 1, 35])  # in front of the others, too
    album(root, [2], "dog")
    [second] = made(config_of(root), work).values()
    assert len(detector.shapes) - asked == 4
    after = files(work, *SHARDS)
    assert {name: after[name] for name in before if name != MANIFEST} == {
        name: digest for name, digest in before.items() if name != MANIFEST
    }
    assert second.shards[:3] == first.shards and second.num_records == 24 and second.class_names == ["cat", "dog"]
    assert ids(work, second)[20:] == ["00.png", "01.png", "35.png", "02.png"]
    made(config_of(root), work)
    assert files(work, *SHARDS) == after and len(detector.shapes) - asked == 4


def test_removed_and_changed_photos_are_named_and_what_to_delete(tmp_path):
    root, work = album(tmp_path / "data", range(20)), tmp_path / "work"
    made(config_of(root), work)
    before = files(work, *SHARDS)
    (root / "cat" / "03.png").unlink()
    photo(root / "cat" / "04.png", 4, size=(400, 300))
    with pytest.raises(UserError) as error:
        made(config_of(root), work)
    said = str(error.value)
    assert "1 image with a record is no longer in the data (folder/cat/03.png); " in said
    assert "1 image with a record is not what was annotated (folder/cat/04.png); expected" in said
    shard = work / "records" / "folder-00000.*"
    assert f"delete {shard}: " in said and "\n" not in said and "{" not in said
    assert files(work, *SHARDS) == before
    for path in shard.parent.glob(shard.name):
        path.unlink()
    [manifest] = made(config_of(root), work).values()
    assert sorted(ids(work, manifest)) == [f"{n:02d}.png" for n in range(20) if n != 3]


def test_failures_that_were_mended_or_removed_are_forgotten(tmp_path):
    root, work = album(tmp_path / "data", range(20)), tmp_path / "work"
    whole = (root / "cat" / "05.png").read_bytes()
    for number in (5, 6, 7):
        (root / "cat" / f"{number:02d}.png").write_bytes(whole[:60])
    [first] = made(config_of(root), work).values()
    assert first.num_records == 17 and first.left_out == 3
    (root / "cat" / "05.png").write_bytes(whole)
    (root / "cat" / "06.png").unlink()
    [second] = made(config_of(root), work).values()
    assert second.num_records == 18 and second.left_out == 1 and ids(work, second)[-1] == "05.png"
    assert [failure["id"] for failure in second.failures] == ["folder/cat/07.png"]


def test_a_quantizer_of_other_settings_is_refused_in_words(tmp_path):
    root, work = album(tmp_path / "data", range(20)), tmp_path / "work"
    made(config_of(root), work)
    with pytest.raises(UserError) as error:
        made(config_of(root, image_size=16), work)
    said = str(error.value)
    assert "was fitted for image_size 8; expected image_size 16; use another --workdir" in said and "{" not in said


def test_a_quantizer_without_records_is_fitted_to_the_photos_that_there_are(tmp_path, detector):
    root, work = album(tmp_path / "data", range(20)), tmp_path / "work"
    detector.after, detector.do = 1, lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        made(config_of(root, shard_size=40), work)
    assert files(work, ".safetensors") and not files(work, ".array_record")
    album(root, range(20, 40))
    made(config_of(root), work)
    made(config_of(root), tmp_path / "fresh")
    assert files(work, ".safetensors") == files(tmp_path / "fresh", ".safetensors")


# ------------------------------------------------------------------------------------------------- held out
def test_a_share_is_held_out_by_content_and_never_changes_sides(tmp_path):
    root, work = album(tmp_path / "data", range(10, 40)), tmp_path / "work"
    config = config_of(root, held_out_share=0.3)
    first = {folder.name: set(ids(folder, manifest)) for folder, manifest in made(config, work).items()}
    assert first.keys() == {"train", "test"} and len(first["train"] | first["test"]) == 30
    out = {path.name for path in (root / "cat").iterdir() if is_held_out(path.read_bytes(), 0.3)}
    assert first["test"] == out and 3 <= len(out) <= 16
    before = files(work, *SHARDS)
    album(root, range(10))
    shutil.copy(root / "cat" / sorted(out)[0], root / "cat" / "zz.png")
    second = {folder.name: set(ids(folder, manifest)) for folder, manifest in made(config, work).items()}
    assert second["train"] >= first["train"] and second["test"] > first["test"] and "zz.png" in second["test"]
    after = files(work, *SHARDS)
    assert all(after[name] == digest for name, digest in before.items() if not name.endswith(MANIFEST))
    folder = records_folder(config, work)
    assert find_records(folder).name == "train" and (find_records(folder, "test") / MANIFEST).exists()
    for split in ("train", "test"):
        assert write_report(folder / split, num_samples=2, seed=0).exists()
    with pytest.raises(UserError, match="held out .train, test.; expected that config.annotate.held_out_share"):
        made(config_of(root), work)
    made(config_of(root), tmp_path / "other")
    with pytest.raises(UserError, match="of which no share is held out"):
        made(config, tmp_path / "other")


def test_the_quantizer_is_not_fitted_on_what_is_held_out(tmp_path):
    root = album(tmp_path / "data", range(30))
    source = open_source(Data(source="folder", root=str(root)))
    fitted_on = registry.Cropped(source, 8, 0.3)
    chosen = {fitted_on[index].id.rpartition("/")[2] for index in range(len(fitted_on))}
    assert chosen == {path.name for path in (root / "cat").iterdir() if not is_held_out(path.read_bytes(), 0.3)}
    assert len(chosen) < 30
    made(config_of(root), tmp_path / "all")
    made(config_of(root, held_out_share=0.3), tmp_path / "share")
    with pytest.raises(UserError, match="source.held_out_share 0.3; expected source.held_out_share 0.1"):
        made(config_of(root, held_out_share=0.1), tmp_path / "share")
    one, other = (load_quantizer(tmp_path / folder / run.QUANTIZER)[0] for folder in ("all", "share/records"))
    assert one.fingerprint != other.fingerprint


def test_a_source_with_a_split_of_its_own_has_no_share_to_hold_out(tmp_path):
    config = default_config()
    config.data.source, config.annotate.held_out_share, config.annotate.image_size = "emoji", 0.1, 32
    with pytest.raises(
        UserError, match="held_out_share = 0.1 with the source emoji; expected 0, since it has the splits"
    ):
        made(validate(config), tmp_path)


# ------------------------------------------------------------------------------------------ stopping, going on
def test_ctrl_c_keeps_the_images_in_hand_and_the_second_run_has_the_bytes_of_an_undisturbed_one(
    tmp_path, detector, caplog, capfd
):
    root = album(tmp_path / "data", range(20))
    made(config_of(root), tmp_path / "undisturbed")
    detector.shapes.clear()
    detector.after, detector.do = 6, lambda: os.kill(os.getpid(), signal.SIGINT)
    caplog.set_level("INFO", logger="kaleido_jax")
    with pytest.raises(KeyboardInterrupt):
        made(config_of(root), tmp_path / "stopped")
    assert "stopped as asked: 8 of 20 images are kept; the same command goes on from there" in caplog.text
    assert "stopping after the images in hand; press Ctrl-C again" in capfd.readouterr().err
    assert len(detector.shapes) == 8
    made(config_of(root, batch_size=3), tmp_path / "stopped")
    assert len(detector.shapes) == 20  # none was asked about twice
    names = (".array_record", ".json", ".safetensors", ".journal")
    assert files(tmp_path / "stopped", *names) == files(tmp_path / "undisturbed", *names)


def test_a_second_ctrl_c_stops_at_once_and_loses_the_batch_in_hand_only(tmp_path, detector, monkeypatch):
    monkeypatch.setattr(signals, "GRACE_SEC", 60)  # on a busy machine three seconds pass, which end this process
    root = album(tmp_path / "data", range(20))

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    detector.after, detector.do = 5, twice
    with pytest.raises(KeyboardInterrupt):
        made(config_of(root), tmp_path / "work")
    assert len(detector.shapes) == 8
    made(config_of(root), tmp_path / "work")
    assert len(detector.shapes) == 24


def test_what_a_killed_process_left_of_the_journal_is_used_up_to_its_last_whole_batch(tmp_path, detector):
    root = album(tmp_path / "data", range(20))
    made(config_of(root, shard_size=40), tmp_path / "undisturbed")
    detector.shapes.clear()
    detector.after, detector.do = 12, lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        made(config_of(root, shard_size=40), tmp_path / "work")
    [journal] = (tmp_path / "work").rglob("*.journal")
    journal.write_bytes(journal.read_bytes()[:-5])
    made(config_of(root, shard_size=40), tmp_path / "work")
    assert len(detector.shapes) == 12 + 12
    assert files(tmp_path / "work", *SHARDS) == files(tmp_path / "undisturbed", *SHARDS)


@pytest.mark.parametrize("change", ["added in front", "added behind", "removed", "a higher limit", "smaller shards"])
def test_a_stopped_job_keeps_its_images_when_photos_come_or_go(tmp_path, detector, change):
    root, work = album(tmp_path / "data", range(10, 40)), tmp_path / "work"
    settings = {"shard_size": 24} | ({"limit": 25} if change == "a higher limit" else {})
    detector.after, detector.do = 22, lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        made(config_of(root, **settings), work)
    assert len(detector.shapes) == 24
    settings, left = {"shard_size": 24}, {"removed": 5}.get(change, 6)
    if change.startswith("added"):
        left += 3
        album(root, range(3) if change == "added in front" else range(50, 53))
    elif change == "removed":
        (root / "cat" / "39.png").unlink()
    elif change == "smaller shards":
        settings = {"shard_size": 10}
    detector.shapes.clear()
    [manifest] = made(config_of(root, **settings), work).values()
    assert sorted(ids(work, manifest)) == sorted(path.name for path in (root / "cat").iterdir())
    assert len(detector.shapes) == left and not list(work.rglob("*.journal"))


def test_a_resumed_job_asks_again_about_what_only_a_server_is_to_blame_for(tmp_path, detector, monkeypatch):
    root, work, failed = album(tmp_path / "data", range(20)), tmp_path / "work", []

    class Away(Watching):
        def __call__(self, examples, so_far):
            away = Failure(segment="bbox", reason="away", again=True)
            failed.extend(example.id for example in examples[:1])
            return [away, *super().__call__(examples, so_far)[1:]]

    away = Away()
    away.after, away.do = 10, lambda: os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setitem(registry.OPENERS, ("bbox", "onnx"), lambda settings: away)
    with pytest.raises(KeyboardInterrupt):
        made(config_of(root, shard_size=40), work)
    assert len(away.shapes) == 12 and len(failed) == 3
    monkeypatch.setitem(registry.OPENERS, ("bbox", "onnx"), lambda settings: detector)
    [manifest] = made(config_of(root, shard_size=40), work).values()
    assert manifest.num_records == 20 and len(detector.shapes) == 8 + 3


def test_finished_images_that_are_not_used_are_told(tmp_path, detector, caplog):
    root, work = album(tmp_path / "data", range(10, 30)), tmp_path / "work"
    detector.after, detector.do = 10, lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        made(config_of(root, shard_size=40), work)
    caplog.set_level("INFO", logger="kaleido_jax")
    detector.after = 13
    (root / "cat" / "10.png").unlink()
    with pytest.raises(KeyboardInterrupt):
        made(config_of(root, shard_size=40), work)
    assert "1 finished images are no longer among those to annotate, and are not kept" in caplog.text
    made(config_of(root, view_size=16, shard_size=40), work)
    assert "16 images that were finished with other settings are not used" in caplog.text
    assert not list(work.rglob("*.journal"))


def test_a_journal_of_another_job_or_of_another_process_is_not_used(tmp_path):
    path, a, b, c = tmp_path / "a.journal", ("a", "1"), ("b", "1"), ("c", "1")
    with open_journal(path, "one") as first:
        first.append({a: 1, b: 2})
        with open_journal(path, "one") as second:
            second.append({c: 7})
            assert list(second) == []
    with open_journal(path, "one") as again:
        assert list(again) == [a, b] and ("a", "2") not in again
        again.append({c: 3})
        assert again[c] == 3
    with open_journal(path, "other") as other:
        assert list(other) == [] and other.num_other == 3
    with open_journal(path, "one") as again:
        assert [again[key] for key in again] == [1, 2, 3]


# ----------------------------------------------------------------------------------------- before the start
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"bbox": {"kind": "onnx", "model": "absent.onnx"}}, "no file absent.onnx"),
        ({"blob": {"kind": "onnx", "model": "absent.onnx"}}, "no file absent.onnx"),
        ({"blob": {"kind": "sam", "model": "absent"}}, "no model in absent"),
        ({"text": {"kind": "transformers", "model": "absent"}}, "no model in absent"),
        ({"voken": {"kind": "seed", "model": "absent"}}, "no file absent"),
        ({"voken": {"feature": "autoencoder", "feature_model": "absent.npz"}}, "no file absent.npz"),
        ({"voken": {"model": "absent.safetensors"}}, "no quantizer at absent"),
    ],
)
def test_a_missing_model_is_found_before_anything_is_written(tmp_path, monkeypatch, settings, match):
    monkeypatch.undo()
    config = default_config()
    config.data.source, config.data.root = "folder", str(album(tmp_path / "data", range(20)))
    config.model.t5.vocabulary, config.latents.codebook_size, config.annotate.image_size = "emoji", 8, 8
    for segment, fields in settings.items():
        for field, value in fields.items():
            config.annotate[segment][field] = value
    with pytest.raises(UserError, match=match):
        made(validate(config), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_disk_that_is_too_full_is_found_before_anything_is_fitted(tmp_path, monkeypatch, detector):
    root = album(tmp_path / "data", range(20))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="0.0 GB free for .*about 0.0 GB for the records of 20 images of 8 px; free"):
        made(config_of(root), tmp_path / "work")
    assert not detector.shapes and not files(tmp_path / "work", *SHARDS)


# ----------------------------------------------------------------------------------------------- the report
class Odd:
    """Boxes for images of even number only, none for the others."""

    segments, needs, sees, metadata = ("bbox",), (), "view", {"model": "odd", "version": "1"}

    def __call__(self, examples, so_far):
        box = Box(phrase="cat", box=(0, 0, 500, 500))
        return [Latents(bbox=(box,) * (2 * (int(example.id[-5]) % 2 == 0))) for example in examples]


def test_summary_and_report_say_what_the_records_hold_and_what_they_lost(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.OPENERS, ("bbox", "onnx"), lambda settings: Odd())
    root, work = album(tmp_path / "data", range(20), "Käfer"), tmp_path / "work"
    photo(root / "a very long name of one class that says too much" / "50.png", 50)
    photo(root / "a very long name of one class that says too much more" / "51.png", 51)
    photo(root / "Käfer" / "60.png", 60, size=(400, 4))
    config = config_of(root, segments=("text", "bbox", "voken"))
    config = validate(json_with(config, "data", "max_caption_tokens", 8))
    [manifest] = made(config, work).values()
    text = "\n".join(summary(manifest))
    page = write_report(work, num_samples=5, seed=0).read_text()
    for said in (
        "11 images with objects, 10 without; 22 objects, 1.0 an image, at most 2",
        "data.max_caption_tokens = 8",
        "2 images left out, since their caption is too long, ",
        "21 captions with characters that the vocabulary lacks, which read as <unk>: ä",
        "21 text segments with characters that the vocabulary lacks, which were dropped: ä",
        "1 photo more than 4 times as long as wide, of which only the middle square is used",
        "(folder/Käfer/60.png, 400x4 px)",
        "1 photo enlarged, with a side of less than 8 px",
        "more than data.max_caption_tokens = 8 (and the like)",
    ):
        assert said in text, said
        assert said.replace("<", "&lt;").replace(">", "&gt;") in page, said
    longest = max(int(n) for n in manifest.tally["too_long"]["caption"])
    assert f"{longest} tokens at most: data.max_caption_tokens = {longest} keeps all" in text


@pytest.mark.parametrize(
    "lengths", [{"caption": 40, "bbox": 12}, {"bbox": 12, "text": 5, "bbox | text": 9, "caption": 40}]
)
def test_the_longest_latents_are_no_captions_and_may_have_fewer_segments(tmp_path, lengths):
    [manifest] = made(config_of(album(tmp_path / "data", range(20))), tmp_path / "work").values()
    rows = dict(content_rows(replace(manifest, max_tokens=lengths)))
    assert rows["longest caption"].startswith("40 tokens; ") and rows["longest latents"].startswith("12 tokens; ")


def json_with(config, group, field, value):
    plain = json.loads(config.to_json())
    plain[group][field] = value
    return plain
