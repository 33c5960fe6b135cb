"""Files and folders written atomically, errors of those that a user names, and fingerprints."""

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import struct
import tempfile
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kaleido_jax.errors import UserError, user_error

log = logging.getLogger(__name__)

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# Of file systems that do not answer, and of a process or machine with too many files open.
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE)
PASSING += (errno.ENOTCONN, errno.ECONNRESET, errno.EREMOTEIO)
# gs://bucket, also as pathlib writes it, with one slash; names of one letter are drives of Windows
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# What numpy, zipfile and the parser of numpy's headers raise for a damaged .npz, found by fuzzing; MemoryError for a
# header with a size that nothing could have.
BAD_NPZ = (
    *(
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        SyntaxError,
    ),
    *(MemoryError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


def is_full_disk(error: BaseException) -> bool:
    """Whether a full disk, or a quota, is why something could not be written."""
    return _has_number(error, FULL_DISK)


def is_passing(error: BaseException) -> bool:
    """Whether a file could not be read for a reason that says nothing about what is in it, and may be gone soon."""
    return _has_number(error, PASSING)


def is_refused(error: BaseException) -> bool:
    """Whether a file could not be read for lack of permission."""
    return _has_number(error, (errno.EACCES, errno.EPERM))


def _has_number(error: BaseException, numbers: Sequence[int]) -> bool:
    # TensorStore's errors have no errno, but what the system says of it.
    said = any(os.strerror(number) in str(error) for number in numbers)
    return said or getattr(error, "errno", None) in numbers


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which is renamed to `path` at the end and removed after an error.

    The name is unique, so several processes may write the same file at once; the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a whole file in one step; makes its folder if necessary."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def keep_steps(path: Path, last: int) -> None:
    """Drops the lines of a file of JSON after a step, which a run that resumes there writes again, and broken ones."""
    if path.exists():
        content = path.read_bytes()
        kept = b"".join(line + b"\n" for line in content.splitlines() if step_of(line) <= last)
        if kept != content:
            write_atomically(path, kept)


def step_of(line: bytes) -> float:
    """The step of a line of JSON; infinity for a broken one, as a killed run or a full disk leaves it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf


class Appended:
    """Bytes that are appended to a file, which is made with the first of them.

    Those for which a full disk had no room are kept, and written as soon as it has; none is torn by it.
    """

    def __init__(self, path: Path, keep: bool = True) -> None:
        """`keep` warns once of a full disk; without it `flush` raises."""
        self._path, self._keep = path, keep
        self._pending, self._told = bytearray(), False

    def write(self, content: bytes) -> None:
        """Takes bytes, without writing them yet."""
        self._pending += content

    def flush(self) -> None:
        """Writes everything.

        Raises:
          UserError: it cannot be written.
        """
        if not self._pending:
            return
        try:
            with self._path.open("ab", buffering=0) as file:  # a buffer would write a part again, or never
                while self._pending:
                    del self._pending[: file.write(bytes(self._pending))]
        except OSError as error:
            if not self._keep or error.errno not in FULL_DISK:
                found = f"{self._path} cannot be written ({error.strerror})"
                do = "provide them; the same command then goes on from what is there"
                raise user_error(found, "free space and permission", do) from error
            if not self._told:
                log.warning("%s: %s; what is to be written there is kept in memory", self._path, error.strerror)
            self._told = True

    def close(self) -> None:
        """Writes everything that still has room, and warns of what has none."""
        self.flush()
        if self._pending:
            log.warning("%s lacks its last %d bytes: the disk is full", self._path, len(self._pending))


def refuse_address(path: str | Path, name: str) -> None:
    """Checks that a path is not the address of a bucket, whose name a local folder would get.

    Raises:
      UserError: it is one; `name` is what the user set, e.g. "--workdir".
    """
    if _ADDRESS.match(str(path)):
        raise user_error(
            f"{name}={path}", "a path of this machine or of a mounted file system", "mount it, or name another"
        )


def make_folder(path: Path, name: str) -> Path:
    """Makes a writable folder and its parents; `name` is what the user set, e.g. "--workdir".

    Raises:
      UserError: a file is in the way, the folder is not writable, or the path is too long or an address.
    """
    refuse_address(path, name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _cannot_write(path, name, error) from error
    return path


def check_folder(path: Path, name: str) -> None:
    """Checks that a folder can be made and written to, without making it; `name` is what the user set.

    Raises:
      UserError: as `make_folder`.
    """
    refuse_address(path, name)
    try:
        there = next(one for one in (path, *path.absolute().parents) if one.exists())
        tempfile.TemporaryFile(dir=there).close()
    except (OSError, ValueError) as error:
        raise _cannot_write(path, name, error) from error


def _cannot_write(path: Path, name: str, error: OSError | ValueError) -> UserError:
    reason = "it is a file" if isinstance(error, FileExistsError) else getattr(error, "strerror", None) or str(error)
    shown = str(path) if len(str(path)) < 200 else f"{str(path)[:200]}..."
    return user_error(f"nothing can be written to {name}={shown} ({reason})", "a folder to write into", "name another")


@contextmanager
def new_folder(path: Path, name: str) -> Iterator[Path]:
    """A folder under a temporary name, which is renamed to `path` at the end and removed after an error.

    The name is unique: what a killed process left is in nobody's way, and of several processes the first one wins.

    Raises:
      UserError: `path` exists and is not empty, at the start or at the end, or nothing (more) can be written there.
    """
    refuse_address(path, name)
    try:
        if _is_taken(path):
            raise _exists(path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.mkdir()
    except (OSError, ValueError) as error:
        raise _cannot_write(path, name, error) from error
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise (_exists(path, name) if _is_taken(path) else _cannot_write(path, name, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_taken(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _exists(path: Path, name: str) -> UserError:
    return user_error(f"{name}={path} exists", "a new folder", "name another or remove it")


def _temporary(path: Path) -> Path:
    """A unique name beside `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def read_json(path: Path, expected: str, do: str) -> dict[str, Any]:
    """The JSON object in a file, which may begin with the byte order mark of an editor on Windows.

    Args:
      path: of the file.
      expected: what the file should be, for errors.
      do: what helps, for errors.

    Raises:
      UserError: it cannot be read, or is not a JSON object.
      FileNotFoundError, NotADirectoryError: there is no such file.
    """
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise user_error(f"{path} is damaged ({reason[:100]})", expected, do) from error
    return found


def refuse_lfs_pointer(path: Path) -> None:
    """Checks that a file is not a git-LFS pointer.

    Raises:
      UserError: it is one.
    """
    with path.open("rb") as file:
        pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    if pointer:
        raise user_error(
            f"{path} is a git-LFS pointer", "the file that it stands for", f"run `git lfs pull` in {path.parent}"
        )


def fingerprint(*parts: bytes | str) -> str:
    """16 hex digits that change with any byte of the parts (joined as they are; str as UTF-8)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)
    return digest.hexdigest()[:16]
