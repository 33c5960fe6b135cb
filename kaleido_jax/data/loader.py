"""Batches of records with Grain: shuffled, in buckets of length, read by threads or processes, resumable to the sample.

A batch has B samples, this process's rows of the batch, as numpy arrays (without segments no `decoder_*`):

  encoder_input_tokens   (B, c) int32               caption and eos, padded with 0
  decoder_target_tokens  (B, z) int32               z and eos, padded with 0; z = the batch's bucket length
  decoder_input_tokens   (B, z) int32               the targets shifted right by a 0
  decoder_loss_weights   (B, z) float32             1 where the target is valid
  image                  (B, H, W, 3) uint8         of records of the denoiser's size
                         (B, H, W, 3) float32       of larger ones: means of their pixels, in the model range
  sample_id              (B,) int64                 index of the record
  replaced               (B,) float32               1 where the record could not be read and another stands in for it
  micro_scale            (B,) float32               px of the photo's shorter side, if `micros` has "scale"
"""

import contextlib
import dataclasses
import functools
import logging
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int, UInt8

from kaleido_jax.data.order import Order, buckets_of
from kaleido_jax.data.records import BAD_IMAGE, Records, TrainingRecord, decode_image
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.models.decode import shift_right
from kaleido_jax.runtime.signals import kept_from_children

log = logging.getLogger(__name__)

MOST_LOST = 3  # worker processes that are killed before training ends
_KILLED = "Worker process was terminated unexpectedly"  # of Grain's RuntimeError
_BUFFERED_BATCHES = 4  # read ahead while the device computes
_NUM_THREADS = 4  # that read and decode records, in each process
_MAX_TRIES = 8  # records that may stand in for one that cannot be read, one after the other


def make_loader(
    records: Records,
    *,
    codec: Codec,
    batch_size: int,
    max_caption_tokens: int,
    max_latents_tokens: int,
    seed: int,
    length_buckets: Sequence[int] = (),
    shuffle: bool = True,
    num_epochs: int | None = None,
    rows: slice | Int[np.ndarray, " r"] = slice(None),
    micros: Sequence[str] = (),
    num_workers: int = 0,
    in_memory: bool = False,
) -> "Batches":
    """An iterator of batches with get_state() and set_state(); with `num_epochs`, incomplete batches are left out.

    Args:
      records: as of open_records.
      codec: writes z; it has the records' vocabulary, and no segments for the baseline.
      batch_size: samples of all processes together.
      max_caption_tokens: bucket length of c, eos included.
      max_latents_tokens: bucket length of the longest z, eos included.
      seed: of the order, 0..2**32-1; each epoch has its own.
      length_buckets: shorter bucket lengths of z, ascending. A batch has one bucket, so that short z are not padded to
        the length of the longest.
      shuffle: False keeps the records' order.
      num_epochs: None never ends.
      rows: those of every batch that this process reads; the batches are the same however many processes share them.
      micros: micro conditions of the denoiser; records have "scale" only.
      num_workers: processes that read, with threads of their own; 0 = threads of this process.
      in_memory: keep what was read once, decoded, so that later epochs only copy it. Batches are the same.

    Raises:
      UserError: a sample is longer than its bucket (it is named, before the first batch), or no batch is full.
    """
    _check_lengths(records, codec, max_caption_tokens, max_latents_tokens)
    bounds = (*length_buckets, max_latents_tokens) if codec.segments else (0,)
    bucket_of = np.zeros(len(records), np.int64)
    if len(bounds) > 1:
        bucket_of = buckets_of(records.latents_lengths(codec), bounds)
    order = Order(bucket_of, batch_size, seed=seed, shuffle=shuffle, num_epochs=num_epochs)
    reader = _Reader(records, codec, order, rows, max_caption_tokens, bounds, tuple(micros))
    return Batches(reader, num_workers, _Kept(reader) if in_memory else None)


@runtime_checkable
class BatchIterator(Protocol):
    """Batches for training; Grain's iterators are such ones too."""

    def __next__(self) -> dict[str, Any]:
        """The next batch."""

    def get_state(self) -> dict[str, Any]:
        """The place of the next batch, as JSON can store it."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from there."""

    def close(self) -> None:
        """Ends what reads."""


