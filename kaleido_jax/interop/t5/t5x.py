"""t5x's T5 v1.1: parameters under its names ("encoder/layers_0/attention/query/kernel"), and its checkpoint folders.

Names and layouts equal ours with two exceptions: our layers are stacked on a leading axis, and each of our stacks has
its own copy of the token table that t5x shares.
"""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from kaleido_jax.config.schema import T5
from kaleido_jax.errors import user_error
from kaleido_jax.interop.source import FETCH_AGAIN, Source, some
from kaleido_jax.interop.t5.layout import (
    LAYER,
    TABLE,
    check_t5,
    expected_shapes,
    layouts,
    refuse_layer_biases,
    tensors,
)
from kaleido_jax.runtime.files import refuse_lfs_pointer

# With a table for each stack, t5x names it by the attribute that holds it, see `interop.t5.t5x_network`.
OURS, THEIRS = "/token_embedder/", "/shared_embedding/"
# What flax and msgpack raise for bytes that are not theirs; SyntaxError: numpy, for the name of a type.
_NO_MSGPACK = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
    OverflowError,
    SyntaxError,
)
# What tensorstore, json and numpy raise for an array's folder; OverflowError: of numbers too large for C, RuntimeError:
# of text that is no UTF-8, SyntaxError: of the name of a type.
_NO_ZARR = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
)


# ----------------------------------------------------------------------------------- names and shapes
def from_flat(flat: Mapping[str, np.ndarray], config: T5) -> tuple[dict, dict]:
    """(encoder, decoder) parameters, float32 numpy, from t5x's.

    Args:
      flat: t5x name -> array, parts joined by "/" and without "target/"; TABLE is (rows, d_model).
      config: sizes of the model.

    Raises:
      UserError: names that are missing or unknown, or an array of another shape.
    """
    rows = flat[TABLE].shape[0] if TABLE in flat else 1
    parts = layouts(config, rows)
    check_t5({name: value.shape for name, value in flat.items()}, expected_shapes(parts), "T5 weights")

    def gather(names: list[str]) -> np.ndarray:
        arrays = [np.asarray(flat[name], np.float32) for name in names]
        return np.stack(arrays) if LAYER.search(names[0]) else arrays[0]

    return tuple(unflatten_dict({path: gather(names) for path, (names, _) in part.items()}) for part in parts.values())


