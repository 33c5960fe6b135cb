"""Looks at a run while it trains: held-out losses, and a grid of the same captions with the same latents and noise."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config
from kaleido_jax.data.records import MANIFEST, Record, Records, find_records, open_records, records_folder
from kaleido_jax.errors import UserError
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.types import select
from kaleido_jax.models.kaleido import Kaleido
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import write_atomically
from kaleido_jax.runtime.mesh import placing, put_batch, replicated
from kaleido_jax.sampling.output import png_bytes
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.train.batches import make_batches
from kaleido_jax.train.caption_cache import ClassCaptions
from kaleido_jax.train.metrics import scalars_at
from kaleido_jax.train.step import Metrics, joint_loss

log = logging.getLogger(__name__)

HELD_OUT = "test"  # the split
FOLDER = "samples/training"
ROWS = 6  # of the grid
_MOST_TRIES = 16 * ROWS  # records that are read for it, should some be damaged
_PREFIX = "held_out_"  # of the names of their losses
_TOKENS = "tokens"  # of z in a batch, by which its loss_ar counts


class Losses:
    """The training loss and its parts, without a step, under times and noise that are the same whenever it is asked.

    L_AR is that of the given z, scheduled sampling or not: what training draws itself is no likelihood of held-out z.
    """

    def __init__(self, config: Config, model: Kaleido, mesh: Mesh) -> None:
        """Compiles with the first batch of each shape."""
        self.mesh, self._eta = mesh, config.train.eta
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, scheduled_sampling=0.0))

        def losses(params: dict[str, Any], frozen: dict[str, Any], batch: dict[str, Any], number: Any) -> Metrics:
            with placing(mesh, config.mesh.rules):
                metrics = joint_loss(params | frozen, model, config, batch, number)[1]
            return metrics | {_TOKENS: batch["decoder_loss_weights"].sum()} if model.has_prior else metrics

        self._losses = jax.jit(losses, out_shardings=replicated(mesh))

    def mean(
        self, batches: Sequence[dict[str, np.ndarray]], params: dict[str, Any], frozen: dict[str, Any], passes: int = 1
    ) -> dict[str, float]:
        """The mean over the samples, that of `loss_ar` over their tokens, by the names of the metrics.

        Args:
          batches: this process's rows of each, one at least.
          params: trained parts of the model.
          frozen: the other parts.
          passes: over the batches, each with times and noise of its own.
        """
        found, rows = [], []
        for number in range(passes * len(batches)):
            batch = batches[number % len(batches)]
            inputs = params, frozen, put_batch(batch, self.mesh), np.int32(number)
            distributed.compile_together(self._losses, *inputs)
            found.append(jax.device_get(self._losses(*inputs)))
            rows.append(len(batch["image"]))
        weights = {name: rows for name in found[0]}
        if tokens := [float(each[_TOKENS]) for each in found if _TOKENS in each]:
            weights["loss_ar"] = tokens
        weights.pop(_TOKENS, None)
        means = {name: float(np.average([each[name] for each in found], weights=w)) for name, w in weights.items()}
        if "loss" in means:
            means["loss"] = means["loss_dm"] + self._eta * means.get("loss_ar", 0.0)
        return means


class Looks:
    """What config.eval.every_steps asks for; the first look compiles."""

    def __init__(
        self, config: Config, workdir: Path, model: Kaleido, captions: ClassCaptions | None, mesh: Mesh
    ) -> None:
        """Opens the held-out records; without any, the grid shows training records and there are no held-out losses."""
        self.config, self.workdir, self.mesh, self.captions = config, workdir, mesh, captions
        self.codec = open_codec(config)
        self.records = _held_out(config, workdir, self.codec)
        self.batches = self._batches() if self.records and config.eval.held_out_batches else []

        self._losses = Losses(config, model, mesh)

    def __call__(self, step: int, ema: dict[str, Any], frozen: dict[str, Any]) -> dict[str, float]:
        """Held-out losses of the EMA, under names with `held_out_`; the grid is in samples/training/."""
        found = self._losses.mean(self.batches, ema, frozen) if self.batches else {}
        if self.config.eval.grid:
            self._draw(step, ema | frozen)
        return {f"{_PREFIX}{name}": value for name, value in found.items()}

    def lacks(self, step: int) -> bool:
        """Whether losses or grid of a step are not in the workdir: a stop or a kill may come before they are made."""
        if self.config.eval.grid and not self._grid_path(step).exists():
            return True
        return bool(self.batches) and not any(name.startswith(_PREFIX) for name in scalars_at(self.workdir, step))

    def _grid_path(self, step: int) -> Path:
        return self.workdir / FOLDER / f"step_{step:08d}.png"

    def _batches(self) -> list[dict[str, np.ndarray]]:
        """The first batches of the held-out records, the same for every look; their times and noise are fixed too.

        Without buckets: the first batches to be full would all have short z.
        """
        data = dataclasses.replace(self.config.data, length_buckets=())
        config = dataclasses.replace(self.config, data=data)
        loader = make_batches(config, self.records, self.codec, shuffle=False, num_epochs=1)
        number = min(self.config.eval.held_out_batches, len(loader))
        batches = [next(loader) for _ in range(number)]
        loader.close()
        return [self.captions.add_rows(batch) if self.captions else batch for batch in batches]

    def _draw(self, step: int, params: dict[str, Any]) -> None:
        if not self._shown:
            return
        given: dict[str, Any] = {"guidance": "cfg"} if self._worse_is_missing else {}
        if self.codec.segments:
            given["latents"] = [select(record.latents, self.codec.segments) for record in self._shown]
        pipeline = KaleidoPipeline(self.config, params, self.codec, step)
        names = [record.caption for record in self._shown]
        out = pipeline(names, images_per_caption=2, seed=self.config.seed, **given)
        path = self._grid_path(step)
        if distributed.is_main():
            try:
                write_atomically(path, png_bytes(out.grid()))
            except OSError as error:  # a full disk, for example: no picture is worth the training
                log.warning("the grid %s cannot be written (%s)", path, error.strerror)
                return
        log.info("grid of held-out captions and latents: %s", path)

    @functools.cached_property
    def _worse_is_missing(self) -> bool:
        if self.config.sample.guidance != "autoguidance":
            return False
        log.warning("grids while training are drawn with guidance = 'cfg': the worse model of autoguidance is not read")
        return True

    @functools.cached_property
    def _shown(self) -> list[Record]:
        """The first records that every process can read."""
        records = self.records or _train_records(self.config, self.workdir, self.codec)
        shown: list[Record] = []
        for index in range(min(_MOST_TRIES, len(records))):
            try:
                found = [records[index]]
            except UserError as error:
                log.warning("%s; the grid shows the next record", error)
                found = []
            if distributed.agree("a record of the grid", bool(found), distributed.START_SEC):
                shown += found
            if len(shown) == ROWS:
                break
        if not shown:
            log.warning("none of the first %d records can be read, so no grid", _MOST_TRIES)
        return shown


def open_held_out(config: Config, workdir: Path, codec: Codec) -> Records | None:
    """The records of the split `test` beside those of training; None if there are none."""
    folder = find_records(records_folder(config, workdir), HELD_OUT)
    train = find_records(records_folder(config, workdir))
    if folder == train or not (folder / MANIFEST).exists():
        return None
    return open_records(folder, codec=codec, image_size=config.model.denoiser.image_size, verify=config.data.verify)


def _held_out(config: Config, workdir: Path, codec: Codec) -> Records | None:
    records = open_held_out(config, workdir, codec)
    if records is None:
        where = records_folder(config, workdir) / HELD_OUT
        log.warning("no held-out records (%s), so no held-out losses", where)
        return None
    if config.eval.held_out_batches and len(records) < config.train.batch_size:
        log.warning(
            "%d held-out records fill no batch of %d, so no held-out losses", len(records), config.train.batch_size
        )
        return None
    return records


def _train_records(config: Config, workdir: Path, codec: Codec) -> Records:
    folder = find_records(records_folder(config, workdir))
    return open_records(folder, codec=codec, image_size=config.model.denoiser.image_size, verify="size")