class Batches(Iterator[dict[str, np.ndarray]]):
    """Batches from the next one on, whose number is the whole state."""

    def __init__(self, reader: "_Reader", num_workers: int, kept: "_Kept | None" = None) -> None:
        """Starts no thread before the first batch is asked for."""
        self._reader, self._num_workers, self._kept = reader, num_workers, kept
        self._next, self._iterator, self._lost = 0, None, 0

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch. Worker processes that are killed, as for memory, are started again, MOST_LOST times in all.

        Raises:
          UserError: they were killed more often.
        """
        while True:
            try:
                batch = self._read_next()
            except RuntimeError as error:
                if not self._num_workers or _KILLED not in str(error):
                    raise
                self._restart(str(error))
                continue
            self._next += 1
            return batch

    def _restart(self, told: str) -> None:
        """Ends the workers that are left, which the next batch starts anew."""
        self.close()
        code = re.search(r"exit code -?(\d+)", told)
        how = f"was killed by signal {code[1]}" if code and "-" in code[0] else f"ended ({told.splitlines()[0]:.200})"
        found = f"a data worker {how}"
        if self._lost == MOST_LOST:
            do = "free memory or /dev/shm, or lower config.data.num_workers; the same command then goes on"
            raise user_error(f"{found}, the {MOST_LOST + 1}th", f"memory for {self._num_workers} of them", do)
        self._lost += 1
        log.warning("%s, perhaps for memory; all are started again", found)

    def _read_next(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            # Grain starts its processes at the first batch.
            both = signal.SIGINT, signal.SIGTERM
            with kept_from_children(*both) if self._num_workers else contextlib.nullcontext():
                self._iterator = self._read_from(self._next)
                return next(self._iterator)
        return next(self._iterator)

    def __len__(self) -> int:
        return len(self._reader.order)

    def get_state(self) -> dict[str, Any]:
        """The place of the next batch, as JSON can store it."""
        return {
            "batch": self._next,
            "batch_size": self._reader.order.batch_size,
            "records": len(self._reader.records),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a place that get_state returned, with any number of processes.

        Among more records, or fewer, it is the batch of that number in their order, which is another one.

        Raises:
          UserError: it is the place in batches of another size.
        """
        size = self._reader.order.batch_size
        if state["batch_size"] != size:
            raise user_error(f"a place in batches of {state['batch_size']}", f"batches of {size}", "use that size")
        before, now = state.get("records"), len(self._reader.records)  # not stored by earlier versions
        if before not in (None, now):
            log.warning(
                "there were %d records and now there are %d: their order is another one from here on", before, now
            )
        self.close()
        self._next = state["batch"]

    def close(self) -> None:
        """Ends the reading threads and processes."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None

    def _read_from(self, batch: int) -> grain.DatasetIterator:
        reader = dataclasses.replace(self._reader, first=batch)
        number = min(len(reader.order) - batch, sys.maxsize // reader.rows_a_batch)
        options = grain.ReadOptions(num_threads=_NUM_THREADS, prefetch_buffer_size=_BUFFERED_BATCHES)
        if self._kept is not None:
            numbers = grain.MapDataset.range(batch, batch + number)
            return iter(numbers.map(self._kept.batch).to_iter_dataset(options))
        samples = grain.MapDataset.range(reader.rows_a_batch * number).map(reader)
        batches = samples.batch(reader.rows_a_batch, drop_remainder=True).to_iter_dataset(options)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # Grain reads some of absl's flags, which our command line does not parse
                flags.FLAGS.mark_as_parsed()
            processes = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=2)
            batches = batches.mp_prefetch(processes, worker_init_fn=_ignore_signals)
        return iter(batches)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads sample i of this process's rows, counted from batch `first`."""

    records: Records
    codec: Codec
    order: Order
    rows: slice | Int[np.ndarray, " r"]
    max_caption_tokens: int
    bounds: tuple[int, ...]  # bucket lengths of z, ascending
    micros: tuple[str, ...]
    first: int = 0

    @functools.cached_property
    def rows_a_batch(self) -> int:
        """This process's rows of a batch."""
        return len(np.arange(self.order.batch_size)[self.rows])

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        _end_with_parent()
        batch, row = divmod(int(number), self.rows_a_batch)
        return self.sample(int(self.order[self.first + batch][self.rows][row]))

    def sample(self, wanted: int) -> dict[str, np.ndarray]:
        """Record `wanted`, or the next one of its bucket that can be read."""
        index = wanted
        for _ in range(_MAX_TRIES - 1):
            try:
                return self._sample(index) | {"replaced": np.float32(index != wanted)}
            except UserError as error:
                log.warning("%s; the next record of its length stands in for it", error)
                index = self.order.next_of_bucket(index)
        return self._sample(index) | {"replaced": np.float32(1)}

    def _sample(self, index: int) -> dict[str, np.ndarray]:
        record = self.records.training_record(index)
        image = _decoded(record, self.records.manifest.source["image_size"])
        if image.shape[0] != self.records.image_size:
            image = shrink(to_model_range(image), self.records.image_size)
        length = self.bounds[self.order.bucket_of[index]]
        sample = _tokens(record, self.codec, self.max_caption_tokens, length)
        if "scale" in self.micros:  # a photo of unknown size counts as one that was not enlarged
            sample["micro_scale"] = np.float32(record.shorter_side_px or image.shape[0])
        return sample | {"image": image, "sample_id": np.int64(index)}


