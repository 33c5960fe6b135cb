"""A sweep from its config: tune, draw and measure cell by cell, one JSON and one page.

FOLDER/latents, images/   samples, kept once
FOLDER/tuning/, cells/    numbers of each setting that was tried, and of each cell; found again by a later run
FOLDER/sweep.json         all of it
FOLDER/sweep.html         the same as a page that needs nothing else
FOLDER/sweep.md           tables
FOLDER/sweep.png          effective number of modes and Frechet distance against gamma
"""

import dataclasses
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kaleido_jax.config.schema import Config, Sample
from kaleido_jax.config.sweep import Sweep, SweptModel
from kaleido_jax.diffusion.samplers import evaluations
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.parts import read_stored
from kaleido_jax.evaluate.sweep import cells as of_sweep
from kaleido_jax.evaluate.sweep.cells import Cell, check_models, open_model, worse_step_of
from kaleido_jax.evaluate.sweep.drawing import Drawn, draw
from kaleido_jax.evaluate.sweep.figure import write_figure
from kaleido_jax.evaluate.sweep.measured import Measure, Measured, pixels_shown
from kaleido_jax.evaluate.sweep.measures import open_measure
from kaleido_jax.evaluate.sweep.page import page
from kaleido_jax.evaluate.sweep.summary import markdown, summarize
from kaleido_jax.evaluate.sweep.tuning import READING_SEC, tune
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import fingerprint, replacing, write_atomically
from kaleido_jax.sampling.pipeline import KaleidoPipeline

log = logging.getLogger(__name__)

JPEG_QUALITY, JPEG_PX = 90, 65_500  # the largest side that libjpeg writes


