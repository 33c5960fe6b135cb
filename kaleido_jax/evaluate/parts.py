"""Measuring that may be stopped: the report of before, and samples stored in parts; in one process or several."""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax import array_types as at
from kaleido_jax.config.schema import Sample
from kaleido_jax.errors import UserError
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import BAD_NPZ, read_json, replacing
from kaleido_jax.sampling.output import pixels_of
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.tokens import SampledLatents, pad_rows, read_latents

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
IN_USE_SEC = 86_400  # a run that still draws stores a part more often than that


def stored_report(path: Path, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """The report in a file, in every process, if its `of` is this; a damaged one is told and counts as none."""

    def read() -> dict[str, Any] | None:
        report = read_stored(path) or {}
        return report if report.get("of") == metadata else None

    return distributed.tell("measured before", read, distributed.START_SEC)


def read_stored(path: Path) -> dict[str, Any] | None:
    """What a measuring that may be stopped has written; None if nothing, or with a warning if the file is damaged."""
    try:
        return read_json(path, "a result that `evaluate` wrote", "it is measured again")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UserError as error:
        log.warning("%s", error)
        return None


def draw_in_parts(number: int, size: int, folder: Path, draw: Callable[[list[int]], Arrays]) -> list[Arrays]:
    """Samples 0..number-1 in parts of `size`; parts that the folder holds already are not drawn again.

    Args:
      number: of samples.
      size: of a part; a run that was stopped loses at most as many.
      folder: of the parts' files.
      draw: sample indices -> arrays of a part, called in every process; the main one stores them.
    """
    parts = []
    for start in range(0, number, size):
        path, rows = folder / f"{start:06d}.npz", list(range(start, min(start + size, number)))
        mine = _stored_part(path) if distributed.is_main() else None
        if not distributed.tell("a part is there", lambda mine=mine: mine is not None, distributed.START_SEC):
            log.info("samples %d to %d of %d", start + 1, rows[-1] + 1, number)
            arrays = draw(rows)
            if distributed.is_main():
                mine = {name: np.asarray(array) for name, array in arrays.items()}
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.savez(file, **mine)
        distributed.barrier("a part is written", distributed.START_SEC)
        # What the main process has it does not read again: another run on this folder may have removed the file.
        parts.append(_read_part(path) if mine is None else mine)
    return parts


def _stored_part(path: Path) -> Arrays | None:
    """A part that is there, or None; a damaged one is told and counts as missing."""
    try:
        return _read_part(path)
    except FileNotFoundError:
        return None
    except BAD_NPZ as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        log.warning("%s is damaged (%s); its samples are drawn again", path, reason)
        return None


def _read_part(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def remove_samples(folder: Path, done: Collection[Path], kept: Collection[Path] = ()) -> None:
    """Removes samples that are not needed any more, and not those that another run may be drawing.

    Args:
      folder: holds a folder for each set of samples.
      done: of its folders, those that go at once.
      kept: of its folders, those that stay. All others go when nothing was stored in them for a day.
    """
    others = {*folder.iterdir()} - {*done} - {*kept} if folder.is_dir() else set()
    for one in (*done, *filter(_is_abandoned, others)):
        shutil.rmtree(one, ignore_errors=True)  # of two runs that measure the same, the second finds it gone
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()


def _is_abandoned(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > IN_USE_SEC
    except FileNotFoundError:
        return False


def draw_captions_in_parts(
    pipeline: KaleidoPipeline, sample: Sample, captions: Sequence[str], seed: int, size: int, folder: Path
) -> tuple[list[SampledLatents], at.Images]:
    """An image of each caption from a z of its own, and these z; parts that `folder` holds already are not drawn again.

    Raises:
      FloatingPointError: samples are not finite.
    """

    def draw_part(rows: list[int]) -> Arrays:
        z, pixels = draw_rows(pipeline, sample, rows, [captions[i] for i in rows], seed)
        limit = pipeline.config.latents.max_latents_tokens
        return {"pixels": pixels, "tokens": pad_rows([row.tokens for row in z], limit)}

    parts = draw_in_parts(len(captions), size, folder, draw_part)
    z = [read_latents(row, pipeline.codec) for part in parts for row in part["tokens"]]
    return z, np.concatenate([part["pixels"] for part in parts])


def draw_rows(
    pipeline: KaleidoPipeline, sample: Sample, rows: list[int], captions: list[str], seed: int
) -> tuple[list[SampledLatents], at.Images]:
    """(z, images as uint8) of these sample indices; no z for a baseline.

    Raises:
      FloatingPointError: samples are not finite.
    """
    z, tokens = [], None
    if pipeline.config.latents.segments:
        z = pipeline.sample_latents(captions, seed=seed, indices=rows, sample=sample)
        tokens = [row.spelled(pipeline.codec) for row in z]
    x = pipeline.sample_images(captions, tokens, seed=seed, indices=rows, sample=sample)
    if not np.isfinite(x).all():
        raise FloatingPointError("samples are not finite; check the checkpoint, or lower gamma")
    return z, pixels_of(x)
