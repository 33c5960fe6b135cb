"""Annotation job: data source -> records with latents. It can be stopped and resumed at any time.

A shard is the unit of work; a finished shard of the same job is not made again. Engines run the same make_shard in this
process, in a pool of processes or on a Ray cluster; when all shards are finished, this process writes the manifest.
"""

import dataclasses
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
from kaleido_jax.config.fields import MAY_CHANGE, marked
from kaleido_jax.config.schema import Annotate, Config, records_size
from kaleido_jax.data.records import VERSION, Manifest, Shard, longest, records_folder, write_manifest
from kaleido_jax.data.sources import source_kind
from kaleido_jax.data.sources.base import Source, SourceKind, SourceSettings
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.runtime.files import make_folder, write_atomically
from kaleido_jax.runtime.progress import progress as progress_of

QUANTIZER = "quantizer.safetensors"
JOB = "job.json"  # settings of the job, and when it was first started
SHARDS = "records"  # folder of the shards, if the manifest is not beside them
_FAILURES_LISTED = 1000  # in the manifest; all of them are beside the shards

log = logging.getLogger(__name__)


def annotate(config: Config, workdir: Path, tokenizer: Tokenizer, *, progress: bool = True) -> dict[Path, Manifest]:
    """Makes or completes the records of config.data with the latents config.annotate.segments.

    A source with splits gets a folder for each split inside records_folder(), with a common quantizer beside them. For
    other sources the manifest is in the workdir, and the shards are in workdir/records.

    Args:
      config: of the experiment.
      workdir: its folder.
      tokenizer: writes the stored tokens.
      progress: a bar on a terminal, else a log line every 10 s with rate and remaining time.

    Returns:
      The folder of each manifest -> the manifest.

    Raises:
      UserError: no such data, an annotator that cannot run, a codebook that does not fit, another quantizer in the
        folder, or no image with all required segments.
    """
    if config.data.source == "records":
        raise user_error("config.data.source = 'records'", "data to annotate, e.g. 'coco'", "set it and data.root")
    kind = source_kind(config.data.source)
    out = (records_folder(config, workdir) if kind.splits else workdir).resolve()
    jobs = [_make_job(config, kind, split, out, tokenizer) for split in kind.splits or (config.data.split,)]
    return {job.folder: run_job(job, config.annotate, progress=progress) for job in jobs}


def _make_job(config: Config, kind: SourceKind, split: str, out: Path, tokenizer: Tokenizer) -> Job:
    settings, latents, size = config.annotate, config.latents, records_size(config)
    if latents.codebook_size > tokenizer.codebook_size:
        found = f"a codebook of {latents.codebook_size}"
        raise user_error(found, f"at most {tokenizer.codebook_size} voken rows", "lower it")
    # Absolute, since workers may have another working directory.
    data = replace(config.data, split=split, root=str(Path(config.data.root).resolve()) if config.data.root else None)
    source = SourceSettings(data=data, seed=config.seed, image_size=size)
    fit_on = replace(source, data=replace(data, split=kind.splits[0] if kind.splits else split))
    codec = Codec(
        tokenizer=tokenizer,
        segments=settings.segments,
        vokens_per_image=latents.vokens_per_image,
        coordinate_step=latents.coordinate_step,
    )
    return Job(
        folder=out / split if kind.splits else out,
        shards="" if kind.splits else SHARDS,
        kind=kind,
        source=source,
        annotators=AnnotatorSettings(
            config=settings,
            source=kind,
            fit_on=fit_on,
            quantizer=out / QUANTIZER,
            vokens_per_image=latents.vokens_per_image,
            codebook_size=latents.codebook_size,
            image_size=size,
        ),
        codec=codec,
        required=settings.required or settings.segments,
        image_size=size,
        max_caption_tokens=config.data.max_caption_tokens,
        max_latents_tokens=latents.max_latents_tokens,
        shard_size=settings.shard_size,
        batch_size=settings.batch_size,
        date=settings.date,
    )


