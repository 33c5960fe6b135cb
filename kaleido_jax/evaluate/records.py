"""How good a model of somebody's own pictures is, by their records: no truth is known but the pictures themselves.

Losses on held-out records beside those on training records show whether a model has learned its pictures by heart.
Samples of the held-out captions stand beside the training pictures by the features of a network, and the held-out
pictures stand there too: no model comes nearer than pictures of the same kind. A baseline without latents is measured
alike, from the same captions and the same noise.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kaleido_jax import array_types as at
from kaleido_jax.annotate.annotator import Annotator, Failure
from kaleido_jax.annotate.job import agreement
from kaleido_jax.annotate.vision.detector import Detector, open_detector
from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.schema import Config, Mesh, Sample
from kaleido_jax.data.loader import shrink, to_model_range
from kaleido_jax.data.records import (
    BAD_IMAGE,
    MANIFEST,
    Record,
    Records,
    decode_image,
    find_records,
    open_records,
    read_manifest,
    records_folder,
    spread,
)
from kaleido_jax.data.sources.base import Example
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.evaluate.features.efficientnet import NAME as EXTRACTOR
from kaleido_jax.evaluate.features.extractor import Extractor, open_extractor
from kaleido_jax.evaluate.latents import latents_report
from kaleido_jax.evaluate.metrics.diversity import by_condition, mean_similarity, vendi_score
from kaleido_jax.evaluate.parts import draw_captions_in_parts, remove_samples, stored_report
from kaleido_jax.evaluate.records_page import Shown, page
from kaleido_jax.evaluate.sets import SET_PROTOCOLS, Rows, check_counts, measure_set, reference_of
from kaleido_jax.evaluate.sweep.run import guidance_text, sampler_text
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.types import Latents
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import fingerprint, write_atomically
from kaleido_jax.runtime.mesh import make_mesh
from kaleido_jax.runtime.progress import progress
from kaleido_jax.sampling.batched import SETTINGS
from kaleido_jax.sampling.output import pixels_of
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import Recipe
from kaleido_jax.sampling.tokens import SampledLatents
from kaleido_jax.train.batches import batches_of_all
from kaleido_jax.train.watching import HELD_OUT, Losses, open_held_out

log = logging.getLogger(__name__)

SAMPLES = "records_samples"  # the folder of all samples, kept for when a baseline comes
VERSION = "records/5"  # raise it when the measures change
MEASURING_SEC = 3600  # for the main process to measure all samples, while the others wait
PART = 50  # samples that are stored together; a run that was stopped loses at most as many
MOST_REFERENCE = 10_000  # training pictures whose features are compared with; of more, these are spread evenly
MOST_LOSSES = 2_048  # records of each split whose losses are measured
DRAWS = 256  # times and noise over all records of a split, at least: a few records alone would give a loss of chance
HALF = 500  # thousandths of IoU from which on a box counts as drawn
NO_BOXES = "the model has no boxes"
_FEW = SET_PROTOCOLS["records-few"].num_samples
_CAPTIONS_SHOWN, _SAMPLES_SHOWN = 12, 4


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """The records that a model is measured by."""

    train: Records
    held_out: Records | None
    fingerprint: str  # of the shards of both

    @property
    def source(self) -> Records:
        """Those whose captions are sampled."""
        return self.held_out or self.train

    def captions(self, number: int) -> list[str]:
        """Of the samples: those of the held-out records in turn, or of training ones if nothing is held out.

        Where training has all of these too, as with classes, it is its captions that follow the held-out ones: of few
        held-out records a class may be missing.
        """
        each = _captions(self.source, number)
        if self.held_out is not None and {*each} <= {*_captions(self.train, MOST_REFERENCE)}:
            each += _captions(self.train, number - len(each))
        return [each[i % len(each)] for i in range(number)]


def _captions(records: Records, most: int) -> list[str]:
    return [record.caption for record in _readable(records, most)]


def _readable(records: Records, most: int) -> Iterator[Record]:
    """At most so many, spread evenly; a damaged one is told of and left out, as in training."""
    for i in spread(range(len(records)), most):
        try:
            yield records[i]
        except UserError as error:
            log.warning("%s", error)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """All that is known before anything is drawn."""

    data: OwnData
    extractor: Extractor
    detector: Detector | None
    why_no_boxes: str
    pipelines: dict[str, KaleidoPipeline]  # "model", and maybe "baseline"
    settings: dict[str, Sample]  # of each; those of config.sample are the same
    recipes: dict[str, Recipe]  # of one sample of each
    metadata: dict[str, Any]  # what the numbers depend on, as it comes back from JSON


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The samples of a model."""

    pixels: at.Images
    z: list[SampledLatents]  # empty for a baseline


