"""Shards of the annotation job, its units of work, and the function that makes one in any process.

The finished images of the shard in hand are in its journal. The .array_record is written under a temporary name and
renamed, then the .json beside it, whose presence means that the shard is finished; then the journal goes. A finished
shard of the same job is not made again.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from kaleido_jax.annotate.annotator import Annotator, Failure
from kaleido_jax.annotate.job import agreement, tally
from kaleido_jax.annotate.job.journal import SUFFIX, Journal, Key, open_journal
from kaleido_jax.annotate.registry import AnnotatorSettings, open_annotators
from kaleido_jax.data.crop import crop_image, square_crop
from kaleido_jax.data.records import VERSION, Record, encode_image, longest, pack, write_shard
from kaleido_jax.data.sources.base import (
    Example,
    GrowingSource,
    Source,
    SourceKind,
    SourceSettings,
    with_uniform_words,
)
from kaleido_jax.errors import UserError
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.grammar import serialize
from kaleido_jax.latents.types import Latents, select
from kaleido_jax.runtime.files import write_atomically
from kaleido_jax.runtime.text import readable, uniform

LARGEST_VIEW_PX = 1024  # of a photo's own size; an album of 24 megapixels would want 70 MB for each image of a batch
# An annotator that raised for this many examples in a row is broken: the job stops.
_BROKEN_AFTER = 32
_NOTES_VERSION = 2  # of the .json beside a shard


class Stopped(Exception):
    """The user asked to stop; what is finished is kept."""


class Place(NamedTuple):
    """Which shard: the split of the records (\"\" = they have none), and its number there."""

    split: str
    number: int


@runtime_checkable
class Advance(Protocol):
    """Called with the number of images just done."""

    def __call__(self, done: int, /) -> None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a shard needs; can be sent to another machine with the same files."""

    folder: Path  # of the manifest, or of the folders of `splits`, each with a manifest; absolute
    shards: str  # folder of the shards inside it; "" = beside the manifest
    kind: SourceKind
    source: SourceSettings
    annotators: AnnotatorSettings
    codec: Codec  # with the segments that a record may hold
    required: tuple[str, ...]  # segments that a record must hold; other images are left out
    image_size: int  # px
    view_size: int  # px of the crop that annotators see; 0 = the photo's own, LARGEST_VIEW_PX at most
    max_caption_tokens: int  # images with a longer caption, eos included, are left out
    max_latents_tokens: int  # and images with longer latents
    shard_size: int  # images of the source per shard
    batch_size: int  # images given to an annotator at once
    date: str  # in the provenance of every latent
    held_out_share: float = 0.0  # of the images, in a split of their own
    splits: tuple[str, ...] = ("",)  # of the records

    def manifest_folder(self, split: str) -> Path:
        """The folder of a split's manifest."""
        return self.folder / split

    def path(self, place: Place) -> Path:
        """The shard's file; its number does not depend on how many there are."""
        name = "-".join(part for part in (self.kind.name, place.split or self.source.data.split) if part)
        return self.manifest_folder(place.split) / self.shards / f"{name}-{place.number:05d}.array_record"

    def metadata(self, source: Source) -> dict[str, Any]:
        """What decides the content of all shards, as JSON, except the annotators' metadata and the images.

        Paths are not part of it.
        """
        examples = {"examples": source.fingerprint} if self.kind.splits else {}  # else by the version of each
        own = {}
        if self.view_size != self.image_size:
            own["view_size"] = self.view_size or [0, LARGEST_VIEW_PX]
        if self.held_out_share:
            own["held_out_share"] = self.held_out_share
        return own | {
            "version": VERSION,
            "source": {"name": self.kind.name} | examples,
            "annotators": self.annotators.metadata(self.codec.segments),
            "vocabulary": self.codec.tokenizer.fingerprint,
            "coordinate_step": self.codec.coordinate_step,
            "segments": self.codec.segments,
            "required": self.required,
            "image_size": self.image_size,
            "limits": (self.max_caption_tokens, self.max_latents_tokens),
        }


class OpenJob:
    """A job with its source and annotators loaded, once per process."""

    def __init__(self, job: Job) -> None:
        """Opens the source and loads the annotators' models.

        Raises:
          UserError: data, weights or a server are missing.
        """
        self.job = job
        self.source: Source = job.kind.open(job.source)
        self.class_names = frozenset(map(uniform, self.source.class_names))
        self.annotators: list[Annotator] = open_annotators(job.annotators, job.codec.segments)
        self.separator_tokens = len(job.codec.separator)
        self.provenance = {s: dict(a.metadata) for a in self.annotators for s in a.segments}
        metadata = job.metadata(self.source) | {"annotated_by": self.provenance, "date": job.date}
        self.specification = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


_OPEN: list[OpenJob] = []  # at most one: models are large


def open_job(job: Job) -> OpenJob:
    """The job with everything loaded; repeated calls with the same job load it once."""
    if not (_OPEN and _OPEN[0].job is job):
        _OPEN[:] = [OpenJob(job)]
    return _OPEN[0]


def close_job() -> None:
    """Frees what open_job loaded."""
    _OPEN.clear()


def make_shard(job: Job, place: Place, indices: Sequence[int], advance: Advance = lambda done: None) -> dict[str, Any]:
    """Makes one shard, unless it is finished; returns the content of the .json beside it.

    Any exception while an example is read or annotated becomes a failure of that example, with its reason.

    Args:
      job: what to make.
      place: which shard.
      indices: of the examples in it.
      advance: called with 0, with the number of images that a stopped job has left finished, and after each batch;
        whatever it raises ends the work.

    Raises:
      UserError: no image can be annotated (no server, no weights).
      Exception: an annotator raised it for many examples in a row.
    """
    opened, path = open_job(job), job.path(place)
    advance(0)
    indices = list(map(int, indices))
    keys = [(example_id(opened, i), version_of(opened.source, i)) for i in indices]
    members = dict(keys)
    found = finished(job, place, opened.specification)
    if found is not None and found["members"] == members and not found.get("again"):
        return found
    with open_journal(path.with_suffix(SUFFIX), opened.specification) as journal:
        notes = _Notes(job.codec.segments)
        entries = _entries(opened, indices, keys, journal, notes.raised_in_a_row, advance)
        packed = (entry["record"] for entry in map(notes.add, entries) if entry["record"] is not None)
        written = write_shard(path, packed, job.manifest_folder(place.split))
        done = {
            "notes_version": _NOTES_VERSION,
            "specification": opened.specification,
            "indices": _runs(indices),  # when it was made: where to look first
            "members": members,
            "shard": asdict(written),
            "provenance": opened.provenance,
            "counts": dict(notes.counts),
            "max_tokens": longest(notes.lengths),
            "without_record": notes.without_record,
            "again": notes.again,
            "failures": sorted(notes.failures, key=lambda failure: failure["id"]),  # independent of the batches
            "agreement": agreement.tally(notes.measures),
            "tally": tally.add(notes.tallies),
            "narrow": notes.narrow,
        }
        write_atomically(path.with_suffix(".json"), json.dumps(done, indent=1).encode())
        path.with_suffix(SUFFIX).unlink(missing_ok=True)
    return json.loads(json.dumps(done))


def _entries(
    opened: OpenJob,
    indices: Sequence[int],
    keys: Sequence[Key],
    journal: Journal,
    raised_in_a_row: Counter[str],
    advance: Advance,
) -> Iterator[dict[str, Any]]:
    """The entry of each image, in their order: from the journal, or made in batches of those that it lacks."""
    missing = [n for n, key in enumerate(keys) if key not in journal]
    if len(missing) < len(keys):
        advance(len(keys) - len(missing))
    lacked, made = set(missing), {}
    for number, key in enumerate(keys):
        if number not in lacked:
            yield journal[key]
            continue
        if number not in made:
            batch, missing = missing[: opened.job.batch_size], missing[opened.job.batch_size :]
            entries = _annotate(opened, [indices[n] for n in batch], raised_in_a_row)
            journal.append({keys[n]: entry for n, entry in zip(batch, entries, strict=True) if not entry["again"]})
            advance(len(batch))
            made |= zip(batch, entries, strict=True)
        yield made.pop(number)


def finished(job: Job, place: Place, specification: str) -> dict[str, Any] | None:
    """The content of the .json of a finished shard of this job; None if the shard is not finished."""
    try:
        done = json.loads(notes_path(job, place).read_text())
        same = done["specification"] == specification and done["notes_version"] == _NOTES_VERSION
        return done if same and job.path(place).stat().st_size == done["shard"]["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):  # absent, not ours, or damaged: the shard is made again
        return None


def notes_path(job: Job, place: Place) -> Path:
    """The .json beside a shard."""
    return job.path(place).with_suffix(".json")


def version_of(source: Source, index: int) -> str:
    """Changes with what decides one example, as far as the source knows."""
    return source.version(index) if isinstance(source, GrowingSource) else source.fingerprint


def example_id(opened: OpenJob, index: int) -> str:
    """The id of an example; its number, if the source raises for it."""
    return readable_id(opened.source, opened.job.kind.name, index)


def readable_id(source: Source, kind: str, index: int) -> str:
    """The id of an example of a source of this kind; its number, if the source raises for it."""
    try:
        return readable(source.id(index))
    except Exception:  # noqa: BLE001  # one row is one failure, whatever it raises
        return f"{kind}/{index:08d}"


def _runs(indices: Sequence[int]) -> list[list[int]]:
    """[[first, last + 1], ...] of the runs of numbers that follow each other."""
    numbers = np.asarray(indices)
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [[int(part[0]), int(part[-1]) + 1] for part in parts]


class _Notes:
    """What the .json beside a shard records about its images."""

    def __init__(self, segments: Sequence[str]) -> None:
        self.failures: list[dict[str, str]] = []
        self.lengths: list[dict[str, int]] = []
        self.measures: list[Mapping[str, list[int]]] = []
        self.tallies: list[Mapping[str, Any]] = []
        self.narrow: list[dict[str, Any]] = []
        self.without_record: list[str] = []
        self.again: list[str] = []  # of these, those that the next run asks about again
        self.counts = Counter(dict.fromkeys(segments, 0))
        self.raised_in_a_row: Counter[str] = Counter()  # segment -> examples

    def add(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Counts an image; returns its entry."""
        self.failures += ({"id": entry["id"], **failure} for failure in entry["failures"])
        if entry["again"]:  # counted when its answer is there
            self.without_record.append(entry["id"])
            self.again.append(entry["id"])
            return entry
        self.tallies.append(entry["tally"])
        self.narrow += entry["narrow"]
        if entry["record"] is None:
            self.without_record.append(entry["id"])
        else:
            self.lengths.append(entry["lengths"])
            self.measures.append(entry["measured"])
            self.counts.update(entry["segments"])
        return entry


class _Image:
    """An image on its way to a record, and what becomes of it."""

    def __init__(self, id: str) -> None:
        self.z = Latents()
        self.waits = False  # a question about it may have an answer later
        self.seen: dict[str, Example] = {}  # what an annotator sees -> the crop; empty if it cannot be read
        self.entry: dict[str, Any] = {"id": id, "record": None, "failures": [], "tally": {}, "narrow": []}

    def fail(self, segment: str, reason: str) -> None:
        self.entry["failures"].append({"segment": segment, "reason": " ".join(readable(reason).split())})

    def count(self, counts: Mapping[str, Any]) -> None:
        self.entry["tally"] = tally.add([self.entry["tally"], counts])


def _reason(error: Exception) -> str:
    """One line about an exception that one example raised."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {readable(str(error))[:200]}"


def _annotate(opened: OpenJob, indices: Sequence[int], raised_in_a_row: Counter[str]) -> list[dict[str, Any]]:
    """The entries of a batch, as the journal keeps them."""
    images = [_read(opened, index) for index in indices]
    readable_ones = [image for image in images if image.seen]
    for annotator in opened.annotators:
        _run(annotator, readable_ones, raised_in_a_row)
    for image in readable_ones:
        try:
            _make_record(opened, image)
        except Exception as error:  # noqa: BLE001  # one row is one failure, whatever it raises
            image.fail("record", _reason(error))
    for image in images:
        image.entry["again"] = image.waits and image.entry["record"] is None
    return [image.entry for image in images]


def _read(opened: OpenJob, index: int) -> _Image:
    image, job = _Image(example_id(opened, index)), opened.job
    try:
        whole = opened.source[index]
        image.count({"shape": tally.shape_of(whole, job.image_size)})
        height, width = whole.image.shape[:2]
        if "narrow" in image.entry["tally"]["shape"]:
            image.entry["narrow"] = [{"id": image.entry["id"], "width": width, "height": height}]
        size_px = job.view_size or min(height, width, LARGEST_VIEW_PX)
        view = with_uniform_words(square_crop(whole, size_px))
        view = replace(view, id=readable(view.id), credit=readable(view.credit))
        stored = view
        if size_px != job.image_size:
            stored = replace(view, image=crop_image(whole.image, job.image_size), objects=())
        image.count(tally.nameless_in(view))
        image.seen = {"view": view, "record": stored}
    except Exception as error:  # noqa: BLE001  # one row is one failure, whatever it raises
        image.fail("image", _reason(error))
    return image


def _run(annotator: Annotator, images: list[_Image], raised_in_a_row: Counter[str]) -> None:
    ready = []
    for image in images:
        missing = [s for s in annotator.needs if getattr(image.z, s) is None]
        if missing:
            image.fail(annotator.segments[0], f"needs {missing[0]}, which failed")
        else:
            ready.append(image)
    answers = _ask(annotator, ready, raised_in_a_row) if ready else []
    for image, answer in zip(ready, answers, strict=True):
        if isinstance(answer, Failure):
            image.fail(answer.segment, answer.reason)
            image.waits |= answer.again
        else:
            image.z = image.z.replace(**{s: getattr(answer, s) for s in annotator.segments})


def _ask(annotator: Annotator, images: list[_Image], raised_in_a_row: Counter[str]) -> Sequence[Latents | Failure]:
    """The annotator's answers; if it raises for the batch, it gets each example alone.

    Raises:
      UserError: no image can be annotated.
      Exception: the annotator raised it for _BROKEN_AFTER examples in a row.
    """
    segment = annotator.segments[0]
    try:
        answers = annotator([image.seen[annotator.sees] for image in images], [image.z for image in images])
        raised_in_a_row[segment] = 0
        return answers
    except UserError:
        raise
    except Exception as error:
        if len(images) > 1:
            return [_ask(annotator, [image], raised_in_a_row)[0] for image in images]
        raised_in_a_row[segment] += 1
        if raised_in_a_row[segment] >= _BROKEN_AFTER:
            raise
        return [Failure(segment=segment, reason=_reason(error))]


def _make_record(opened: OpenJob, image: _Image) -> None:
    """Fills the entry of an image that becomes a record."""
    job, stored, tokens, kept = opened.job, image.seen["record"], {}, Latents()
    words, dropped = {"caption": stored.caption}, {}
    for segment in job.codec.segments:
        if getattr(image.z, segment) is None:
            continue
        try:
            made = job.codec.snap(select(image.z, (segment,)))
            part, tokens[segment] = _tokens(made, segment, job.codec)
            kept = kept.replace(**{segment: getattr(part, segment)})
            if part != made:
                words[segment] = serialize(made, (segment,))
                dropped |= tally.dropped_from(made, part)
        except UserError as error:
            image.fail(segment, str(error))
    if any(segment not in tokens for segment in job.required):
        return
    caption_tokens = job.codec.tokenizer.encode(stored.caption)
    lengths = _lengths(caption_tokens, tokens, opened.separator_tokens)
    if not _fits(image, lengths, job):
        return
    record = Record(
        id=stored.id,
        image=encode_image(stored.image),
        caption=stored.caption,
        caption_tokens=caption_tokens,
        latents=kept,
        tokens=tokens,
        provenance={s: opened.provenance[s] | {"date": job.date} for s in tokens},
        credit=stored.credit,
        shorter_side_px=stored.shorter_side_px,
    )
    measured = agreement.measure(image.seen["view"], kept)
    counts = {"objects": tally.objects_of(kept)} | tally.unknown_in(words, job.codec.tokenizer)
    if dropped:
        counts["dropped"] = dropped
    if not stored.caption.strip():
        counts["empty"] = {"caption": 1}
    if stored.caption in opened.class_names:
        counts["classes"] = {stored.caption: 1}
    image.count(counts)
    image.entry |= {"lengths": lengths, "measured": measured, "segments": list(tokens), "record": pack(record)}


def _tokens(part: Latents, segment: str, codec: Codec) -> tuple[Latents, list[int]]:
    try:
        return part, codec.segment_tokens(part, segment)
    except UserError:  # mostly characters that the vocabulary lacks: "<" and "{" in T5's
        part = codec.fit(part)
        return part, codec.segment_tokens(part, segment)


def _fits(image: _Image, lengths: Mapping[str, int], job: Job) -> bool:
    joined = max((n for what, n in lengths.items() if what != "caption"), default=0)
    for what, found, allowed, field in (
        ("caption", lengths["caption"], job.max_caption_tokens, "data.max_caption_tokens"),
        ("latents", joined, job.max_latents_tokens, "latents.max_latents_tokens"),
    ):
        if found > allowed:
            image.count({"too_long": {what: {str(found): 1}}})
            image.fail("length", f"{what} of {found} tokens, more than {field} = {allowed}")
            return False
    return True


def _lengths(caption_tokens: Sequence[int], tokens: Mapping[str, list[int]], separator: int) -> dict[str, int]:
    """Tokens with eos of the caption and of every combination of segments."""
    lengths, counts = {"caption": len(caption_tokens) + 1}, {s: len(ids) for s, ids in tokens.items()}
    for size in range(1, len(counts) + 1):
        for chosen in itertools.combinations(counts, size):
            lengths[" | ".join(chosen)] = sum(counts[s] for s in chosen) + separator * (size - 1) + 1
    return lengths
