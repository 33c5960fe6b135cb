"""The measure of a sweep on scenes of emoji, whose hidden modes and their shares are known."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.config.schema import Config, DataEmoji
from kaleido_jax.config.sweep import Sweep
from kaleido_jax.data.sources.emoji import KINDS, SHARES, SPRITE_NAMES, SPRITES_PER_KIND
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.emoji import Samples, real_samples, report_of
from kaleido_jax.evaluate.features.extractor import Extractor, reader_extractor
from kaleido_jax.evaluate.sets import Reference, measure_set, reference_of
from kaleido_jax.evaluate.sprite_reader import SpriteReader, open_reader
from kaleido_jax.evaluate.sweep.drawing import Drawn
from kaleido_jax.evaluate.sweep.measured import Measured, Modes, diversity
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.sampling.pipeline import find_model


@dataclass(frozen=True, kw_only=True)
class SceneMeasure:
    """Scenes of emoji, whose modes are known: what the sprite reader sees, and sets of its features."""

    captions: tuple[str, ...]
    modes: dict[str, Modes]
    about: dict[str, Any]
    protocol: str
    reader: SpriteReader
    extractor: Extractor  # the reader's own features
    reference: Reference
    identity: str = ""

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


def _numbers(report: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in report.items() if isinstance(v, int | float)}