@dataclass(frozen=True, kw_only=True)
class Real:
    """Real pictures at the model's size, with what is stored of them."""

    pixels: at.Images
    records: list[Record]


def measure(config: Config, workdir: Path, baseline: Path | None = None) -> dict[str, Any]:
    """The report in eval/records.json, with its page eval/records.html; measured unless it belongs to this model.

    Numbers of the model: those of `losses_of`, `held_out_loss_dm`, `held_out_loss_ar` and so on;
    those of `sets.measure_set` with the training pictures as the reference; the same of the first samples only, as many
    as there are held-out pictures, as `few_...`; `vendi` and `similarity`, means over the captions; `box_...`, whether
    the detector that annotated the records finds the boxes of z in the samples; those of `latents_report`;
    `latents_copied`, the share of z that a training record has token for token.

    `baseline` and `real` have the same of the baseline and of real pictures. `left_out` says why a number is not there,
    `of` what all of them depend on, `stamps` what the sets do.

    Args:
      config: the model's.
      workdir: its folder, with a checkpoint.
      baseline: the workdir of a model without latents that was trained on the same records.

    Raises:
      UserError: no records, too few of them or too few samples, no feature network, no checkpoint, or a baseline that
        has latents, other records or images of another size, or cannot be sampled as the model.
      FloatingPointError: samples are not finite.
    """
    task = _open_task(config, workdir, baseline)
    path = workdir / "eval" / "records.json"
    if (report := stored_report(path, task.metadata)) is not None:
        return report
    losses = {name: losses_of(one, task.data) for name, one in task.pipelines.items()}
    captions, seed = task.data.captions(config.eval.num_samples), config.seed
    folders = {name: _folder_of(workdir, recipe, captions, seed) for name, recipe in task.recipes.items()}
    drawn = {}
    for name, one in task.pipelines.items():
        settings = task.settings[name]
        log.info("%s: %d samples at gamma %g", name, len(captions), settings.gamma)
        z, pixels = draw_captions_in_parts(one, settings, captions, seed, PART, folders[name])
        drawn[name] = Drawn(pixels=pixels, z=z)

    def make() -> dict[str, Any]:
        real = {"train": real_of(task.data.train, MOST_REFERENCE)}
        if task.data.held_out is not None:
            real["held_out"] = real_of(task.data.held_out, len(captions))
        report = {"of": task.metadata} | losses["model"] | _report(task, real, drawn, captions)
        if "baseline" in losses:
            report["baseline"] = losses["baseline"] | report["baseline"]
        _add_boxes(report, task, drawn["model"], real)
        content = page(report, _shown(real, drawn, captions), config.name)
        write_atomically(path.with_suffix(".html"), content.encode())
        write_atomically(path, json.dumps(report, indent=2).encode())  # last: with it, the page is there too
        remove_samples(path.with_name(SAMPLES), (), kept=folders.values())
        return json.loads(json.dumps(report))

    return distributed.tell("the report", make, MEASURING_SEC)


# ------------------------------------------------------------------------------------ what is measured
def _open_task(config: Config, workdir: Path, baseline: Path | None) -> _Task:
    _check_images(config)
    extractor = open_extractor(EXTRACTOR)
    pipeline = KaleidoPipeline.from_pretrained(workdir, config)
    data, number = open_own_data(pipeline, workdir), config.eval.num_samples
    check_counts("records", num_samples=number, num_reference=min(len(data.train), MOST_REFERENCE))
    sample = pipeline.override({"gamma": config.eval.gamma, "num_steps": config.eval.num_steps})
    pipelines, settings = {"model": pipeline}, {"model": sample}
    if baseline is not None:
        pipelines["baseline"] = open_baseline(baseline, pipeline, data)
        settings["baseline"] = _settings_of_baseline(pipelines["baseline"], sample, baseline)
    detector, why_no_boxes = _detector_of(config)
    recipes = {name: one.recipe(["-"], 1, config.seed, sample) for name, one in pipelines.items()}
    metadata = {
        "version": VERSION,
        "model": recipes["model"]["model"],
        "baseline": recipes["baseline"]["model"] if baseline is not None else None,
        "sample": recipes["model"]["sample"],
        "seed": config.seed,
        "num_samples": number,
        "records": data.fingerprint,
        "extractor": extractor.identity,
        "detector": detector.metadata if detector else why_no_boxes,
    }
    return _Task(
        data=data,
        extractor=extractor,
        detector=detector,
        why_no_boxes=why_no_boxes,
        pipelines=pipelines,
        settings=settings,
        recipes=recipes,
        metadata=json.loads(json.dumps(metadata)),
    )


