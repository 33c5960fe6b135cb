"""One shard of the annotation job: what it is made from, and the function that makes it wherever it runs.

A shard is one unit of work. Its .array_record is written under a temporary name and renamed, the .json beside it last:
its presence says that the shard is finished. A finished shard of the same job is never made twice.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kaleido_jax.annotate.annotator import Annotator, Failure
from kaleido_jax.annotate.job import agreement
from kaleido_jax.annotate.registry import AnnotatorSettings, open_annotators
from kaleido_jax.data.crop import square_crop
from kaleido_jax.data.records import VERSION, Record, encode_image, longest, write_shard
from kaleido_jax.data.sources.base import Example, Source, open_source
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.types import Latents, select
from kaleido_jax.runtime.files import write_atomically

Advance = Callable[[int], None]  # called with the number of images just done


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that every shard needs, in a form that can be sent to another machine with the same files."""

    folder: Path  # of the manifest; absolute
    shards: str  # folder of the shards inside it; "" = beside the manifest
    source: dict[str, Any]  # keywords of open_source
    annotators: AnnotatorSettings
    tokenizer: Tokenizer
    segments: tuple[str, ...]  # what a record may hold
    required: tuple[str, ...]  # what it must hold; an image without is left out
    image_size: int  # px
    max_caption_tokens: int  # longer captions, in tokens with eos, are left out
    max_latents_tokens: int  # so are longer latents
    shard_size: int  # images of the source to a shard
    batch_size: int  # images given to an annotator at once
    date: str  # in the provenance of every latent

    def path(self, shard: int) -> Path:
        """The shard's file; its number does not depend on how many there are."""
        name = "-".join(part for part in (self.source["name"], self.source["split"]) if part)
        return self.folder / self.shards / f"{name}-{shard:05d}.array_record"

    def told(self) -> dict[str, Any]:
        """What decides the content of a shard, as JSON, but for the annotators' versions. Paths are no part of it."""
        return {
            "version": VERSION,
            "source": source_identity(self.source),
            "annotators": self.annotators.told(self.segments),
            "vocabulary": self.tokenizer.fingerprint,
            "segments": self.segments,
            "required": self.required,
            "image_size": self.image_size,
            "limits": (self.max_caption_tokens, self.max_latents_tokens),
        }


def source_identity(source: dict[str, Any]) -> dict[str, Any]:
    """What of open_source's keywords decides the content of an example; where the data lie and how many does not."""
    return {k: v for k, v in source.items() if k not in ("root", "num_examples")}


class OpenJob:
    """A job with its source and annotators loaded, once in a process."""

    def __init__(self, job: Job):
        """Opens the source and loads the annotators' models.

        Raises:
          UserError: data, weights or a server that are not there.
        """
        self.job = job
        self.source: Source = open_source(**job.source)
        self.annotators: list[Annotator] = open_annotators(job.annotators, job.segments, self.source)
        self.codec = Codec(tokenizer=job.tokenizer, segments=job.segments)
        self.metadata = {s: dict(a.metadata) for a in self.annotators for s in a.segments}
        told = job.told() | {"metadata": self.metadata, "examples": self.source.fingerprint, "date": job.date}
        self.specification = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


_OPEN: list[OpenJob] = []  # at most one: models are large


def open_job(job: Job) -> OpenJob:
    """The job with everything loaded; loaded once where a process asks for the same job again and again."""
    if not (_OPEN and _OPEN[0].job is job):
        _OPEN[:] = [OpenJob(job)]
    return _OPEN[0]


def close_job() -> None:
    """Lets go of what open_job loaded."""
    _OPEN.clear()


