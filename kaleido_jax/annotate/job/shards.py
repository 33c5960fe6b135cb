"""Shards of the annotation job, its units of work, and the function that makes one in any process.

A shard's .array_record is written under a temporary name and renamed, then the .json beside it, whose presence means
that the shard is finished. A finished shard of the same job is not made again.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kaleido_jax.annotate.annotator import Annotator, Failure
from kaleido_jax.annotate.job import agreement
from kaleido_jax.annotate.registry import AnnotatorSettings, open_annotators
from kaleido_jax.data.crop import square_crop
from kaleido_jax.data.records import VERSION, Record, encode_image, longest, write_shard
from kaleido_jax.data.sources.base import Example, Source, SourceKind, SourceSettings
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.types import Latents, select
from kaleido_jax.runtime.files import write_atomically
from kaleido_jax.runtime.text import readable

# An annotator that raised for this many examples in a row is broken: the job stops.
_BROKEN_AFTER = 32


@runtime_checkable
class Advance(Protocol):
    """Called with the number of images just done."""

    def __call__(self, done: int, /) -> None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a shard needs; can be sent to another machine with the same files."""

    folder: Path  # of the manifest; absolute
    shards: str  # folder of the shards inside it; "" = beside the manifest
    kind: SourceKind
    source: SourceSettings
    annotators: AnnotatorSettings
    codec: Codec  # with the segments that a record may hold
    required: tuple[str, ...]  # segments that a record must hold; other images are left out
    image_size: int  # px
    max_caption_tokens: int  # images with a longer caption, eos included, are left out
    max_latents_tokens: int  # and images with longer latents
    shard_size: int  # images of the source per shard
    batch_size: int  # images given to an annotator at once
    date: str  # in the provenance of every latent

    def path(self, shard: int) -> Path:
        """The shard's file; its number does not depend on how many there are."""
        name = "-".join(part for part in (self.kind.name, self.source.data.split) if part)
        return self.folder / self.shards / f"{name}-{shard:05d}.array_record"

    def metadata(self, source: Source) -> dict[str, Any]:
        """What decides the content of a shard, as JSON, except the annotators' metadata. Paths are not part of it."""
        return {
            "version": VERSION,
            "source": {"name": self.kind.name, "examples": source.fingerprint},
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


def make_shard(job: Job, shard: int, indices: range, advance: Advance = lambda done: None) -> dict[str, Any]:
    """Makes one shard, unless it is finished; returns the content of the .json beside it.

    Any exception while an example is read or annotated becomes a failure of that example, with its reason.

    Args:
      job: what to make.
      shard: its number.
      indices: of the examples in it.
      advance: called after each batch.

    Raises:
      UserError: no image can be annotated (no server, no weights).
      Exception: an annotator raised it for many examples in a row.
    """
    opened = open_job(job)
    found = finished(job, shard, indices, opened.specification)
    if found is not None:
        return found
    notes = _Notes(job.codec.segments)
    batches = (indices[i : i + job.batch_size] for i in range(0, len(indices), job.batch_size))
    records = (record for batch in batches for record in _annotate(opened, batch, notes, advance))
    written = write_shard(job.path(shard), records, job.folder)
    done = {
        "specification": opened.specification,
        "indices": (indices.start, indices.stop),
        "shard": asdict(written),
        "provenance": opened.provenance,
        "counts": dict(notes.counts),
        "max_tokens": longest(notes.lengths),
        "left_out": len(indices) - written.records,
        "failures": sorted(notes.failures, key=lambda failure: failure["id"]),  # independent of the batches
        "agreement": agreement.tally(notes.measures),
    }
    write_atomically(notes_path(job, shard), json.dumps(done, indent=1).encode())
    return json.loads(json.dumps(done))


def finished(job: Job, shard: int, indices: range, specification: str) -> dict[str, Any] | None:
    """The content of the .json of a finished shard of this job; None if the shard is not finished."""
    try:
        done = json.loads(notes_path(job, shard).read_text())
        same = done["specification"] == specification and done["indices"] == [indices.start, indices.stop]
        return done if same and job.path(shard).stat().st_size == done["shard"]["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):  # absent, not ours, or damaged: the shard is made again
        return None


def notes_path(job: Job, shard: int) -> Path:
    """The .json beside a shard."""
    return job.path(shard).with_suffix(".json")


class _Notes:
    """What the .json beside a shard records about its images."""

    def __init__(self, segments: Sequence[str]) -> None:
        self.failures: list[dict[str, str]] = []
        self.lengths: list[dict[str, int]] = []
        self.measures: list[Mapping[str, list[int]]] = []
        self.counts = Counter(dict.fromkeys(segments, 0))
        self.raised_in_a_row: Counter[str] = Counter()  # segment -> examples

    def fail(self, example_id: str, failure: Failure) -> None:
        reason = " ".join(readable(failure.reason).split())
        self.failures.append({"id": example_id, "segment": failure.segment, "reason": reason})


def _reason(error: Exception) -> str:
    """One line about an exception that one example raised."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {readable(str(error))[:200]}"


def _annotate(opened: OpenJob, indices: range, notes: _Notes, advance: Advance) -> Iterator[Record]:
    examples = [e for e in (_read(opened, index, notes) for index in indices) if e is not None]
    latents = [Latents() for _ in examples]
    for annotator in opened.annotators:
        latents = _run(annotator, examples, latents, notes)
    for example, z in zip(examples, latents, strict=True):
        try:
            record = _record(opened, example, z, notes)
            measured = record and agreement.measure(example, record.latents)
        except Exception as error:  # noqa: BLE001  # one row is one failure, whatever it raises
            notes.fail(example.id, Failure(segment="record", reason=_reason(error)))
            continue
        lengths = record and _lengths(record, opened.separator_tokens)
        if record is not None and _fits(record.id, lengths, opened.job, notes):
            notes.lengths.append(lengths)
            notes.counts.update(record.tokens.keys())
            notes.measures.append(measured)
            yield record
    advance(len(indices))


def _read(opened: OpenJob, index: int, notes: _Notes) -> Example | None:
    try:
        example = square_crop(opened.source[index], opened.job.image_size)
        words = {name: readable(getattr(example, name)) for name in ("id", "caption", "credit")}
        return replace(example, **words)
    except Exception as error:  # noqa: BLE001  # one row is one failure, whatever it raises
        notes.fail(_example_id(opened, index), Failure(segment="image", reason=_reason(error)))
        return None


def _example_id(opened: OpenJob, index: int) -> str:
    try:
        return readable(opened.source.id(index))
    except Exception:  # noqa: BLE001  # as above; its number names it as well
        return f"{opened.job.kind.name}/{index:08d}"


def _run(annotator: Annotator, examples: list[Example], latents: list[Latents], notes: _Notes) -> list[Latents]:
    ready = [i for i, z in enumerate(latents) if all(getattr(z, s) is not None for s in annotator.needs)]
    out = list(latents)
    for i in sorted(set(range(len(latents))) - set(ready)):
        missing = next(s for s in annotator.needs if getattr(latents[i], s) is None)
        notes.fail(examples[i].id, Failure(segment=annotator.segments[0], reason=f"needs {missing}, which failed"))
    answers = _ask(annotator, [examples[i] for i in ready], [latents[i] for i in ready], notes) if ready else []
    for i, answer in zip(ready, answers, strict=True):
        if isinstance(answer, Failure):
            notes.fail(examples[i].id, answer)
        else:
            out[i] = latents[i].replace(**{s: getattr(answer, s) for s in annotator.segments})
    return out


def _ask(
    annotator: Annotator, examples: list[Example], so_far: list[Latents], notes: _Notes
) -> Sequence[Latents | Failure]:
    """The annotator's answers; if it raises for the batch, it gets each example alone.

    Raises:
      UserError: no image can be annotated.
      Exception: the annotator raised it for _BROKEN_AFTER examples in a row.
    """
    segment = annotator.segments[0]
    try:
        answers = annotator(examples, so_far)
        notes.raised_in_a_row[segment] = 0
        return answers
    except UserError:
        raise
    except Exception as error:
        if len(examples) > 1:
            return [_ask(annotator, [e], [z], notes)[0] for e, z in zip(examples, so_far, strict=True)]
        notes.raised_in_a_row[segment] += 1
        if notes.raised_in_a_row[segment] >= _BROKEN_AFTER:
            raise
        return [Failure(segment=segment, reason=_reason(error))]


def _record(opened: OpenJob, example: Example, z: Latents, notes: _Notes) -> Record | None:
    job, tokens, kept = opened.job, {}, Latents()
    for segment in job.codec.segments:
        if getattr(z, segment) is None:
            continue
        try:
            part, tokens[segment] = _tokens(select(z, (segment,)), segment, job.codec)
            kept = kept.replace(**{segment: getattr(part, segment)})
        except UserError as error:
            notes.fail(example.id, Failure(segment=segment, reason=str(error)))
    if any(segment not in tokens for segment in job.required):
        return None
    return Record(
        id=example.id,
        image=encode_image(example.image),
        caption=example.caption,
        caption_tokens=job.codec.tokenizer.encode(example.caption),
        latents=kept,
        tokens=tokens,
        provenance={s: opened.provenance[s] | {"date": job.date} for s in tokens},
        credit=example.credit,
        shorter_side_px=example.shorter_side_px,
    )


def _tokens(part: Latents, segment: str, codec: Codec) -> tuple[Latents, list[int]]:
    part = codec.snap(part)
    try:
        return part, codec.segment_tokens(part, segment)
    except UserError:  # mostly characters that the vocabulary lacks: "<" and "{" in T5's
        part = codec.fit(part)
        return part, codec.segment_tokens(part, segment)


def _fits(example_id: str, lengths: Mapping[str, int], job: Job, notes: _Notes) -> bool:
    joined = max((n for what, n in lengths.items() if what != "caption"), default=0)
    for what, found, allowed, field in (
        ("caption", lengths["caption"], job.max_caption_tokens, "data.max_caption_tokens"),
        ("latents", joined, job.max_latents_tokens, "latents.max_latents_tokens"),
    ):
        if found > allowed:
            reason = f"{what} of {found} tokens, more than {field} = {allowed}"
            notes.fail(example_id, Failure(segment="length", reason=reason))
            return False
    return True


def _lengths(record: Record, separator: int) -> dict[str, int]:
    """Tokens with eos of the caption and of every combination of segments."""
    lengths, counts = {"caption": len(record.caption_tokens) + 1}, {s: len(ids) for s, ids in record.tokens.items()}
    for size in range(1, len(counts) + 1):
        for chosen in itertools.combinations(counts, size):
            lengths[" | ".join(chosen)] = sum(counts[s] for s in chosen) + separator * (size - 1) + 1
    return lengths


def shard_ranges(num_examples: int, shard_size: int) -> list[range]:
    """The indices of each shard.

    Raises:
      UserError: there is nothing to annotate.
    """
    if num_examples < 1:
        raise user_error("a source without examples", "at least one", "correct config.data")
    return [range(start, min(start + shard_size, num_examples)) for start in range(0, num_examples, shard_size)]
