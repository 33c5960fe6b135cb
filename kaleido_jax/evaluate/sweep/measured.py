"""What a measure of a sweep gives, and what it must offer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from kaleido_jax import array_types as at
from kaleido_jax.evaluate.features.extractor import Extractor, Rows
from kaleido_jax.evaluate.metrics.diversity import by_condition, mean_similarity, vendi_score
from kaleido_jax.evaluate.sets import Reference
from kaleido_jax.evaluate.stamp import Result
from kaleido_jax.evaluate.sweep.drawing import Drawn


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
    identity: str  # 16 hex digits of what tells the modes apart, if it is more than the extractor

    def __call__(self, drawn: Drawn, sampled_with: Mapping[str, Any]) -> Measured:
        """All numbers of some samples; `sampled_with` are the fields of a Stamp that tell how they were made."""


def diversity(rows: Rows, conditions: Sequence[int] | Int[np.ndarray, "n"]) -> dict[str, float]:
    """`vendi` and `similarity`: means over the conditions."""
    found = {"vendi": vendi_score, "similarity": mean_similarity}
    labels = np.asarray(conditions).tolist()
    return {name: float(np.mean(list(by_condition(measure, rows, labels).values()))) for name, measure in found.items()}


def pixels_shown(drawn: Drawn, number: int, captions: int) -> list[at.Images]:
    """The first images of each caption."""
    return [drawn.pixels[drawn.captions == caption][:number] for caption in range(captions)]