def open_own_data(pipeline: KaleidoPipeline, workdir: Path) -> OwnData:
    """The records of a workdir's experiment.

    Raises:
      UserError: there are none, or they are damaged or made for another use.
    """
    config, codec = pipeline.config, pipeline.codec
    folder = find_records(records_folder(config, workdir))
    size = config.model.denoiser.image_size
    train = open_records(folder, codec=codec, image_size=size, verify=config.data.verify)
    return OwnData(
        train=train, held_out=open_held_out(config, workdir, codec), fingerprint=_records_fingerprint(config, workdir)
    )


def _records_fingerprint(config: Config, workdir: Path) -> str:
    root, parts = records_folder(config, workdir), []
    train = find_records(root)
    for folder in dict.fromkeys((train, find_records(root, HELD_OUT))):
        if folder == train or (folder / MANIFEST).exists():
            parts += [shard.sha256 for shard in read_manifest(folder).shards]
    return fingerprint(*parts)


def open_baseline(folder: Path, pipeline: KaleidoPipeline, data: OwnData) -> KaleidoPipeline:
    """The baseline beside a model.

    Raises:
      UserError: no checkpoint, or it has latents, images of another size or other records.
    """
    if not folder.is_dir():
        raise user_error(f"--baseline={folder}", "the workdir of a model without latents", "correct the path")
    config = dataclasses.replace(Config.from_json(folder), mesh=Mesh())
    _check_images(config)
    if config.latents.segments:
        found = f"--baseline={folder}, a model with the latents {', '.join(config.latents.segments)}"
        raise user_error(found, "one without", 'train it with --config.latents.segments="()"')
    sizes = [one.model.denoiser.image_size for one in (config, pipeline.config)]
    if sizes[0] != sizes[1]:
        raise user_error(f"--baseline={folder} of {sizes[0]} px", f"{sizes[1]} px", "name another baseline")
    found = find_records(records_folder(config, folder))
    if not (found / MANIFEST).exists() or _records_fingerprint(config, folder) != data.fingerprint:
        do = "train a baseline with --config.data.records of this model's workdir"
        raise user_error(f"--baseline={folder} with other records ({found})", "the model's own", do)
    return KaleidoPipeline.from_pretrained(folder, config)


def _settings_of_baseline(pipeline: KaleidoPipeline, sample: Sample, folder: Path) -> Sample:
    """The model's settings for its baseline.

    Raises:
      UserError: it cannot be sampled so, which would otherwise be known only after all samples of the model.
    """
    reason = ""
    try:
        found = pipeline.override({field: getattr(sample, field) for field in SETTINGS})
        if found.guidance == "autoguidance" and found.gamma != 1 and pipeline.bad_params is None:
            reason = f"config.sample.guidance = {pipeline.config.sample.guidance!r} of its own reads no worse model"
    except UserError as error:
        reason, _, _ = str(error).partition(";")
    if reason:
        do = "change config.sample for both, e.g. by --config.sample.guidance=cfg, or leave the baseline out"
        raise user_error(f"--baseline={folder}, for which {reason}", "one that samples as the model does", do)
    return found


def _check_images(config: Config) -> None:
    if config.model.denoiser is None:
        raise user_error("a model of points", "one of images", "set config.eval.protocol to none")


def _folder_of(workdir: Path, recipe: Any, captions: Sequence[str], seed: int) -> Path:
    """Of the samples of one model: those of the model stay when a baseline comes."""
    key = json.dumps([recipe["model"], recipe["sample"], list(captions), seed])
    return workdir / "eval" / SAMPLES / fingerprint(key)


