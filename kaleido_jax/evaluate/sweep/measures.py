"""What is measured in the samples of a cell: how right and how diverse they are, and how far from real images.

A `Measure` knows the captions, the hidden modes of each and real images. `open_measure` takes the one of a sweep.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from kaleido_jax import array_types as at
from kaleido_jax.config.schema import Config, DataEmoji
from kaleido_jax.config.sweep import Sweep
from kaleido_jax.data.sources.emoji import KINDS, SHARES, SPRITE_NAMES, SPRITES_PER_KIND
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.emoji import Samples, real_samples, report_of
from kaleido_jax.evaluate.features.extractor import Extractor, Rows, reader_extractor
from kaleido_jax.evaluate.metrics.diversity import by_condition, mean_similarity, vendi_score
from kaleido_jax.evaluate.sets import SET_PROTOCOLS, Reference, check_counts, measure_set, reference_of
from kaleido_jax.evaluate.sprite_reader import SpriteReader, open_reader
from kaleido_jax.evaluate.stamp import Result
from kaleido_jax.evaluate.sweep.drawing import Drawn
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.sampling.pipeline import find_model


@dataclass(frozen=True, kw_only=True)
class Modes:
    """The hidden modes of one caption."""

    names: tuple[str, ...]
    shares: tuple[float, ...]  # of real images; sum to 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of a cell and what they depend on."""

    result: Result  # means over captions, and those of the whole set
    captions: dict[str, dict[str, Any]]  # of each caption, with the `shares` of its modes
    seen: Int[np.ndarray, "n"]  # the mode of each sample among its caption's; -1 = of no mode of this caption


@runtime_checkable
class Measure(Protocol):
    """How the samples of a sweep are judged."""

    captions: tuple[str, ...]
    modes: dict[str, Modes]  # by caption
    about: dict[str, Any]  # what the page says of the reader and of the real images
    extractor: Extractor
    reference: Reference

    def __call__(self, drawn: Drawn, sampled_with: Mapping[str, Any]) -> Measured:
        """All numbers of some samples; `sampled_with` are the fields of a Stamp that tell how they were made."""


def open_measure(sweep: Sweep, image_size: int, folder: Path) -> Measure:
    """The measure of the sweep's protocol.

    Args:
      sweep: what to measure.
      image_size: px of the samples.
      folder: keeps a reader that is trained for that size.

    Raises:
      UserError: no such protocol, or fewer images than it wants.
    """
    if sweep.protocol not in SET_PROTOCOLS:
        known = ", ".join(SET_PROTOCOLS)
        raise user_error(f"sweep.protocol = {sweep.protocol!r}", f"one of {known}", "choose one of them")
    check_counts(sweep.protocol, num_samples=sweep.num_samples, num_reference=sweep.num_reference)
    return SceneMeasure.open(sweep, image_size, folder)


@dataclass(frozen=True, kw_only=True)
class SceneMeasure:
    """Scenes of emoji, whose modes are known: what the sprite reader sees, and sets of its features."""

    captions: tuple[str, ...]
    modes: dict[str, Modes]
    about: dict[str, Any]
    protocol: str
    reader: SpriteReader
    extractor: Extractor
    reference: Reference

    @staticmethod
    def open(sweep: Sweep, image_size: int, folder: Path) -> "SceneMeasure":
        """With real scenes like those that the models were trained on.

        Raises:
          UserError: models of other data, or of scenes that differ in their config.
        """
        views = {path: _scenes_of(path) for model in sweep.models for path in model.paths}
        first = next(iter(views.values()))
        if other := next((path for path, view in views.items() if view != first), None):
            found = f"models of different scenes, {next(iter(views))} and {other}"
            raise user_error(found, "one config.data.emoji for all", "sweep them one after the other")
        reader = open_reader(image_size, folder)
        extractor = reader_extractor(reader)
        real = real_samples(sweep.num_reference, _REFERENCE_SEED, image_size, first)
        name = f"scenes {fingerprint(json.dumps(dataclasses.asdict(first)))}"
        reference = reference_of(extractor(real.pixels), name=name, split="train", identity=extractor.identity)
        modes = {kind: _modes_of(KINDS.index(kind)) for kind in first.kinds or KINDS}
        about = {"reader": reader.metadata, "real": _numbers(report_of(real, reader))}
        return SceneMeasure(
            captions=tuple(modes),
            modes=modes,
            about=about,
            protocol=sweep.protocol,
            reader=reader,
            extractor=extractor,
            reference=reference,
        )

    def __call__(self, drawn: Drawn, sampled_with: Mapping[str, Any]) -> Measured:
        """Those of the protocol `emoji` of `evaluate`, of sets, and of the diversity of each caption."""
        rows = self.extractor(drawn.pixels)
        kinds = np.array([KINDS.index(caption) for caption in self.captions])[drawn.captions]
        report = report_of(Samples(kinds=kinds, pixels=drawn.pixels, z=drawn.z), self.reader)
        captions, values = report.pop("captions"), _numbers(report) | diversity(rows, drawn.captions)
        result = measure_set(
            self.protocol, self.reference, rows, identity=self.extractor.identity, sampled_with=dict(sampled_with)
        )
        sprites = self.reader(drawn.pixels).sprite
        seen = np.where(sprites // SPRITES_PER_KIND == kinds, sprites % SPRITES_PER_KIND, -1)
        return Measured(
            result=dataclasses.replace(result, values=dict(result.values) | values), captions=captions, seen=seen
        )


def _modes_of(kind: int) -> Modes:
    first = SPRITES_PER_KIND * kind
    return Modes(names=SPRITE_NAMES[first : first + SPRITES_PER_KIND], shares=tuple(SHARES[kind].tolist()))


_REFERENCE_SEED = 2**31 - 1  # no training set has it


def _scenes_of(path: str) -> DataEmoji:
    data = Config.from_json(find_model(path)).data
    if data.source != "emoji":
        found = f"{path}, a model of data.source = {data.source!r}"
        raise user_error(found, "one of the emoji scenes for this protocol", "take another protocol")
    # What z says is the model's own affair.
    return dataclasses.replace(data.emoji, num_train=1, num_test=1, two_share=0.0, names_alone=False)


def diversity(rows: Rows, conditions: Sequence[int] | Int[np.ndarray, "n"]) -> dict[str, float]:
    """`vendi` and `similarity`: means over the conditions."""
    found = {"vendi": vendi_score, "similarity": mean_similarity}
    labels = np.asarray(conditions).tolist()
    return {name: float(np.mean(list(by_condition(measure, rows, labels).values()))) for name, measure in found.items()}


def _numbers(report: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in report.items() if isinstance(v, int | float)}


def pixels_shown(drawn: Drawn, number: int, captions: int) -> list[at.Images]:
    """The first images of each caption."""
    return [drawn.pixels[drawn.captions == caption][:number] for caption in range(captions)]
