"""The annotation job: data source -> records with latents. Can be stopped and started again at any time.

A shard is one unit of work; a finished one of the same specification is never made twice. Several processes
can share a job by shard number; the one that finds all shards finished writes the manifest.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from kaleido_jax.annotate import fashion
from kaleido_jax.annotate.quantiser import ResidualQuantiser
from kaleido_jax.annotate.voken import fit_or_load
from kaleido_jax.data.records import (
    VERSION,
    Manifest,
    Record,
    Shard,
    encode_image,
    longest,
    write_atomically,
    write_manifest,
    write_shard,
)
from kaleido_jax.data.sources import Source, open_source
from kaleido_jax.errors import user_error
from kaleido_jax.latents.grammar import SEPARATOR, segment_tokens
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.types import SEGMENTS, check_segments, select
from kaleido_jax.progress import progress as progress_of

QUANTISER = "quantiser.safetensors"
ANNOTATORS = {"fashion": (fashion.annotate, fashion.VERSION)}  # source -> its inference model and version

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """All that every shard needs."""

    folder: Path
    source: Source
    source_config: dict
    annotator: Callable
    version: str
    quantiser: ResidualQuantiser
    tokenizer: Tokenizer
    segments: tuple[str, ...]
    caption_tokens: int
    latents_tokens: int
    shard_size: int

    @property
    def num_shards(self):
        return -(-len(self.source) // self.shard_size)

    def shard_path(self, shard):
        name, split = self.source_config["name"], self.source_config["split"]
        return self.folder / f"{name}-{split}-{shard:05d}-of-{self.num_shards:05d}.array_record"

    def indices(self, shard):
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.source)))

    def specification(self, shard):
        told = {
            "version": VERSION,
            "source": self.source_config,
            "annotator": self.version,
            "quantiser": self.quantiser.fingerprint,
            "vocabulary": self.tokenizer.fingerprint,
            "segments": self.segments,
            "limits": (self.caption_tokens, self.latents_tokens),
            "indices": (self.indices(shard).start, self.indices(shard).stop),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def make_records(
    out_dir: Path | str,
    *,
    source: str,
    split: str,
    num_examples: int,
    seed: int,
    image_size: int,
    tokenizer: Tokenizer,
    vokens_per_image: int = 8,
    codebook: int = 64,
    segments: Sequence[str] = SEGMENTS,
    caption_tokens: int = 128,
    latents_tokens: int = 416,
    shard_size: int = 2048,
    fit_examples: int = 4096,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
) -> Manifest | None:
    """Makes or completes the records of one split in out_dir/split, and out_dir/quantiser.safetensors.

    Args:
      out_dir: folder of all splits.
      source: key of SOURCES, with `split`, `num_examples`, `seed` and `image_size` (px) as of open_source.
      split: "train" or "test".
      num_examples: examples to annotate.
      seed: of the source.
      image_size: px.
      tokenizer: its vocabulary writes the stored tokens.
      vokens_per_image: length of the voken segment.
      codebook: entries of each level's codebook, at most tokenizer.num_vokens.
      segments: which latents to store.
      caption_tokens: examples whose caption is longer (in tokens, eos included) are dropped and counted.
      latents_tokens: the same for the joined segments.
      shard_size: examples a shard.
      fit_examples: training examples on which the quantiser is fitted.
      process_index: this process makes the shards with number = process_index modulo process_count.
      process_count: processes that share the job.
      progress: a bar on a terminal, else a log line every 10 s with rate and remaining time.

    Returns:
      The manifest, or None while other processes' shards are unfinished.

    Raises:
      UserError: unknown names, a codebook that does not fit, no example left, another quantiser in out_dir.
    """
    out_dir = Path(out_dir)
    if source not in ANNOTATORS:
        raise user_error(f"no annotator for {source!r}", f"one of {', '.join(ANNOTATORS)}", "correct the source")
    if codebook > tokenizer.num_vokens:
        raise user_error(f"a codebook of {codebook}", f"at most {tokenizer.num_vokens} voken rows", "lower it")
    config = {
        "name": source,
        "split": split,
        "num_examples": num_examples,
        "seed": seed,
        "image_size": image_size,
    }
    fit = {"source": source, "image_size": image_size, "num_tokens": vokens_per_image, "codebook": codebook}
    quantiser = fit_or_load(out_dir / QUANTISER, **fit, fit_examples=fit_examples)
    job = _Job(
        folder=out_dir / split,
        source=open_source(**config),
        source_config=config,
        annotator=ANNOTATORS[source][0],
        version=ANNOTATORS[source][1],
        quantiser=quantiser,
        tokenizer=tokenizer,
        segments=check_segments(segments),
        caption_tokens=caption_tokens,
        latents_tokens=latents_tokens,
        shard_size=shard_size,
    )
    mine = range(process_index, job.num_shards, process_count)
    waiting = [shard for shard in mine if _finished(job, shard) is None]
    total = sum(len(job.indices(shard)) for shard in waiting)
    with progress_of(f"annotate {source}/{split}", total, "img", progress) as advance:
        for shard in waiting:
            _make_shard(job, shard, advance)
    return _finish(job)


# ---------------------------------------------------------------------------------------------- one shard
def _make_shard(job, shard, advance):
    lengths, dropped, separator = [], [], len(job.tokenizer.encode(SEPARATOR))

    def records():
        for index in job.indices(shard):
            record = _make_record(job, index)
            lengths.append(_lengths(record, job.segments, separator))
            advance(1)
            if _fits(lengths[-1], job):
                yield record
            else:
                lengths.pop()
                dropped.append(record.id)

    written = write_shard(job.shard_path(shard), records())
    done = {
        "specification": job.specification(shard),
        "shard": asdict(written),
        "max_tokens": longest(lengths),
        "dropped": dropped,
    }
    # Written last: its presence is what says that the shard is finished.
    write_atomically(_done_path(job, shard), json.dumps(done, indent=2).encode())


def _make_record(job, index):
    example = job.source[index]
    z = select(job.annotator(example.image, example.caption, job.quantiser), job.segments)
    return Record(
        id=example.id,
        image=encode_image(example.image),
        caption=example.caption,
        caption_tokens=job.tokenizer.encode(example.caption),
        latents=z,
        tokens={s: segment_tokens(z, s, job.tokenizer) for s in job.segments},
        provenance={"annotator": job.version, "quantiser": job.quantiser.fingerprint},
    )


def _lengths(record, segments, separator):
    lengths = {"caption": len(record.caption_tokens) + 1}
    for size in range(1, len(segments) + 1):
        for chosen in itertools.combinations(segments, size):
            content = sum(len(record.tokens[s]) for s in chosen)
            lengths[" | ".join(chosen)] = content + separator * (size - 1) + 1
    return lengths


def _fits(lengths, job):
    joined = lengths.get(" | ".join(job.segments), 0)
    return lengths["caption"] <= job.caption_tokens and joined <= job.latents_tokens


def _done_path(job, shard):
    return job.shard_path(shard).with_suffix(".json")


def _finished(job, shard):
    done_path, path = _done_path(job, shard), job.shard_path(shard)
    if not (done_path.exists() and path.exists()):
        return None
    try:
        done = json.loads(done_path.read_text())
    except ValueError:  # not ours, or damaged: the shard is made again
        return None
    same = done.get("specification") == job.specification(shard)
    return done if same and path.stat().st_size == done["shard"]["bytes"] else None


def _finish(job):
    done = [_finished(job, shard) for shard in range(job.num_shards)]
    if None in done:
        return None
    shards = [Shard(**d["shard"]) for d in done]
    total = sum(s.records for s in shards)
    dropped = sum(len(d["dropped"]) for d in done)
    if not total:
        raise user_error(
            f"all {dropped} examples are too long", f"at most {job.latents_tokens} tokens", "raise the limits"
        )
    manifest = Manifest(
        version=VERSION,
        source=job.source_config,
        annotator=job.version,
        quantiser=job.quantiser.fingerprint,
        vocabulary=job.tokenizer.fingerprint,
        num_vokens=job.tokenizer.num_vokens,
        counts={s: total for s in job.segments},
        max_tokens=longest(d["max_tokens"] for d in done),
        dropped=dropped,
        shards=shards,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_manifest(job.folder, manifest)
    return manifest
