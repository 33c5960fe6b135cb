"""Annotation job: data source -> records with latents. It can be stopped and resumed at any time.

A shard is the unit of work; a finished shard of the same job is not made again, and more images become more shards.
Engines run the same make_shard in this process, in a pool of processes or on a Ray cluster; when all shards are
finished, this process writes the manifests.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.annotate.job import agreement, tally
from kaleido_jax.annotate.job.engines import Engine, open_engine
from kaleido_jax.annotate.job.journal import SUFFIX
from kaleido_jax.annotate.job.plan import Plan, keep_finished, make_plan, num_finished
from kaleido_jax.annotate.job.shards import Job, Place, Stopped, notes_path
from kaleido_jax.annotate.registry import AnnotatorSettings, check_models, fit_vokens
from kaleido_jax.config.fields import MAY_CHANGE, marked
from kaleido_jax.config.schema import Annotate, Config, records_size
from kaleido_jax.data.crop import crop_image
from kaleido_jax.data.held_out import SPLITS, TEST
from kaleido_jax.data.records import (
    MANIFEST,
    VERSION,
    Manifest,
    Shard,
    encode_image,
    longest,
    records_folder,
    write_manifest,
)
from kaleido_jax.data.sources import source_kind
from kaleido_jax.data.sources.base import GrowingSource, Source, SourceKind, SourceSettings
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.runtime.files import make_folder, write_atomically
from kaleido_jax.runtime.progress import progress as progress_of
from kaleido_jax.runtime.signals import StopSignal
from kaleido_jax.runtime.text import uniform

QUANTIZER = "quantizer.safetensors"
JOB = "job.json"  # settings of the job, and when it was first started
SHARDS = "records"  # folder of the shards, if the manifest is not beside them
_FAILURES_LISTED = 1000  # in the manifest; all of them are beside the shards
_NARROW_LISTED = 100
_WEIGHED = 8  # images whose records are weighed before a disk is filled
_TEXT_BYTES = 1000  # of a record, beside its image
_FITTED = 500  # finished images, or half of all, from which on the vokens' quantizer stays though photos come or go
_SLACK = 0.8  # share of the estimated bytes that must fit; the weighed images may be larger than most

log = logging.getLogger(__name__)


def annotate(config: Config, workdir: Path, tokenizer: Tokenizer, *, progress: bool = True) -> dict[Path, Manifest]:
    """Makes, completes or extends the records of config.data with the latents config.annotate.segments.

    A source with splits gets a folder for each split inside records_folder(), with a common quantizer beside them. With
    config.annotate.held_out_share, other sources get workdir/records/train and workdir/records/test; without, the
    manifest is in the workdir and the shards are in workdir/records.

    Args:
      config: of the experiment.
      workdir: its folder.
      tokenizer: writes the stored tokens.
      progress: a bar on a terminal, else a log line every 10 s with rate and remaining time.

    Returns:
      The folder of each manifest -> the manifest.

    Raises:
      UserError: no such data, an annotator that cannot run, a codebook that does not fit, another quantizer in the
        folder, images that are gone or have changed, a disk that is too full, or no image with all required segments.
      KeyboardInterrupt: the user stopped it; what is finished is kept.
    """
    if config.data.source == "records":
        raise user_error("config.data.source = 'records'", "data to annotate, e.g. 'coco'", "set it and data.root")
    kind, share = source_kind(config.data.source), config.annotate.held_out_share
    if share and kind.splits:
        found = f"config.annotate.held_out_share = {share} with the source {kind.name}"
        raise user_error(found, f"0, since it has the splits {', '.join(kind.splits)}", "set it to 0")
    check_models(config.annotate, config.annotate.segments)
    if kind.splits:
        out = records_folder(config, workdir).resolve()
    else:
        _check_layout(workdir, share)
        out = (workdir / SHARDS if share else workdir).resolve()
    jobs = [_make_job(config, kind, split, out, tokenizer) for split in kind.splits or (config.data.split,)]
    made: dict[Path, Manifest] = {}
    for job in jobs:
        made |= run_job(job, config.annotate, progress=progress)
    return made


def _check_layout(workdir: Path, share: float) -> None:
    """Refuses to make records without a held-out share beside records with one, and the reverse."""
    # os.path's, to which a path that cannot be is one that does not exist
    stored = [split for split in SPLITS if os.path.exists(workdir / SHARDS / split / MANIFEST)]
    do = "use another --workdir, or delete {} and " + str(workdir / SHARDS)
    if share and os.path.exists(workdir / MANIFEST):
        found = f"{workdir} has records of which no share is held out"
        raise user_error(found, "config.annotate.held_out_share = 0", do.format(workdir / MANIFEST))
    if stored and not share:
        found = f"{workdir / SHARDS} has records of which a share is held out ({', '.join(stored)})"
        do = f"set it, use another --workdir, or delete {workdir / SHARDS}"
        raise user_error(found, "that config.annotate.held_out_share", do)


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
    share = settings.held_out_share
    return Job(
        folder=out / split if kind.splits else out,
        shards="" if kind.splits or share else SHARDS,
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
            held_out_share=share,
        ),
        codec=codec,
        required=settings.required or settings.segments,
        image_size=size,
        # A generated image is drawn at the records' size.
        view_size=settings.view_size or (size if kind.splits else 0),
        max_caption_tokens=config.data.max_caption_tokens,
        max_latents_tokens=latents.max_latents_tokens,
        shard_size=settings.shard_size,
        batch_size=settings.batch_size,
        date=settings.date,
        held_out_share=share,
        splits=SPLITS if share else ("",),
    )


# --------------------------------------------------------------------------------------------- running a job
def run_job(job: Job, settings: Annotate, *, progress: bool = True) -> dict[Path, Manifest]:
    """Makes the shards that are not finished, and the manifests; returns these by their folders.

    Args:
      job: what to make.
      settings: engine, workers and the limit of images.
      progress: as of annotate().

    Raises:
      UserError: something that all images need is missing, or no image is left.
      KeyboardInterrupt: the user stopped it.
    """
    source = job.kind.open(job.source)
    if job.held_out_share and not isinstance(source, GrowingSource):
        found = f"config.annotate.held_out_share = {job.held_out_share} with the source {job.kind.name}"
        raise user_error(found, "a source with image_bytes() and version()", "set it to 0, or add these methods")
    make_folder(job.folder, "--workdir")  # before a quantizer is fitted, which takes a while
    number = min(len(source), settings.limit) if settings.limit else len(source)
    started = any(list(notes_path(job, Place(split, 0)).parent.glob("*-*.json")) for split in job.splits)
    if not started:
        _check_space(job, source, number)
    # A quantizer of other photos would make another job of all that is finished.
    finished_ones = 0 if started else num_finished(job)
    fitted = started or finished_ones >= _FITTED or 2 * finished_ones >= number
    fit_vokens(job.annotators, job.codec.segments, started=fitted)
    job = replace(job, date=_date_of(job, source))
    gpus = sum(share for segment, share in settings.worker_gpus if segment in job.codec.segments)
    with open_engine(
        job,
        engine=settings.engine,
        num_workers=min(settings.num_workers, -(-number // job.shard_size)),
        ray_address=settings.ray_address,
        worker_cpus=settings.worker_cpus,
        worker_gpus=gpus,
    ) as engine:
        specification = engine.specification()
        plan = make_plan(job, source, specification, shard_size=job.shard_size, limit=settings.limit)
        keep_finished(job, source, specification, plan)
        class_names, total = list(map(uniform, source.class_names)), sum(map(len, plan.todo.values()))
        kept = plan.num_done
        if kept and total:
            log.info("%d images are annotated already and stay as they are; %d are to do", kept, total)
        if settings.limit and kept > settings.limit:
            log.info("annotate.limit = %d is less than the %d images that have been annotated", settings.limit, kept)
        if started and total:
            _check_space(job, source, total)
        del source  # its tables may be large; each worker has its own
        plan.done.update(_make(job, engine, plan, progress))
    return _finish(job, plan.done, class_names)


def _make(job: Job, engine: Engine, plan: Plan, progress: bool) -> dict[Place, dict[str, Any]]:
    """Makes the shards of a plan; their contents of the .json beside each.

    Raises:
      KeyboardInterrupt: the user stopped it.
    """
    made, finished_images, total = {}, 0, sum(map(len, plan.todo.values()))
    title = "annotate " + "/".join(part for part in (job.kind.name, job.source.data.split) if part)
    with StopSignal("after the images in hand") as stop, progress_of(title, total, "img", progress) as advance:

        def count(done: int) -> None:
            nonlocal finished_images
            finished_images += done
            advance(done)

        try:
            for place, notes in engine.make(plan.todo, count, lambda: stop.asked):
                made[place] = notes
            if stop.asked:  # while the last shard was written: otherwise more would follow
                raise Stopped
        except Stopped:
            log.info(
                "stopped as asked: %d of %d images are kept; the same command goes on from there",
                plan.num_done + finished_images,
                plan.num_done + total,
            )
            raise stop.as_error() from None
    return made


def _check_space(job: Job, source: Source, number: int) -> None:
    """Checks roughly that the records of `number` images fit on the disk.

    Raises:
      UserError: they do not.
    """
    weights = []
    for index in np.linspace(0, len(source) - 1, min(_WEIGHED, len(source))).astype(int).tolist():
        try:
            weights.append(len(encode_image(crop_image(source[index].image, job.image_size))) + _TEXT_BYTES)
        except Exception:  # noqa: BLE001  # it is counted when the example's shard is made
            continue
    needed = int(np.mean(weights) * number) if weights else 0
    free = shutil.disk_usage(job.folder).free
    if _SLACK * needed > free:
        raise user_error(
            f"{free / 1e9:,.1f} GB free for {job.folder}",
            f"about {needed / 1e9:,.1f} GB for the records of {number:,} images of {job.image_size} px",
            "free some, or name another --workdir",
        )


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


def _finish(job: Job, done: Mapping[Place, dict[str, Any]], class_names: list[str]) -> dict[Path, Manifest]:
    manifests = {}
    for split in job.splits:
        notes = [done[place] for place in sorted(done) if place.split == split]
        if split == TEST and not sum(d["shard"]["records"] for d in notes):
            images = sum(d["shard"]["records"] for d in done.values())
            log.warning("no image of %d is in the held-out share of %s: no test split", images, job.held_out_share)
            continue
        manifests[job.manifest_folder(split)] = _write_manifest(job, split, notes, class_names)
    return manifests


def _without(job: Job, failures: list[dict[str, Any]]) -> str:
    """What to do if a segment that is required fails everywhere, or ""."""
    failed = {failure["segment"] for failure in failures} & set(job.required)
    names = [segment for segment in job.required if segment in failed]
    return f"take {', '.join(names)} out of annotate.segments, give the data what is missing, or " if names else ""


def _write_manifest(job: Job, split: str, done: list[dict[str, Any]], class_names: list[str]) -> Manifest:
    shards = [Shard(**d["shard"]) for d in done]
    failures = [failure for d in done for failure in d["failures"]]
    left_out = sum(len(d["without_record"]) for d in done)
    if not sum(shard.records for shard in shards):
        reason = f" ({failures[0]['segment']}: {failures[0]['reason']})" if failures else ""
        raise user_error(
            f"none of {left_out} examples has all of {', '.join(job.required)}{reason}",
            "at least one",
            f"{_without(job, failures)}see {notes_path(job, Place(split, 0))}",
        )
    counts = sum((Counter(d["counts"]) for d in done), Counter())
    manifest = Manifest(
        version=VERSION,
        source=_source_metadata(job, split),
        class_names=class_names,
        provenance=done[0]["provenance"],
        vocabulary=job.codec.tokenizer.fingerprint,
        codebook_size=job.codec.tokenizer.codebook_size,
        coordinate_step=job.codec.coordinate_step,
        counts={s: counts[s] for s in job.codec.segments},
        max_tokens=longest(d["max_tokens"] for d in done),
        left_out=left_out,
        reasons=reasons(failures),
        failures=failures[:_FAILURES_LISTED],
        agreement=agreement.summarize(d["agreement"] for d in done),
        shards=shards,
        date=job.date,
        limits={"caption": job.max_caption_tokens, "latents": job.max_latents_tokens},
        tally=tally.add(d["tally"] for d in done),
        narrow=[found for d in done for found in d["narrow"]][:_NARROW_LISTED],
        again=sum(len(d.get("again", ())) for d in done),
    )
    write_manifest(job.manifest_folder(split), manifest)
    _tidy(job, split, manifest)
    return manifest


def reasons(failures: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """How many failures there are of each "segment: reason", most first.

    Reasons that differ only in numbers count as one, and the one with the largest numbers stands for them.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    largest: dict[tuple[str, ...], tuple[list[tuple[int, str]], str]] = {}  # the words between -> numbers and text
    texts: dict[tuple[str, ...], set[str]] = {}
    for failure in failures:
        text = f"{failure['segment']}: {failure['reason']}"
        parts = re.split(r"([0-9]+)", text)
        words, found = tuple(parts[::2]), ([_by_size(digits) for digits in parts[1::2]], text)
        counts[words] += 1
        largest[words] = max(largest.get(words, found), found)
        texts.setdefault(words, set()).add(text)
    return {
        largest[words][1] + (" (and the like)" if len(texts[words]) > 1 else ""): count
        for words, count in counts.most_common()
    }


