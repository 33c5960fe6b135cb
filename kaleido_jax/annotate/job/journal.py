"""Journal of the shard in hand: its finished images, so that a stopped job goes on behind them.

A file of frames, one for each batch, each with its length and checksum. What a killed process left unfinished at the
end is cut off when the journal is opened again. An image is found again by the job's specification, its id and its
version, so photos that come or go cost none of the others; what was finished with other settings is told and not used.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

log = logging.getLogger(__name__)

SUFFIX = ".journal"
_LENGTH, _CHECKSUM = 8, 8  # bytes before the content of a frame

Key = tuple[str, str]  # of an image: its id and its version


class Journal:
    """The finished images of one job in a file; entries are values of msgpack."""

    def __init__(self, file: BinaryIO | None, job: str) -> None:
        """Keeps the whole frames of the file; None keeps nothing."""
        self._file, self._job = file, job
        self._places: dict[Key, tuple[int, int]] = {}  # -> start of the frame, number in it
        self._frame: tuple[int, Any] = (-1, None)  # start and images of the last one that was read
        self.num_other = 0  # images of other settings
        if file is None:
            return
        file.seek(0)
        end = 0
        for start, after, content in _frames(file):
            end, images = after, _images(content, job)
            self.num_other += 0 if images else _size(content)
            self._places |= {(id, version): (start, n) for n, (id, version, _) in enumerate(images)}
        file.truncate(end)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Key]:
        """The images, in the order in which they were finished."""
        return iter(tuple(self._places))

    def __getitem__(self, key: Key) -> Any:
        """The entry of an image; one batch at a time is in memory."""
        start, number = self._places[key]
        if self._frame[0] != start:
            self._file.seek(start)
            [*_, content] = next(_frames(self._file))
            self._frame = start, content["images"]
        return self._frame[1][number][2]

    def append(self, entries: Mapping[Key, Any]) -> None:
        """Adds a finished batch, which survives the death of this process."""
        if self._file is None or not entries:
            return
        start = self._file.seek(0, os.SEEK_END)
        packed = msgpack.packb({"job": self._job, "images": [[*key, entry] for key, entry in entries.items()]})
        self._file.write(len(packed).to_bytes(_LENGTH) + sha256(packed).digest()[:_CHECKSUM] + packed)
        self._file.flush()
        self._places |= {key: (start, n) for n, key in enumerate(entries)}


def _images(content: Any, job: str) -> Sequence[Any]:
    """The images of a frame; none, if they are of other settings."""
    return content["images"] if isinstance(content, dict) and content.get("job") == job else ()


def _size(content: Any) -> int:
    """How many images a frame has; those of an older form are lists behind one frame of text."""
    images = content["images"] if isinstance(content, dict) else content
    return len(images) if isinstance(images, list) else 0


def _frames(file: BinaryIO) -> Iterator[tuple[int, int, Any]]:
    """(start, end, content) of each whole frame from the file's place on."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(_LENGTH + _CHECKSUM)) == _LENGTH + _CHECKSUM:
        length, start = int.from_bytes(head[:_LENGTH]), file.tell() - len(head)
        if file.tell() + length > size:
            return
        packed = file.read(length)
        if sha256(packed).digest()[:_CHECKSUM] != head[_LENGTH:]:
            return
        yield start, file.tell(), msgpack.unpackb(packed)


@contextmanager
def open_journal(path: Path, job: str) -> Iterator[Journal]:
    """The journal at `path`, for this process alone; if another one writes it, this one keeps none.

    Args:
      path: of the file, which stays.
      job: the specification; images of another are not found.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # another process makes this shard too, or the file system has no locks
            log.warning("%s cannot be locked (%s), so a stop loses the images of its shard", path, error.strerror)
            yield Journal(None, job)
            return
        yield Journal(file, job)


def rehome(paths: Sequence[Path], homes: Mapping[str, Path], job: str) -> tuple[int, int]:
    """Copies finished images into the journals of the shards that they belong to now.

    Args:
      paths: of the journals that there are.
      homes: id of an image -> the journal of its shard; images without one are left.
      job: the specification.

    Returns:
      How many images were copied, and how many have no shard.
    """
    copied = homeless = 0
    for path in paths:
        with open_journal(path, job) as journal:
            strays: dict[Path, list[Key]] = {}
            for key in journal:
                strays.setdefault(homes.get(key[0], Path()), []).append(key)
            strays.pop(path, None)
            homeless += len(strays.pop(Path(), ()))
            for home, keys in strays.items():
                with open_journal(home, job) as other:
                    for key in keys:  # one at a time: entries hold images
                        if key not in other:
                            other.append({key: journal[key]})
                            copied += 1
    return copied, homeless