def _detector_of(config: Config) -> tuple[Detector | None, str]:
    """(the detector that made the boxes of the records, or why there is none)."""
    if "bbox" not in config.latents.segments:
        return None, NO_BOXES
    if config.annotate.bbox.kind != "onnx":
        kind = config.annotate.bbox.kind
        return None, f"the boxes come from {'labels' if kind == 'labels' else kind + ', not from a detector'}"
    try:
        return open_detector(config.annotate), ""
    except UserError as error:
        log.warning("boxes are not measured: %s", error)
        return None, "the detector that made the boxes of the records cannot be opened"


# ----------------------------------------------------------------------------------------------- losses
def losses_of(pipeline: KaleidoPipeline, data: OwnData) -> dict[str, float]:
    """L_DM and L_AR on the held-out records, and on as many training records; called in every process.

    `..._loss_dm_other_z` is L_DM of the same images, captions, times and noise, each with the z of another image.
    """
    config = pipeline.config
    # All resolutions of all rows, also where training computes the outer ones for some rows only.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, mixed_ratio=()))
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)
    losses = Losses(config, build_model(config, pipeline.codec.tokenizer.base_vocab_size), mesh)
    number, found = min(len(data.source), MOST_LOSSES), {}
    for split, records in (("held_out", data.held_out), ("train", data.train)):
        if records is None:
            continue
        chosen = records.select(spread(range(len(records)), number))
        batches = list(batches_of_all(config, chosen, pipeline.codec))
        log.info("losses of %d records of the split %s", len(chosen), split)
        passes = math.ceil(DRAWS / len(chosen))
        means = losses.mean(batches, pipeline.params, {}, passes)
        found |= {f"{split}_{name}": means[name] for name in ("loss_dm", "loss_ar") if name in means}
        if config.latents.segments:
            if len(chosen) == 1:
                log.warning("no %s_loss_dm_other_z: of one record there is no other z", split)
                continue
            before = chosen.select([len(chosen) - 1, *range(len(chosen) - 1)])  # of each record, the one before it
            others = [
                batch | {name: rows for name, rows in other.items() if name.startswith("decoder_")}
                for batch, other in zip(batches, batches_of_all(config, before, pipeline.codec), strict=True)
            ]
            found[f"{split}_loss_dm_other_z"] = losses.mean(others, pipeline.params, {}, passes)["loss_dm"]
    return found


# ----------------------------------------------------------------------------------------------- report
def _report(task: _Task, real: dict[str, Real], drawn: dict[str, Drawn], captions: list[str]) -> dict[str, Any]:
    """What features and z say."""
    data, extractor, stamping = task.data, task.extractor, _stamping(task)
    everything = [*drawn.values(), *real.values()]
    with progress("features", sum(len(one.pixels) for one in everything), "img") as advance:
        rows = [_features(extractor, one.pixels, advance) for one in everything]
    features, real_features = dict(zip(drawn, rows, strict=False)), dict(zip(real, rows[len(drawn) :], strict=True))
    reference = reference_of(
        real_features["train"], name=f"records {data.fingerprint}", split="train", identity=extractor.identity
    )
    few = len(real_features.get("held_out", ()))
    counts = {
        "training_records": len(data.train),
        "held_out_records": len(data.held_out or ()),
        "reference": len(reference.rows),
        "few": few,
        "captions": len(set(captions)),
    }
    numbers: dict[str, dict[str, Any]] = {name: {} for name in (*drawn, "real")}
    left_out: dict[str, str] = {}
    # All samples; and as few as there are held-out pictures, beside these.
    sets = [("records", name, rows, "") for name, rows in features.items()]
    if few >= _FEW:
        sets += [("records-few", name, rows[:few], "few_") for name, rows in features.items()]
        sets.append(("records-few", "real", real_features["held_out"], "few_"))
        stamping = stamping | {"real": stamping["model"] | {"checkpoint": f"pictures of {HELD_OUT}", "prior": ""}}
        if few < (width := reference.rows.shape[1]):
            # The covariance then has no full rank, and what is missing of it grows with how much pictures differ.
            left_out["few_frechet"] = (
                f"a Frechet distance of {few} pictures on {width:,} features is larger for real pictures than for "
                "blurred samples"
            )
    else:
        left_out["ceiling"] = f"{few} held-out pictures, where {_FEW} are the least that say something"
    stamps = {}
    for protocol, name, rows, prefix in sets:
        result = measure_set(protocol, reference, rows, identity=extractor.identity, sampled_with=stamping[name])
        numbers[name] |= {
            f"{prefix}{metric}": value for metric, value in result.values.items() if f"{prefix}{metric}" not in left_out
        }
        stamps[f"{prefix}{name}"] = dataclasses.asdict(result.stamp)
    real_rows = np.concatenate(list(real_features.values()))
    real_captions = [one.caption for part in real.values() for one in part.records]
    found, reason = diversity(features, captions, real_rows, real_captions)
    for name, values in found.items():
        numbers[name] |= values
    if reason:
        left_out["diversity"] = reason
    if drawn["model"].z:
        numbers["model"] |= latents_report(drawn["model"].z)
        numbers["model"] |= copied(drawn["model"].z, data.train, task.pipelines["model"].codec)
    return {"counts": counts} | numbers.pop("model") | numbers | {"left_out": left_out, "stamps": stamps}