def _by_size(digits: str) -> tuple[int, str]:
    """A key that orders runs of digits by their number, also those of more digits than int() takes."""
    number = digits.lstrip("0")
    return len(number), number


def _source_metadata(job: Job, split: str) -> dict[str, Any]:
    """The settings that selected the examples, without paths of this machine."""
    data = job.source.data
    chosen = {"labels": data.labels, "images": data.images}
    own = getattr(data, job.kind.name, None)  # the kind's own group of fields
    if own is not None:
        free = marked(type(own), MAY_CHANGE)  # such as where an index is kept
        chosen |= {field: value for field, value in dataclasses.asdict(own).items() if field not in free}
    if job.kind.splits:
        chosen["seed"] = job.source.seed
    if job.held_out_share:
        chosen |= {"part": split, "held_out_share": job.held_out_share}
    named = {key: value for key, value in chosen.items() if value not in ((), "")}
    return {"name": job.kind.name, "split": data.split, "image_size": job.image_size} | named


def _tidy(job: Job, split: str, manifest: Manifest) -> None:
    """Removes what killed workers left unfinished, and warns of shards of other jobs."""
    folder = job.manifest_folder(split) / job.shards
    listed = {job.manifest_folder(split) / shard.file for shard in manifest.shards}
    for path in listed:
        for half in [*folder.glob(f".{path.name}.*.tmp"), *folder.glob(f".{path.stem}.json.*.tmp")]:
            half.unlink(missing_ok=True)
        path.with_suffix(SUFFIX).unlink(missing_ok=True)
    strange = sorted(set(folder.glob("*.array_record")) - listed)
    if strange:
        log.warning("%d shards in %s are of another job, e.g. %s", len(strange), folder, strange[0].name)