def make_shard(job: Job, shard: int, indices: range, advance: Advance = lambda done: None) -> dict:
    """Makes one shard, unless it is finished; what is in the .json beside it.

    Args:
      job: what to make.
      shard: its number.
      indices: of the examples in it.
      advance: told after each batch how many images are done.

    Raises:
      UserError: nothing can be annotated at all (no server, no weights).
    """
    opened = open_job(job)
    found = finished(job, shard, indices, opened.specification)
    if found is not None:
        return found
    notes = _Notes(job)
    batches = (indices[i : i + job.batch_size] for i in range(0, len(indices), job.batch_size))
    records = (record for batch in batches for record in _annotate(opened, batch, notes, advance))
    written = write_shard(job.path(shard), records, job.folder)
    done = {
        "specification": opened.specification,
        "indices": (indices.start, indices.stop),
        "shard": asdict(written),
        "provenance": opened.metadata,
        "counts": dict(notes.counts),
        "max_tokens": longest(notes.lengths),
        "left_out": len(indices) - written.records,
        "failures": sorted(notes.failures, key=lambda failure: failure["id"]),  # in no order of the batches
        "agreement": agreement.tally(notes.measures),
    }
    write_atomically(notes_path(job, shard), json.dumps(done, indent=1).encode())
    return json.loads(json.dumps(done))


def finished(job: Job, shard: int, indices: range, specification: str) -> dict | None:
    """What is in the .json of a finished shard of this job; None if there is none."""
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
    """What the .json beside a shard tells of its images."""

    def __init__(self, job):
        self.failures, self.lengths, self.measures = [], [], []
        self.counts = Counter({s: 0 for s in job.segments})

    def fail(self, example_id, failure):
        self.failures.append({"id": example_id, "segment": failure.segment, "reason": " ".join(failure.reason.split())})


def _annotate(opened: OpenJob, indices: range, notes: _Notes, advance: Advance) -> Iterator[Record]:
    job = opened.job
    examples = [e for e in (_read(opened, index, notes) for index in indices) if e is not None]
    latents = [Latents() for _ in examples]
    for annotator in opened.annotators:
        latents = _run(annotator, examples, latents, notes)
    for example, z in zip(examples, latents, strict=True):
        record = _record(opened, example, z, notes)
        lengths = record and _lengths(record, len(opened.codec.separator))
        if record is not None and _fits(record.id, lengths, job, notes):
            notes.lengths.append(lengths)
            notes.counts.update(record.tokens.keys())
            notes.measures.append(agreement.measure(example, record.latents))
            yield record
    advance(len(indices))


def _read(opened, index, notes) -> Example | None:
    try:
        return square_crop(opened.source[index], opened.job.image_size)
    except UserError as error:
        notes.fail(opened.source.id(index), Failure(segment="image", reason=str(error)))
        return None


def _run(annotator, examples, latents, notes):
    ready = [i for i, z in enumerate(latents) if all(getattr(z, s) is not None for s in annotator.needs)]
    out = list(latents)
    for i in sorted(set(range(len(latents))) - set(ready)):
        missing = next(s for s in annotator.needs if getattr(latents[i], s) is None)
        notes.fail(examples[i].id, Failure(segment=annotator.segments[0], reason=f"needs {missing}, which failed"))
    answers = annotator([examples[i] for i in ready], [latents[i] for i in ready]) if ready else []
    for i, answer in zip(ready, answers, strict=True):
        if isinstance(answer, Failure):
            notes.fail(examples[i].id, answer)
        else:
            out[i] = latents[i].replace(**{s: getattr(answer, s) for s in annotator.segments})
    return out


def _record(opened, example, z, notes) -> Record | None:
    job, tokens, kept = opened.job, {}, Latents()
    for segment in job.segments:
        if getattr(z, segment) is None:
            continue
        try:
            part, tokens[segment] = _tokens(select(z, (segment,)), segment, opened.codec)
            kept = kept.replace(**{segment: getattr(part, segment)})
        except UserError as error:
            notes.fail(example.id, Failure(segment=segment, reason=str(error)))
    if any(segment not in tokens for segment in job.required):
        return None
    return Record(
        id=example.id,
        image=encode_image(example.image),
        caption=example.caption,
        caption_tokens=job.tokenizer.encode(example.caption),
        latents=kept,
        tokens=tokens,
        provenance={s: opened.metadata[s] | {"date": job.date} for s in tokens},
        credit=example.credit,
    )


def _tokens(part: Latents, segment: str, codec: Codec) -> tuple[Latents, list[int]]:
    try:
        return part, codec.segment_tokens(part, segment)
    except UserError:  # mostly characters that the vocabulary has not: "<", "{" in T5's
        part = codec.fit(part)
        return part, codec.segment_tokens(part, segment)


def _fits(example_id, lengths, job, notes):
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


def _lengths(record, separator):
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