def copied(z: Sequence[SampledLatents], records: Records, codec: Codec) -> dict[str, float]:
    """`latents_copied`, the share of z that one of the records has token for token; {} if none parses.

    Of all records, however many: their tokens are read one by one, and no image is decoded.
    """
    wanted = [one.spelled(codec) for one in z if one.latents is not None]
    if not wanted:
        return {}
    known, found = {*wanted}, set()
    with progress("training latents", len(records), "record") as advance:
        for i in range(len(records)):
            try:
                found |= known & {tuple(codec.join(records.training_record(i).tokens))}
            except UserError as error:  # training leaves it out too
                log.warning("%s", error)
            advance(1)
    return {"latents_copied": float(np.mean([one in found for one in wanted]))}


def _features(extractor: Extractor, pixels: at.Images, advance: Callable[[int], None]) -> Rows:
    parts = []
    for part in extractor.stream([pixels]):
        parts.append(part)
        advance(len(part))
    return np.concatenate(parts)


def real_of(records: Records, most: int) -> Real:
    """Pictures of the records, all or `most` that are spread evenly, as the model sees them; damaged ones left out.

    Raises:
      UserError: all are damaged.
    """
    size, chosen, pixels = records.image_size, [], []
    for record in _readable(records, most):
        try:
            x = decode_image(record.image)
        except BAD_IMAGE as error:
            log.warning("the image of record %.100s is damaged (%.200s), and is left out", record.id, error)
            continue
        chosen.append(record)
        pixels.append(x if len(x) == size else pixels_of(shrink(to_model_range(x), size)))
    if not chosen:
        raise user_error(f"{len(records)} records, all damaged", "pictures to compare with", "annotate again")
    return Real(pixels=np.stack(pixels), records=chosen)


def _stamping(task: _Task) -> dict[str, dict[str, Any]]:
    """The fields of a Stamp that say how each model was sampled."""
    sample, prior = task.settings["model"], ""
    if task.pipelines["model"].config.latents.segments:
        prior = f"temperature {sample.temperature:g}, top_k {sample.top_k}, top_p {sample.top_p:g}"
        prior += ", grammar" * sample.grammar
    return {
        name: {
            "checkpoint": recipe["model"]["weights"],
            "prior": prior if name == "model" else "",
            "sampler": sampler_text(sample, task.pipelines[name].config),
            "num_steps": sample.num_steps,
            "guidance": guidance_text(sample, recipe["model"]["worse"]),
            "gamma": sample.gamma,
            "seeds": (task.pipelines[name].config.seed, task.metadata["seed"]),
        }
        for name, recipe in task.recipes.items()
    }