# --------------------------------------------------------------------------------------------- reading
class T5xCheckpoint:
    """A t5x checkpoint: `checkpoint_<step>/`, the folder around it, or a file with all tensors inside.

    The optimizer's slots are never read. The names give the arrays' folders, since the kvstore in a spec is a path on
    the machine that wrote it.
    """

    def __init__(self, path: Path) -> None:
        """Reads the msgpack file only.

        Raises:
          UserError: no or several checkpoints, a damaged file, or a relative bias for each layer.
        """
        self.path = _find(path)
        stored = _restore(self.path)
        self._leaves = leaves = {name.replace(THEIRS, OURS): leaf for name, leaf in stored.items()}
        self.names = tuple(sorted(leaves))
        for stack in ("encoder", "decoder"):
            if (name := f"{stack}/{stack}/relpos_bias/rel_embedding") in leaves:
                refuse_layer_biases(self.path, name)
        lost = [name for name in self.names if _is_spec(leaves[name]) and not self._folder(name).is_dir()]
        if lost:
            raise user_error(
                f"{self.path} without the folders of {len(lost)} tensors ({some(lost)})",
                f"one folder for each tensor, such as {self._folder(lost[0]).name}",
                FETCH_AGAIN,
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return _shape(self._leaves[name])

    def read(self, name: str) -> np.ndarray:
        """One tensor in its stored type.

        Raises:
          UserError: its array is damaged or has another shape than the checkpoint says.
        """
        leaf = self._leaves[name]
        array = self._read_zarr(name, leaf) if _is_spec(leaf) else np.asarray(leaf)
        # Before version 3, bfloat16 was stored as uint16 bits; no T5 has integer parameters.
        return array.view(jnp.bfloat16) if array.dtype == np.uint16 else array

    def _folder(self, name: str) -> Path:
        return self.path.parent / _folder_name(name)

    def _read_zarr(self, name: str, spec: dict[str, Any]) -> np.ndarray:
        import tensorstore

        folder = self._folder(name)
        try:
            metadata = _zarr_metadata(folder, spec)
            _check_array(folder, metadata, self.shape(name))
            store = {"driver": "file", "path": f"{folder.absolute()}/"}
            given = {"driver": "zarr", "kvstore": store, "metadata": metadata, "open": True, "assume_metadata": True}
            return tensorstore.open(given, read=True).result().read().result()
        except _NO_ZARR as error:
            for file in folder.iterdir():
                refuse_lfs_pointer(file)
            reason = " ".join(str(error).split(" [")[0].split())  # tensorstore's whole spec follows
            raise user_error(
                f"tensor {name} in {folder} cannot be read ({reason})",
                f"a zarr array of shape {self.shape(name)}",
                FETCH_AGAIN,
            ) from error


def _folder_name(name: str) -> str:
    return f"target.{name.replace(OURS, THEIRS).replace('/', '.')}"


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if (path / "checkpoint").is_file():
        return path / "checkpoint"
    found = sorted(path.glob("checkpoint_*/checkpoint"))
    if len(found) != 1:
        have = f"{len(found)} checkpoints ({', '.join(f.parent.name for f in found)})" if found else "no checkpoint"
        raise user_error(f"{have} in {path}", "one checkpoint_<step>/checkpoint", "name the folder of one step")
    return found[0]


def _restore(path: Path) -> dict[str, Any]:
    """Name -> parameter in the msgpack file, or a spec instead of an array."""
    refuse_lfs_pointer(path)
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        target = tree.get("optimizer", tree)["target"]  # before version 1 there was no wrapper
        flat = flatten_dict(target, is_leaf=lambda _, value: _is_spec(value), sep="/")
        for name, leaf in flat.items():
            _shape(leaf)
            if len(_folder_name(name).encode()) > _LONGEST_NAME:
                raise ValueError("a name that no folder can have")
        return flat
    except (*_NO_MSGPACK, msgpack.UnpackException) as error:
        found = f"{path} is not a t5x checkpoint ({type(error).__name__})"
        do = f"take t5x's files or safetensors of this model; if it should be t5x's, {FETCH_AGAIN}"
        raise user_error(found, "a msgpack file with a target", do) from error


def _shape(leaf: Any) -> tuple[int, ...]:
    """The shape of a parameter; raises TypeError or ValueError where there is none."""
    shape = leaf["metadata"]["shape"] if _is_spec(leaf) else np.shape(leaf) if isinstance(leaf, np.ndarray) else None
    if not isinstance(shape, list | tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise TypeError("a leaf that is no array")
    return tuple(shape)


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, dict) and {"driver", "metadata"} <= leaf.keys()


def _zarr_metadata(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """From .zarray, or from the checkpoint file if the hidden file was lost."""
    hidden = folder / ".zarray"
    if hidden.is_file():
        return json.loads(hidden.read_text())
    return _metadata(spec["dtype"], **spec["metadata"])


def _metadata(dtype: str, **known: Any) -> dict[str, Any]:
    dtype = dtype if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<").str
    fixed = {"zarr_format": 2, "order": "C", "filters": None, "fill_value": None, "dimension_separator": "."}
    return fixed | {"dtype": dtype} | known


_LONGEST_NAME = 255  # bytes, of a file on nearly every system
_LARGEST_CHUNK = 2**24  # numbers, of an array that has fewer


def _check_array(folder: Path, metadata: dict[str, Any], shape: tuple[int, ...]) -> None:
    if tuple(metadata["shape"]) != shape:
        raise ValueError(f"its .zarray has shape {tuple(metadata['shape'])}")
    chunks = metadata["chunks"]
    if not isinstance(chunks, list | tuple) or not all(type(size) is int and size > 0 for size in chunks):
        raise ValueError(f"its .zarray has chunks of {chunks}"[:200])
    # tensorstore makes room for a whole chunk, and ends the process where there is none.
    if math.prod(chunks) > max(math.prod(shape), _LARGEST_CHUNK):
        raise ValueError(f"its .zarray has chunks of {tuple(chunks)}")
    if metadata.get("fill_value") is not None:
        return
    # Without a fill value every chunk is written, and tensorstore would read a lost one as zeros.
    counts = [range(-(-size // chunk)) for size, chunk in zip(shape, chunks, strict=True)]
    for index in itertools.product(*counts):
        chunk = metadata.get("dimension_separator", ".").join(map(str, index)) or "0"
        if not (folder / chunk).is_file():
            raise ValueError(f"its chunk {chunk} is missing")


# --------------------------------------------------------------------------------------------- writing
def write_t5x(source: Source, folder: Path, step: int = 0) -> None:
    """Writes folder/checkpoint_<step>, which t5x and `T5xCheckpoint` read, keeping types.

    If the token tables of the two stacks differ, t5x needs `interop.t5.t5x_network` to hold them (launch/t5x).

    Raises:
      OSError: it cannot be written, e.g. on a full disk.
    """
    import tensorstore

    inside, specs = folder / f"checkpoint_{step}", {}
    inside.mkdir(parents=True)
    for name, array in tensors(source, two_tables=True):
        inner = _folder_name(name)
        metadata = {
            "shape": list(array.shape),
            "chunks": _chunks(array),
            "compressor": {"id": "gzip", "level": 1},
        }
        store = {"driver": "file", "path": f"{(inside / inner).absolute()}/"}
        given = {"driver": "zarr", "kvstore": store, "metadata": _metadata(array.dtype.name, **metadata)}
        try:
            tensorstore.open(given, create=True).result().write(array).result()
        except ValueError as error:
            raise OSError(f"{inner}: {' '.join(str(error).split(' [')[0].split())}") from error
        specs[name.replace(OURS, THEIRS)] = {
            "driver": "zarr",
            "dtype": array.dtype.name,
            "kvstore": {"driver": "file", "path": f"{inner}/"},
            "metadata": metadata,
        }
    # No "param_states": t5x fails on empty dictionaries.
    tree = {"version": 3, "optimizer": {"target": unflatten_dict(specs, sep="/"), "state": {"step": np.int32(step)}}}
    (inside / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))


def _chunks(array: np.ndarray, most_bytes: int = 64 * 2**20) -> list[int]:
    """The whole array up to 64 MiB, or that many of its rows."""
    rows = max(1, most_bytes // max(array[:1].nbytes, 1))
    return [min(rows, array.shape[0]), *array.shape[1:]]
