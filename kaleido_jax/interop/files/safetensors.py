"""Safetensors files: one file, or shards with an index, read one tensor at a time and written. No pickle is opened."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import EllipsisType

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kaleido_jax.errors import UserError, user_error
from kaleido_jax.interop.source import FETCH_AGAIN, dtype_error, some
from kaleido_jax.runtime.files import read_json, refuse_lfs_pointer

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
SHARD_BYTES = 4 * 2**30
LONGEST_NAME = 255  # bytes of a file name
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32")  # in the header's words


class Safetensors:
    """The tensors of a safetensors file, of a folder with one, or of an index with its shards."""

    def __init__(self, path: Path) -> None:
        """Reads headers only.

        Raises:
          UserError: no such file, a pickle, a damaged file, or shards that lack tensors of the index.
        """
        self.path = path if path.is_file() else _find(path)
        if self.path.name.endswith(".json"):
            self._stored = self._read_index()
        else:
            self._stored = {name: (self.path, shape) for name, shape in _read_header(self.path).items()}
        self.names = tuple(sorted(self._stored))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape as stored."""
        return self._stored[name][1]

    def read(self, name: str, index: int | EllipsisType = ...) -> np.ndarray:
        """One tensor, or one entry of its first axis.

        Raises:
          UserError: the file has changed.
        """
        # The library maps the file, and pages that were read stay in memory while it is open: kept open, a checkpoint
        # would be in memory twice when it is loaded. Opening again costs only the parsing of the header.
        path = self._stored[name][0]
        with _open(path) as file:
            try:
                return file.get_tensor(name) if index is ... else file.get_slice(name)[index : index + 1][0]
            except SafetensorError as error:
                raise user_error(f"tensor {name} in {path} cannot be read", "a whole file", FETCH_AGAIN) from error

    def _read_index(self) -> dict[str, tuple[Path, tuple[int, ...]]]:
        refuse_lfs_pointer(self.path)
        try:
            places = read_json(self.path, "an index with a weight_map", FETCH_AGAIN)["weight_map"]
            wanted = {str(file): [name for name in places if places[name] == file] for file in set(places.values())}
        except (KeyError, AttributeError, TypeError) as error:
            do = f"name the folder or file of the weights, or {FETCH_AGAIN}"  # a config.json may have been named
            raise user_error(f"{self.path} is damaged or no index", "an index with a weight_map", do) from error
        stored = {}
        for file, names in sorted(wanted.items()):
            if Path(file).name != file or len(file.encode("utf-8", "replace")) > LONGEST_NAME:
                raise user_error(f"{self.path} points to {file!r:.200}", "a file beside it", FETCH_AGAIN)
            path = self.path.parent / file
            shapes = _read_header(path)
            if lost := sorted(set(names) - shapes.keys()):
                raise user_error(f"{path} without {some(lost)}", "what the index says", FETCH_AGAIN)
            stored |= {name: (path, shapes[name]) for name in names}
        return stored


def _find(folder: Path) -> Path:
    for name in (INDEX, MODEL):
        if (folder / name).is_file():
            return folder / name
    # macOS puts ._NAME beside each file on a disk of another system.
    found = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if len(found) == 1:
        return found[0]
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
    if not found and pickles:
        raise pickle_error(folder / pickles[0])
    have = some([f.name for f in found]) if found else "no weights"
    raise user_error(f"{have} in {folder}", f"{MODEL} or {INDEX}", "name one file or fetch what is missing")


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise user_error(f"no file {path}", "a safetensors file", FETCH_AGAIN)
    refuse_lfs_pointer(path)
    if is_pickle(path):
        raise pickle_error(path)
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise user_error(f"{path} is damaged ({reason})", "a safetensors file", FETCH_AGAIN) from error


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a file."""
    shapes = {}
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118  not a dict
            entry = file.get_slice(name)
            if entry.get_dtype() not in DTYPES:
                raise dtype_error(path, name, entry.get_dtype())
            shapes[name] = tuple(entry.get_shape())
    return shapes


def is_safetensors(path: Path) -> bool:
    """Whether a file is one of safetensors, by its name or first bytes: in the Hub's cache a hash is its name."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (head[8:] == b"{" and not is_pickle(path))


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its name or first bytes (a bare pickle, or the zip that torch writes)."""
    with path.open("rb") as file:
        head = file.read(9)
    # The length of a safetensors header can look like a pickle's first bytes, but then "{" follows.
    bare = head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" and head[8:] != b"{"
    return path.suffix in PICKLES or head.startswith(b"PK\x03\x04") or bare


def pickle_error(path: Path) -> UserError:
    """The error for a file that could run code when it is loaded."""
    return user_error(
        f"{path} is a pickle, which can run any code when opened",
        "safetensors, or a t5x checkpoint",
        "fetch the model in one of these instead",
    )


# --------------------------------------------------------------------------------------------- writing
def write_safetensors(named: Iterable[tuple[str, np.ndarray]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes (name, array) pairs as model.safetensors, or as shards of about `shard_bytes` with an index.

    Raises:
      OSError: they cannot be written, e.g. on a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards, held, size, total = [], {}, 0, 0

    def flush() -> None:
        path = folder / f"shard_{len(shards)}"
        try:
            save_file(held, path, metadata={"format": "pt"})  # transformers requires this, also for numpy arrays
        except SafetensorError as error:
            raise OSError(f"{path.name}: {' '.join(str(error).split())}") from error
        path.chmod(0o644)  # the library makes it readable for the owner only
        shards.append((path, tuple(held)))
        held.clear()

    for name, array in named:
        if held and size + array.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = np.ascontiguousarray(array)  # safetensors writes the bytes of a transposed view in the wrong order
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / MODEL)
        return
    places = {}
    for number, (path, names) in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