# -------------------------------------------------------------------------------------------- diversity
def diversity(
    features: dict[str, Rows], captions: Sequence[str], real: Rows, real_captions: Sequence[str]
) -> tuple[dict[str, dict[str, float]], str]:
    """(numbers of each model, and under "real" those of the real pictures; why there are none).

    `vendi` and `similarity` are means over the captions that have two samples at least and as many real pictures, from
    equal numbers of both, `diversity_images` on average. Without such captions the models are measured alone.

    Args:
      features: of the samples of each model.
      captions: of the samples.
      real: features of real pictures.
      real_captions: theirs.
    """
    sampled, there = _places(captions), _places(real_captions)
    several = {caption: rows for caption, rows in sampled.items() if len(rows) > 1}
    both = {c: min(len(rows), len(there.get(c, ()))) for c, rows in several.items()}
    both = {caption: number for caption, number in both.items() if number > 1}
    if not several:
        return {}, "no caption has two samples; raise config.eval.num_samples"
    reason = "" if both else "no caption has two real pictures, so the samples stand alone"
    counts = both or {caption: len(rows) for caption, rows in several.items()}
    chosen = [i for caption, number in counts.items() for i in sampled[caption][:number]]
    found = {name: _diversity(rows[chosen], [captions[i] for i in chosen]) for name, rows in features.items()}
    if both:
        chosen = [i for caption, number in counts.items() for i in there[caption][:number]]
        found["real"] = _diversity(real[chosen], [real_captions[i] for i in chosen])
    return found, reason


def _places(captions: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        places.setdefault(caption, []).append(i)
    return places


def _diversity(rows: Rows, captions: Sequence[str]) -> dict[str, float]:
    means = {
        name: float(np.mean(list(by_condition(one, rows, captions).values())))
        for name, one in (("vendi", vendi_score), ("similarity", mean_similarity))
    }
    return means | {"diversity_images": len(captions) / len(set(captions))}


# ------------------------------------------------------------------------------------------------ boxes
def box_agreement(detector: Annotator, pixels: at.Images, z: Sequence[Latents | None]) -> dict[str, float]:
    """Whether a detector finds the boxes of z in the images, each box at most once and whatever its phrase.

    `box_objects`: boxes of z. `box_found`: share of them that overlaps a box of the detector; `box_half`: with an IoU
    of 0.5 at least; `box_iou_median`: over those found. Where z has no boxes, only `box_objects`.

    Args:
      detector: as it made the boxes of the records.
      pixels: of the images.
      z: of each; None where it does not parse, which is left out.
    """
    ious: list[int] = []
    for image, one in zip(pixels, z, strict=True):
        if one is None or not one.bbox:
            continue
        (seen,) = detector([Example(id="", image=image, caption="")], [Latents()])
        found = () if isinstance(seen, Failure) else seen.bbox or ()
        corners = [np.array([box.box for box in boxes], np.float64).reshape(-1, 4) for boxes in (one.bbox, found)]
        ious += agreement.pair_boxes(*corners)
    if not ious:
        return {"box_objects": 0}
    summary = agreement.summarize([agreement.tally([{"box": ious}])])
    return summary | {"box_half": float(np.mean([iou >= HALF for iou in ious]))}


def _add_boxes(report: dict[str, Any], task: _Task, drawn: Drawn, real: dict[str, Real]) -> None:
    detector = task.detector
    if detector is None:
        if task.why_no_boxes != NO_BOXES:
            report["left_out"]["boxes"] = task.why_no_boxes
        return
    report |= box_agreement(detector, drawn.pixels, [row.latents for row in drawn.z])
    if "held_out" in real:
        z = [one.latents for one in real["held_out"].records]
        report["real"] |= box_agreement(detector, real["held_out"].pixels, z)


# -------------------------------------------------------------------------------------------- the page
def _shown(real: dict[str, Real], drawn: dict[str, Drawn], captions: list[str]) -> list[Shown]:
    """Samples of some captions from the first to the last, and real pictures of each: held-out ones first."""
    shown, places = [], _places(captions)
    pictures = [
        (record.caption, image)
        for name in ("held_out", "train")
        if name in real
        for record, image in zip(real[name].records, real[name].pixels, strict=True)
    ]
    there = _places([caption for caption, _ in pictures])
    for caption in spread(list(places), _CAPTIONS_SHOWN):
        rows = places[caption][:_SAMPLES_SHOWN]
        shown.append(
            Shown(
                caption=caption,
                real=[pictures[i][1] for i in there.get(caption, ())[:_SAMPLES_SHOWN]],
                samples={name: [one.pixels[i] for i in rows] for name, one in drawn.items()},
                z=[drawn["model"].z[i] for i in rows] if drawn["model"].z else [],
            )
        )
    return shown
