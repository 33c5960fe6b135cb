"""The annotation job: data source -> records with latents. Can be stopped and started again at any time.

A shard is one unit of work; a finished one of the same job is never made twice. Engines run the same make_shard in this
process, in a pool of processes or on a Ray cluster; the process that finds all shards finished writes the manifest.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kaleido_jax.annotate.job import agreement
from kaleido_jax.annotate.job.engines import open_engine
from kaleido_jax.annotate.job.shards import Job, finished, notes_path, shard_ranges
from kaleido_jax.annotate.registry import AnnotatorSettings, fit_vokens
from kaleido_jax.config.schema import Annotate, Config, records_size
from kaleido_jax.data.records import VERSION, Manifest, Shard, longest, write_manifest
from kaleido_jax.data.sources.base import open_source
from kaleido_jax.errors import user_error
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.types import check_segments
from kaleido_jax.runtime.files import make_folder, write_atomically
from kaleido_jax.runtime.progress import progress as progress_of

QUANTIZER = "quantizer.safetensors"
JOB = "job.json"  # what was asked for and when it was started first
SHARDS = "records"  # folder of the shards, where the manifest is not beside them
_FAILURES_TOLD = 1000  # in the manifest; all of them are beside the shards

log = logging.getLogger(__name__)


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
    codebook_size: int = 64,
    segments: Sequence[str] = ("text", "bbox", "blob", "voken"),
    max_caption_tokens: int = 128,
    max_latents_tokens: int = 416,
    annotate: Annotate | None = None,
    shard_size: int | None = None,
    fit_examples: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
) -> Manifest | None:
    """Makes or completes the records of one split of a shipped source in out_dir/split.

    The quantizer is out_dir/quantizer.safetensors, shared by the splits.

    Args:
      out_dir: folder of all splits.
      source: a shipped source, "fashion"; with `split`, `num_examples`, `seed` and `image_size` (px) as of open_source.
      split: "train" or "test".
      num_examples: examples to annotate.
      seed: of the source.
      image_size: px.
      tokenizer: its vocabulary writes the stored tokens.
      vokens_per_image: length of the voken segment.
      codebook_size: entries of each level's codebook, at most tokenizer.codebook_size.
      segments: which latents to store.
      max_caption_tokens: examples whose caption is longer (in tokens, eos included) are left out and counted.
      max_latents_tokens: the same for the joined segments.
      annotate: annotators and engine; None = the defaults.
      shard_size: examples a shard; None = that of `annotate`.
      fit_examples: training examples on which the quantizer is fitted; None = that of `annotate`.
      process_index: this process makes the shards with number = process_index modulo process_count.
      process_count: processes that share the job.
      progress: a bar on a terminal, else a log line every 10 s with rate and remaining time.

    Returns:
      The manifest, or None while other processes' shards are unfinished.

    Raises:
      UserError: unknown names, a codebook that does not fit, no example left, another quantizer in out_dir.
    """
    out_dir, settings = Path(out_dir).resolve(), annotate or Annotate()
    if source != "fashion":
        raise user_error(f"no records of {source!r} by themselves", "the shipped source 'fashion'", "use `annotate`")
    if shard_size:
        settings = replace(settings, shard_size=shard_size)
    if fit_examples:
        settings = replace(settings, voken=replace(settings.voken, fit_examples=fit_examples))
    keywords = {
        "name": source,
        "split": split,
        "num_examples": num_examples,
        "seed": seed,
        "image_size": image_size,
    }
    job = _make_job(
        out_dir / split,
        shards="",
        source=keywords,
        settings=settings,
        quantizer=out_dir / QUANTIZER,
        segments=segments,
        image_size=image_size,
        tokenizer=tokenizer,
        vokens=(vokens_per_image, codebook_size),
        limits=(max_caption_tokens, max_latents_tokens),
    )
    return run_job(job, settings, share=(process_index, process_count), progress=progress)


def annotate_data(config: Config, workdir: Path, tokenizer: Tokenizer, progress: bool = True) -> Manifest:
    """The records of config.data in workdir/records, with workdir/manifest.json.

    Raises:
      UserError: no such data, an annotator that cannot work, or no image of which all that is required was made.
    """
    workdir, size = workdir.resolve(), records_size(config)
    data = config.data
    keywords = {
        "name": data.source,
        "split": data.split,
        "root": str(Path(data.root).resolve()) if data.root else None,
        "labels": data.labels,
        "images": data.images,
        "columns": data.table.columns,
        "licenses": data.coco.licenses,
    }
    job = _make_job(
        workdir,
        shards=SHARDS,
        source=keywords,
        settings=config.annotate,
        quantizer=workdir / QUANTIZER,
        segments=config.annotate.segments,
        image_size=size,
        tokenizer=tokenizer,
        vokens=(config.latents.vokens_per_image, config.latents.codebook_size),
        limits=(data.max_caption_tokens, config.latents.max_latents_tokens),
    )
    return run_job(job, config.annotate, progress=progress)


def _make_job(folder, *, shards, source, settings, quantizer, segments, image_size, tokenizer, vokens, limits) -> Job:
    segments = check_segments(segments)
    if vokens[1] > tokenizer.codebook_size:
        raise user_error(f"a codebook of {vokens[1]}", f"at most {tokenizer.codebook_size} voken rows", "lower it")
    return Job(
        folder=folder,
        shards=shards,
        source=source,
        annotators=AnnotatorSettings(
            config=settings,
            source=source["name"],
            quantizer=quantizer,
            vokens_per_image=vokens[0],
            codebook_size=vokens[1],
            image_size=image_size,
        ),
        tokenizer=tokenizer,
        segments=segments,
        required=settings.required or segments,
        image_size=image_size,
        max_caption_tokens=limits[0],
        max_latents_tokens=limits[1],
        shard_size=settings.shard_size,
        batch_size=settings.batch_size,
        date=settings.date,
    )


def _date_of(job: Job) -> str:
    """The day in the config, or that on which this very job was first started in its folder.

    It is part of every latent's provenance: were it today's, a job that goes on tomorrow would be another one.
    """
    path, told = job.folder / JOB, json.loads(json.dumps(job.told()))
    try:
        stored = json.loads(path.read_text())
        if stored["job"] == told and (not job.date or stored["date"] == job.date):
            return stored["date"]
    except (OSError, ValueError, KeyError, TypeError):  # the first start, or a file that is not ours: written anew
        pass
    date = job.date or datetime.now(UTC).date().isoformat()
    make_folder(job.folder, "--workdir")  # the first that is written
    write_atomically(path, json.dumps({"job": told, "date": date}, indent=2).encode())
    return date


# --------------------------------------------------------------------------------------------- the running
def run_job(job: Job, settings: Annotate, *, share: tuple[int, int] = (0, 1), progress: bool = True) -> Manifest | None:
    """Makes the shards that are not finished, and the manifest when all are.

    Args:
      job: what to make.
      settings: engine, workers and the limit of images.
      share: this process makes the shards with number = share[0] modulo share[1].
      progress: as of make_records.

    Returns:
      The manifest, or None while other processes' shards are unfinished.

    Raises:
      UserError: something is missing for all images, or no image is left.
    """
    source = open_source(**job.source)
    fit_vokens(job.annotators, job.segments, source)
    job = replace(job, date=_date_of(job))
    number = min(len(source), settings.limit) if settings.limit else len(source)
    ranges = dict(enumerate(shard_ranges(number, job.shard_size)))
    del source  # its tables may be large; each worker has its own
    gpus = sum(share_of for segment, share_of in settings.worker_gpus if segment in job.segments)
    with open_engine(
        job,
        engine=settings.engine,
        num_workers=min(settings.num_workers, len(ranges)),
        ray_address=settings.ray_address,
        worker_cpus=settings.worker_cpus,
        worker_gpus=gpus,
    ) as engine:
        specification = engine.specification()
        done = {shard: finished(job, shard, ranges[shard], specification) for shard in ranges}
        mine = {s: r for s, r in ranges.items() if done[s] is None and s % share[1] == share[0]}
        title = "annotate " + "/".join(part for part in (job.source["name"], job.source["split"]) if part)
        with progress_of(title, sum(map(len, mine.values())), "img", progress) as advance:
            for shard, told in engine.make(mine, advance):
                done[shard] = told
        for shard in ranges:  # another process may have finished its share meanwhile
            done[shard] = done[shard] or finished(job, shard, ranges[shard], specification)
    return None if None in done.values() else _finish(job, [done[shard] for shard in ranges])


def _finish(job: Job, done: list[dict]) -> Manifest:
    shards = [Shard(**d["shard"]) for d in done]
    failures = [failure for d in done for failure in d["failures"]]
    if not sum(shard.records for shard in shards):
        reason = f" ({failures[0]['segment']}: {failures[0]['reason']})" if failures else ""
        raise user_error(
            f"none of {sum(d['left_out'] for d in done)} examples has all of {', '.join(job.required)}{reason}",
            "at least one",
            f"see {notes_path(job, 0)}",
        )
    counts = sum((Counter(d["counts"]) for d in done), Counter())
    manifest = Manifest(
        version=VERSION,
        source=_source_told(job),
        provenance=done[0]["provenance"],
        vocabulary=job.tokenizer.fingerprint,
        codebook_size=job.tokenizer.codebook_size,
        counts={s: counts[s] for s in job.segments},
        max_tokens=longest(d["max_tokens"] for d in done),
        left_out=sum(d["left_out"] for d in done),
        reasons=reasons(failures),
        failures=failures[:_FAILURES_TOLD],
        agreement=agreement.summarize(d["agreement"] for d in done),
        shards=shards,
        date=job.date,
    )
    write_manifest(job.folder, manifest)
    _tidy(job, manifest)
    return manifest


def reasons(failures: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """How many failures there are of each "segment: reason", most first; numbers are written as N."""
    counts = Counter(re.sub(r"[0-9]+", "N", f"{f['segment']}: {f['reason']}") for f in failures)
    return dict(counts.most_common())


def _source_told(job) -> dict[str, Any]:
    # Where the data lay on this machine is nobody's business.
    told = {k: v for k, v in job.source.items() if k != "root" and v not in ((), "", None)}
    return {"split": "", "image_size": job.image_size} | told


def _tidy(job, manifest):
    """Removes what killed workers left half written, and names shards that are not of this job."""
    folder = job.folder / job.shards
    listed = {job.folder / shard.file for shard in manifest.shards}
    for path in listed:
        for half in [*folder.glob(f".{path.name}.*.tmp"), *folder.glob(f".{path.stem}.json.*.tmp")]:
            half.unlink(missing_ok=True)
    strange = sorted(set(folder.glob("*.array_record")) - listed)
    if strange:
        log.warning("%d shards in %s are of another job, e.g. %s", len(strange), folder, strange[0].name)