# --------------------------------------------------------------------------------------------- running a job
def run_job(job: Job, settings: Annotate, *, progress: bool = True) -> Manifest:
    """Makes the shards that are not finished, and the manifest.

    Args:
      job: what to make.
      settings: engine, workers and the limit of images.
      progress: as of annotate().

    Raises:
      UserError: something that all images need is missing, or no image is left.
    """
    source = job.kind.open(job.source)
    make_folder(job.folder, "--workdir")  # before a quantizer is fitted, which takes a while
    fit_vokens(job.annotators, job.codec.segments)
    job = replace(job, date=_date_of(job, source))
    number = min(len(source), settings.limit) if settings.limit else len(source)
    class_names, ranges = list(source.class_names), dict(enumerate(shard_ranges(number, job.shard_size)))
    del source  # its tables may be large; each worker has its own
    gpus = sum(share for segment, share in settings.worker_gpus if segment in job.codec.segments)
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
        missing = {shard: ranges[shard] for shard in ranges if done[shard] is None}
        title = "annotate " + "/".join(part for part in (job.kind.name, job.source.data.split) if part)
        with progress_of(title, sum(map(len, missing.values())), "img", progress) as advance:
            for shard, notes in engine.make(missing, advance):
                done[shard] = notes
    return _finish(job, [done[shard] for shard in ranges], class_names)


def _date_of(job: Job, source: Source) -> str:
    """The date in the config, or the day on which this job was first started in its folder.

    It is part of every latent's provenance: with today's date, a job resumed tomorrow would be another job.
    """
    path, metadata = job.folder / JOB, json.loads(json.dumps(job.metadata(source)))
    try:
        stored = json.loads(path.read_text())
        if stored["job"] == metadata and (not job.date or stored["date"] == job.date):
            return stored["date"]
    except (OSError, ValueError, KeyError, TypeError):  # the first start, or a file of another program: written below
        pass
    date = job.date or datetime.now(UTC).date().isoformat()
    make_folder(job.folder, "--workdir")  # nothing has been written before
    write_atomically(path, json.dumps({"job": metadata, "date": date}, indent=2).encode())
    return date


def _finish(job: Job, done: list[dict[str, Any]], class_names: list[str]) -> Manifest:
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
        source=_source_metadata(job),
        class_names=class_names,
        provenance=done[0]["provenance"],
        vocabulary=job.codec.tokenizer.fingerprint,
        codebook_size=job.codec.tokenizer.codebook_size,
        coordinate_step=job.codec.coordinate_step,
        counts={s: counts[s] for s in job.codec.segments},
        max_tokens=longest(d["max_tokens"] for d in done),
        left_out=sum(d["left_out"] for d in done),
        reasons=reasons(failures),
        failures=failures[:_FAILURES_LISTED],
        agreement=agreement.summarize(d["agreement"] for d in done),
        shards=shards,
        date=job.date,
    )
    write_manifest(job.folder, manifest)
    _tidy(job, manifest)
    return manifest


def reasons(failures: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """How many failures there are of each "segment: reason", most first.

    Reasons that differ only in numbers count as one, and those numbers are written as N; a number that all of them
    share, such as a limit, stays.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    texts: dict[tuple[str, ...], list[str]] = {}  # the words between the numbers -> words and numbers in turns
    for failure in failures:
        parts = re.split(r"([0-9]+)", f"{failure['segment']}: {failure['reason']}")
        words = tuple(parts[::2])
        counts[words] += 1
        texts[words] = [a if a == b else "N" for a, b in zip(texts.get(words, parts), parts, strict=True)]
    return {"".join(texts[words]): count for words, count in counts.most_common()}


def _source_metadata(job: Job) -> dict[str, Any]:
    """The settings that selected the examples, without paths of this machine."""
    data = job.source.data
    chosen = {"labels": data.labels, "images": data.images}
    own = getattr(data, job.kind.name, None)  # the kind's own group of fields
    if own is not None:
        free = marked(type(own), MAY_CHANGE)  # such as where an index is kept
        chosen |= {field: value for field, value in dataclasses.asdict(own).items() if field not in free}
    if job.kind.splits:
        chosen["seed"] = job.source.seed
    named = {key: value for key, value in chosen.items() if value not in ((), "")}
    return {"name": job.kind.name, "split": data.split, "image_size": job.image_size} | named


def _tidy(job: Job, manifest: Manifest) -> None:
    """Removes incomplete files of killed workers, and warns of shards of other jobs."""
    folder = job.folder / job.shards
    listed = {job.folder / shard.file for shard in manifest.shards}
    for path in listed:
        for half in [*folder.glob(f".{path.name}.*.tmp"), *folder.glob(f".{path.stem}.json.*.tmp")]:
            half.unlink(missing_ok=True)
    strange = sorted(set(folder.glob("*.array_record")) - listed)
    if strange:
        log.warning("%d shards in %s are of another job, e.g. %s", len(strange), folder, strange[0].name)