class _Kept:
    """Batches of samples that are read when they are first asked for, and kept in arrays of all records.

    Threads may read the same sample twice; they then write the same values.
    """

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._arrays: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()  # for making the arrays
        self._there = np.zeros(len(reader.records), bool)

    def batch(self, number: int) -> dict[str, np.ndarray]:
        reader = self._reader
        indices = reader.order[int(number)][reader.rows]
        for index in indices[~self._there[indices]].tolist():
            self._keep(index, reader.sample(index))
        batch = {name: values[indices] for name, values in self._arrays.items()}
        length = reader.bounds[reader.order.bucket_of[indices[0]]]
        return {name: rows[:, :length] if name.startswith("decoder_") else rows for name, rows in batch.items()}

    def _keep(self, index: int, sample: dict[str, np.ndarray]) -> None:
        with self._lock:
            if not self._arrays:
                self._arrays = {name: self._room(name, value) for name, value in sample.items()}
        for name, value in sample.items():
            if name.startswith("decoder_"):
                self._arrays[name][index, : len(value)] = value
            else:
                self._arrays[name][index] = value
        self._there[index] = True

    def _room(self, name: str, value: np.ndarray | np.generic) -> np.ndarray:
        shape = self._reader.bounds[-1:] if name.startswith("decoder_") else np.shape(value)
        return np.zeros((len(self._there), *shape), value.dtype)


def _ignore_signals(worker: int, count: int) -> None:
    """In a worker process: Ctrl-C and SIGTERM reach the whole group, but the training process still needs batches."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def _end_with_parent() -> None:
    """In a worker process: ends it when the training process is gone, which a killed one cannot do itself."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _decoded(record: TrainingRecord, size_px: int) -> UInt8[np.ndarray, "s s 3"]:
    try:
        return decode_image(record.image, size_px)
    except BAD_IMAGE as error:
        found = f"the image of record {record.id:.100} is damaged ({str(error):.200})"
        raise user_error(found, f"a PNG of {size_px} px", "annotate again") from error


def shrink(image: Float[np.ndarray, "s s 3"], image_size: int) -> Float[np.ndarray, "p p 3"]:
    """The mean of each square of pixels, as in the denoiser's own pyramid."""
    factor = image.shape[0] // image_size
    return image.reshape(image_size, factor, image_size, factor, 3).mean((1, 3), dtype=np.float32)


def to_model_range(image: UInt8[np.ndarray | Array, "*b h w 3"]) -> Float[np.ndarray | Array, "*b h w 3"]:
    """uint8 -> float32 in the denoiser's range: (image - 127) / 128, about -1..1. On the host or on a device."""
    return (image.astype(np.float32) - 127) / 128


def pad_tokens(ids: Sequence[int], length: int, name: str, sample: str, field: str) -> np.ndarray:
    """Ids padded with 0 to int32 (length,).

    Raises:
      UserError: there are more; the message names the sample, what was too long and the config field to change.
    """
    if len(ids) > length:
        raise user_error(
            f"{name} of sample {sample} has {len(ids)} tokens",
            f"at most {field} = {length}",
            f"raise {field} or drop the sample",
        )
    padded = np.zeros(length, np.int32)
    padded[: len(ids)] = ids
    return padded


def _tokens(
    record: TrainingRecord, codec: Codec, max_caption_tokens: int, max_latents_tokens: int
) -> dict[str, np.ndarray]:
    caption = [*record.caption_tokens, codec.tokenizer.eos_id]
    padded = pad_tokens(caption, max_caption_tokens, "caption", record.id, "data.max_caption_tokens")
    tokens = {"encoder_input_tokens": padded}
    if codec.segments:
        ids = codec.join(record.tokens)
        target = pad_tokens(ids, max_latents_tokens, "latents", record.id, "latents.max_latents_tokens")
        tokens |= {
            "decoder_target_tokens": target,
            "decoder_input_tokens": shift_right(target),
            "decoder_loss_weights": (np.arange(max_latents_tokens) < len(ids)).astype(np.float32),
        }
    return tokens


def _check_lengths(records: Records, codec: Codec, max_caption_tokens: int, max_latents_tokens: int) -> None:
    longest = records.manifest.max_tokens
    joined = longest.get(" | ".join(codec.segments), math.inf) if codec.segments else 0
    if longest.get("caption", math.inf) <= max_caption_tokens and joined <= max_latents_tokens:
        return
    for index in range(len(records)):  # some sample is too long: find it now, not hours into a run
        _tokens(records.training_record(index), codec, max_caption_tokens, max_latents_tokens)