class SweepRun:
    """A sweep in progress; everything finished is in its folder."""

    def __init__(self, sweep: Sweep, folder: Path, part: str | None = None) -> None:
        """Checks the models; loads the measure.

        Args:
          sweep: what is measured.
          folder: of everything finished.
          part: "MODEL/N", training N, from 0, of a model of the sweep; the others need not be there.

        Raises:
          UserError: no such part, a model is missing or does not fit, or too few images for the protocol.
        """
        self.sweep, self.folder = sweep, folder
        self._part = None if part is None else _part(sweep, part)
        needed = sweep if self._part is None else dataclasses.replace(sweep, models=(_alone(*self._part),))
        image_size = check_models(needed)
        self.measure: Measure = open_measure(needed, image_size, folder)
        self._loaded: tuple[Any, KaleidoPipeline] | None = None

    def run(self) -> dict[str, Any]:
        """Everything; returns what sweep.json holds.

        Raises:
          FloatingPointError: samples are not finite.
        """
        tried, found = self._cells(self.sweep.models, None)
        result = {
            "sweep": dataclasses.asdict(self.sweep),
            "captions": list(self.measure.captions),
            "modes": {caption: dataclasses.asdict(modes) for caption, modes in self.measure.modes.items()},
            "about": self.measure.about,
            "tuned": tried,
            "cells": found,
        }
        result["summary"] = summarize(result)
        result = json.loads(json.dumps(result))
        if distributed.is_main():
            write_atomically(self.folder / "sweep.json", json.dumps(result, indent=1).encode())
            write_atomically(self.folder / "sweep.md", markdown(result).encode())
            write_figure(result["summary"], self.folder / "sweep.png")
            write_atomically(self.folder / "sweep.html", page(result, self.folder).encode())
        return result

    def run_part(self) -> int:
        """The cells of the part alone, so that several processes share the work of a sweep; returns their number.

        Raises:
          FloatingPointError: samples are not finite.
        """
        model, training = self._part
        return len(self._cells((model,), training)[1])

    def _cells(
        self, models: Sequence[SweptModel], training: int | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(settings that were tried, cells) of models, or of one of their trainings."""
        sweep = dataclasses.replace(self.sweep, models=tuple(models))
        chosen, tried = tune(sweep, self.measure, self._few, self._draw_few, self.folder)
        plan = [
            cell
            for model in models
            for i in (range(len(model.paths)) if training is None else (training,))
            for cell in of_sweep.cells(self.sweep, chosen, model, i)
        ]
        found = []
        for i, cell in enumerate(plan):
            log.info("cell %d of %d: %s", i + 1, len(plan), cell.title)
            found.append(self._cell(cell))
        return tried, found

    # ------------------------------------------------------------------------------------------ one cell
    def _cell(self, cell: Cell) -> dict[str, Any]:
        of = self._of(cell.model, cell.training, cell.sample, self.sweep.num_samples, cell.seed)
        stem = self.folder / "cells" / fingerprint(json.dumps(of))

        stored = distributed.tell("a cell", lambda: read_stored(stem.with_suffix(".json")), distributed.START_SEC)
        if stored is None:
            drawn = self._drawn(cell.model, cell.training, cell.sample, self.sweep.num_samples, cell.seed)

            def make() -> dict[str, Any]:
                measured = self.measure(drawn, self._stamp(cell, of))
                self._show(drawn, stem.with_suffix(".jpg"))
                content = _content(of, measured, drawn, self.sweep.shown, len(self.measure.captions))
                write_atomically(stem.with_suffix(".json"), json.dumps(content).encode())
                return content

            stored = distributed.tell("a measured cell", make, READING_SEC)
        place = {
            "model": cell.model.name,
            "training": cell.training,
            "rule": cell.rule,
            "gamma": cell.gamma,
            "seed": cell.seed,
        }
        return place | stored | {"sheet": f"cells/{stem.name}.jpg"}

    def _of(self, model: SweptModel, training: int, sample: Sample, number: int, seed: int) -> dict[str, Any]:
        """Everything that a cell's numbers depend on."""
        pipeline = self._pipeline(model, training, sample)
        recipe = pipeline.recipe(self.measure.captions, 1, seed, sample)
        of = {"model": recipe["model"], "sample": recipe["sample"], "seed": seed, "num_samples": number}
        measured_by = {"extractor": self.measure.extractor.identity, "reference": self.measure.reference.name}
        measured_by |= {"protocol": self.sweep.protocol, "num_reference": self.sweep.num_reference}
        modes = [[caption, dataclasses.asdict(self.measure.modes[caption])] for caption in self.measure.captions]
        measured_by |= {
            "captions": self.measure.captions,
            "modes": fingerprint(json.dumps(modes), self.measure.identity),
        }
        control = {"shuffled": model.shuffled} | ({"same_z": True} if model.same_z else {})
        return json.loads(json.dumps(of | measured_by | control | {"shown": self.sweep.shown}))

    def _stamp(self, cell: Cell, of: dict[str, Any]) -> dict[str, Any]:
        sample, prior = cell.sample, ""
        config = self._pipeline(cell.model, cell.training, cell.sample).config
        if config.latents.segments:
            prior = f"temperature {sample.temperature:g}, top_k {sample.top_k}, top_p {sample.top_p:g}"
            prior += ", grammar" * sample.grammar + ", shuffled" * cell.model.shuffled
            prior += ", one for each caption" * cell.model.same_z
        return {
            "checkpoint": of["model"]["weights"],
            "prior": prior,
            "sampler": sampler_text(sample, config),
            "num_steps": sample.num_steps,
            "guidance": guidance_text(sample, of["model"]["worse"]),
            "gamma": cell.gamma,
            "seeds": (cell.training, cell.seed),
        }

    def _show(self, drawn: Drawn, path: Path) -> None:
        """A sheet with a row for each caption, smaller than the samples where JPEG's sides end."""
        rows = pixels_shown(drawn, self.sweep.shown, len(self.measure.captions))
        side = min(drawn.pixels.shape[1], JPEG_PX // max(len(rows), self.sweep.shown))
        sheet = Image.new("RGB", (side * self.sweep.shown, side * len(rows)), (127, 127, 127))
        for y, images in enumerate(rows):
            for x, pixels in enumerate(images):
                image = Image.fromarray(pixels)
                sheet.paste(image if image.width == side else image.resize((side, side)), (x * side, y * side))
        with replacing(path) as temporary, io.BytesIO() as buffer:
            sheet.save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)
            temporary.write_bytes(buffer.getvalue())

    # ---------------------------------------------------------------------------------------- samples
    def _few(self, model: SweptModel, sample: Sample) -> dict[str, Any]:
        """What the samples of `_draw_few` depend on."""
        return self._of(model, 0, sample, self.sweep.tune_samples, self.sweep.tune_seed)

    def _draw_few(self, model: SweptModel, sample: Sample) -> Drawn:
        return self._drawn(model, 0, sample, self.sweep.tune_samples, self.sweep.tune_seed)

    def _drawn(self, model: SweptModel, training: int, sample: Sample, number: int, seed: int) -> Drawn:
        pipeline = self._pipeline(model, training, sample)
        captions, chunk = self.measure.captions, self.sweep.chunk
        return draw(pipeline, sample, captions, number, seed, self.folder, model.shuffled, chunk, model.same_z)

    def _pipeline(self, model: SweptModel, training: int, sample: Sample) -> KaleidoPipeline:
        """One model is loaded at a time, with the worse one that the sample needs."""
        step = worse_step_of(model, sample)
        wanted = (model.name, training, step)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None
            self._loaded = wanted, open_model(model, training, step, self.sweep.chunk)
        return self._loaded[1]


def _part(sweep: Sweep, text: str) -> tuple[SweptModel, int]:
    name, _, number = text.rpartition("/")
    for model in sweep.models:
        if model.name == name and number.isdecimal() and int(number) < len(model.paths):
            return model, int(number)
    known = ", ".join(f"{model.name}/{i}" for model in sweep.models for i in range(len(model.paths)))
    raise user_error(f"part {text!r}", f"one of {known}", "name one of them")


def _alone(model: SweptModel, training: int) -> SweptModel:
    """With the training, and the first one, which tunes."""
    chosen = sorted({0, training})
    paths, worse = ([each[i] for i in chosen] for each in (model.paths, model.worse or model.paths))
    return dataclasses.replace(model, paths=tuple(paths), worse=tuple(worse) if model.worse else ())


def guidance_text(sample: Sample, worse: str | None) -> str:
    """The rule with its own settings, e.g. "apg, eta 0, threshold 0, momentum -0.5"."""
    own = {
        "cfg": "",
        "cads": f", tau {sample.cads_tau}, noise {sample.cads_noise:g}, mix {sample.cads_mix:g}",
        "apg": f", eta {sample.apg_eta:g}, threshold {sample.apg_threshold:g}, momentum {sample.apg_momentum:g}",
        "autoguidance": f", worse {worse}",
    }
    text = sample.guidance + own.get(sample.guidance, "")
    return text + f", interval {sample.guidance_interval}" * bool(sample.guidance_interval)


def sampler_text(sample: Sample, config: Config) -> str:
    """The sampler with what else moves x, e.g. "ddpm, threshold clip, no steps below sigma 0.085, micro scale 64".

    What is not set is not said, nor is float32, so that numbers of before go with those of now.
    """
    diffusion, precision = config.diffusion, config.model.precision
    whole = evaluations(diffusion, dataclasses.replace(sample, sigma_min=0.0))
    text = f"{sample.sampler}, threshold {sample.threshold}"
    text += f", eta {sample.ddim_eta:g}" * (sample.sampler == "ddim" and sample.ddim_eta > 0)
    text += ", from N" * sample.start_at_n
    text += f", no steps below sigma {sample.sigma_min:g}" * (len(evaluations(diffusion, sample)) < len(whole))
    text += "".join(f", micro {name} {value:g}" for name, value in sorted(dict(sample.micro).items()))
    return text + f", in {precision}" * (precision != "float32")


def _content(of: dict[str, Any], measured: Measured, drawn: Drawn, shown: int, captions: int) -> dict[str, Any]:
    result = json.loads(measured.result.to_json())
    seen = [measured.seen[drawn.captions == caption][:shown].tolist() for caption in range(captions)]
    return {"of": of, **result, "captions": measured.captions, "seen": seen}
