"""Order of training: which records form each batch, as a function of the seed and the batch's number alone.

It does not depend on the number of processes, worker processes or threads, so the number of the next batch is all that
a checkpoint needs to store.
"""

import bisect
import functools
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from kaleido_jax.errors import user_error


class Order:
    """Batches of record indices; `order[n]` is batch n, int64 (batch_size,).

    The records follow each other epoch after epoch, each epoch in an order of its own. Every bucket collects its
    records, and its batch comes when it is full; what is left at the end of an epoch goes into the bucket's next batch.
    So every batch is full, holds one bucket only, and no record is left out.
    """

    def __init__(
        self,
        bucket_of: Int[np.ndarray, " n"],
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        num_epochs: int | None = None,
    ) -> None:
        """Takes the bucket of each record, 0, 1, ...

        Raises:
          UserError: the records do not fill a batch.
        """
        self.bucket_of = bucket_of
        self.batch_size = batch_size
        self._seed, self._shuffle, self._num_epochs = seed, shuffle, num_epochs
        self._counts = np.bincount(bucket_of)
        if not len(self):
            raise user_error(f"{len(bucket_of)} records", f"a full batch of {batch_size}", "lower train.batch_size")

    def __len__(self) -> int:
        return sys.maxsize if self._num_epochs is None else self._through(self._num_epochs)

    @functools.lru_cache(maxsize=16)  # noqa: B019  samples are read one by one, by several threads
    def __getitem__(self, number: int) -> Int[np.ndarray, " b"]:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        epoch = self._epoch_of(number)
        bucket, batch = self._batches(epoch)[number - self._through(epoch)]
        return self._members(int(bucket), int(batch) * self.batch_size, self.batch_size)

    def next_of_bucket(self, index: int) -> int:
        """The record after `index`, by number, that has the same bucket: it stands in for one that cannot be read."""
        same = np.flatnonzero(self.bucket_of == self.bucket_of[index])
        return int(same[(np.searchsorted(same, index) + 1) % len(same)])

    def _through(self, epochs: int) -> int:
        """Batches that are full at the end of so many epochs."""
        return sum(epochs * int(count) // self.batch_size for count in self._counts)

    def _epoch_of(self, number: int) -> int:
        low = number * self.batch_size // len(self.bucket_of)  # a batch never comes before all its records
        high = low + len(self._counts) * self.batch_size // len(self.bucket_of) + 2
        return low + bisect.bisect_right(range(low + 1, high + 1), number, key=self._through)

    def _members(self, bucket: int, start: int, count: int) -> Int[np.ndarray, " b"]:
        """`count` records of a bucket's endless row of records, from number `start`."""
        size, parts = int(self._counts[bucket]), []
        while count:
            epoch, first = divmod(start, size)
            part = self._buckets(epoch)[bucket][first : first + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    @functools.lru_cache(maxsize=2)  # noqa: B019  an order lives as long as its run
    def _batches(self, epoch: int) -> Int[np.ndarray, "m 2"]:
        """(bucket, number of the batch in its bucket) of the batches of an epoch, in the order of their last record."""
        buckets, rows, last = self.bucket_of[self._permutation(epoch)], [], []
        for bucket, size in enumerate(map(int, self._counts)):
            numbers = np.arange(epoch * size // self.batch_size, (epoch + 1) * size // self.batch_size)
            filled = (numbers + 1) * self.batch_size - 1 - epoch * size  # which of the epoch's records fills it
            last.append(np.flatnonzero(buckets == bucket)[filled])
            rows.append(np.stack([np.full_like(numbers, bucket), numbers], 1))
        return np.concatenate(rows)[np.argsort(np.concatenate(last))]

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _buckets(self, epoch: int) -> list[Int[np.ndarray, " m"]]:
        """The records of each bucket in the order of an epoch."""
        order = self._permutation(epoch)
        buckets = self.bucket_of[order]
        return [order[buckets == bucket] for bucket in range(len(self._counts))]

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _permutation(self, epoch: int) -> Int[np.ndarray, " n"]:
        indices = np.arange(len(self.bucket_of))
        if not self._shuffle:
            return indices
        return np.argsort(_hash(indices.astype(np.uint64), self._seed, epoch), kind="stable")


def buckets_of(lengths: Int[np.ndarray, " n"], bounds: Sequence[int]) -> Int[np.ndarray, " n"]:
    """The bucket of each length: the first of the ascending `bounds` that is not smaller."""
    return np.searchsorted(np.asarray(bounds), lengths)


def _hash(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """64 random bits of each index (SplitMix64, Steele et al. 2014), which no library's next version will change."""
    with np.errstate(over="ignore"):
        state = indices
        for word in (seed, epoch):
            state = state + np.uint64(0x9E3779B97F4A7C15) * np.uint64(word + 1)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state
