"""The samples of a cell, drawn once and kept: z of a model, prior settings and seed; images of a z and a guidance.

Cells share what they can: all of a model's guidance rules draw from the same z, and from the same noise as every other
model's.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from kaleido_jax import array_types as at
from kaleido_jax.config.schema import Sample
from kaleido_jax.evaluate.parts import Arrays, draw_in_parts
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.runtime.randomness import purpose_key
from kaleido_jax.sampling.batched import OF_THE_PRIOR
from kaleido_jax.sampling.output import pixels_of
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.tokens import SampledLatents, pad_rows, read_latents

PART = 200  # samples that are stored together, or a whole batch: a run that was stopped loses at most as many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """The samples of a cell."""

    captions: Int[np.ndarray, "n"]  # of each, indices into the captions
    pixels: at.Images
    z: list[SampledLatents]  # empty for a baseline


def draw(
    pipeline: KaleidoPipeline,
    sample: Sample,
    captions: Sequence[str],
    number: int,
    seed: int,
    folder: Path,
    shuffled: bool = False,
    chunk: int = 0,
    same_z: bool = False,
) -> Drawn:
    """`number` images of the captions in turn; what the folder holds already is not drawn again.

    Args:
      pipeline: the model.
      sample: settings.
      captions: all different.
      number: of images.
      seed: sample i depends on it, on i and on the caption alone.
      folder: of the samples of all cells.
      shuffled: each image gets the z of another image of its caption.
      chunk: images that the pipeline samples at once.
      same_z: all images of a caption get the z of its first one.

    Raises:
      FloatingPointError: samples are not finite.
    """
    part = max(PART, chunk)
    kinds, last = np.arange(number) % len(captions), number % part  # rows of a last part that is not full
    of_prior = {name: getattr(sample, name) for name in (*OF_THE_PRIOR, "grammar")}
    recipe = pipeline.recipe(captions, 1, seed, sample)
    common = [list(captions), seed, last, *([part] if part != PART else [])]
    unguided = pipeline.recipe(captions, 1, seed, dataclasses.replace(sample, gamma=1.0))["model"]
    source = fingerprint(json.dumps([unguided, of_prior, *common]))
    z = _latents(pipeline, sample, [captions[kind] for kind in kinds], seed, folder / "latents" / source, part)
    if shuffled and z:
        z, source = [z[i] for i in _other_of_caption(kinds, seed)], f"{source} of {number}, shuffled"
    if same_z and z:
        z, source = [z[kind] for kind in kinds], f"{source}, the first of each"
    tokens = [row.spelled(pipeline.codec) for row in z]
    name = fingerprint(json.dumps([recipe["model"], recipe["sample"], source if z else "", *common]))

    def draw_part(rows: list[int]) -> Arrays:
        given = [tokens[i] for i in rows] if z else None
        x = pipeline.sample_images([captions[kinds[i]] for i in rows], given, seed=seed, indices=rows, sample=sample)
        if not np.isfinite(x).all():
            raise FloatingPointError("samples are not finite; check the checkpoint, or lower gamma")
        return {"pixels": pixels_of(x)}

    parts = draw_in_parts(number, part, folder / "images" / name, draw_part)
    return Drawn(captions=kinds, pixels=np.concatenate([part["pixels"] for part in parts]), z=z)


def _latents(
    pipeline: KaleidoPipeline, sample: Sample, captions: list[str], seed: int, folder: Path, part: int
) -> list[SampledLatents]:
    if not pipeline.config.latents.segments:
        return []

    def draw_part(rows: list[int]) -> Arrays:
        z = pipeline.sample_latents([captions[i] for i in rows], seed=seed, indices=rows, sample=sample)
        return {"tokens": pad_rows([row.tokens for row in z], pipeline.config.latents.max_latents_tokens)}

    parts = draw_in_parts(len(captions), part, folder, draw_part)
    return [read_latents(row, pipeline.codec) for part in parts for row in part["tokens"]]


def _other_of_caption(kinds: Int[np.ndarray, "n"], seed: int) -> Int[np.ndarray, "n"]:
    """For each sample another one of the same caption, a cyclic shift of a random order."""
    key, other = purpose_key(seed, "shuffled latents"), np.arange(len(kinds))
    for kind in np.unique(kinds):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, kind), np.flatnonzero(kinds == kind)))
        other[order] = np.roll(order, 1)
    return other
