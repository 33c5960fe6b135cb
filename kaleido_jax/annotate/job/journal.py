"""Journal of the shard in hand: its finished images, so that a stopped job goes on behind them.

A file of frames, one for each batch, each with its length and checksum. What a killed process left unfinished at the
end is cut off when the journal is opened again; the journal of another job, or of other images, is begun anew.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

log = logging.getLogger(__name__)

SUFFIX = ".journal"
_LENGTH, _CHECKSUM = 8, 8  # bytes before the content of a frame


class Journal:
    """What is known of the first images of a shard, in their order; entries are values of msgpack."""

    def __init__(self, file: BinaryIO | None, header: str) -> None:
        """Keeps the whole frames of the file; None keeps nothing."""
        self._file, self.num_kept, self._batches = file, 0, 0
        if file is None:
            return
        file.seek(0)
        frames = _frames(file)
        end, found = next(frames, (0, None))
        if found != header:
            file.truncate(0)
            self._write(header)
            return
        for place, entries in frames:
            end = place
            self._batches += 1
            self.num_kept += len(entries)
        file.truncate(end)

    def kept(self) -> Iterator[list[Any]]:
        """The entries of each batch that was finished before; one batch at a time is in memory."""
        if not self._batches:
            return
        self._file.seek(0)
        frames = _frames(self._file)
        next(frames)
        for _ in range(self._batches):
            yield next(frames)[1]

    def append(self, entries: Sequence[Any]) -> None:
        """Adds a finished batch, which survives the death of this process."""
        if self._file is not None:
            self._file.seek(0, 2)
            self._write(list(entries))

    def _write(self, content: Any) -> None:
        packed = msgpack.packb(content)
        self._file.write(len(packed).to_bytes(_LENGTH) + sha256(packed).digest()[:_CHECKSUM] + packed)
        self._file.flush()


def _frames(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """(where it ends, content) of each whole frame from the file's place on."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(_LENGTH + _CHECKSUM)) == _LENGTH + _CHECKSUM:
        length = int.from_bytes(head[:_LENGTH])
        if file.tell() + length > size:
            return
        packed = file.read(length)
        if sha256(packed).digest()[:_CHECKSUM] != head[_LENGTH:]:
            return
        yield file.tell(), msgpack.unpackb(packed)


@contextmanager
def open_journal(path: Path, header: str) -> Iterator[Journal]:
    """The journal at `path`, for this process alone; if another one writes it, this one keeps none.

    Args:
      path: of the file, which stays.
      header: identifies the job and the images.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # another process makes this shard too, or the file system has no locks
            log.warning("%s cannot be locked (%s), so a stop loses the images of its shard", path, error.strerror)
            yield Journal(None, header)
            return
        yield Journal(file, header)
