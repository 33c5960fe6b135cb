"""Source, the protocol of a checkpoint of any format that is read one tensor at a time, and checks of its tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from kaleido_jax.errors import UserError, user_error

FETCH_AGAIN = "fetch or copy the checkpoint again"
# Types of 8 bits or fewer are quantized, with their scales stored elsewhere; integers are accepted.
DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32)


@runtime_checkable
class Source(Protocol):
    """A checkpoint that is read one tensor at a time; names and layouts are those of t5x or of ml-mdm."""

    path: Path
    names: tuple[str, ...]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; reads no data."""

    def read(self, name: str) -> np.ndarray:
        """One tensor in the type it is stored in."""


def read_weight(source: Source, name: str) -> np.ndarray:
    """One tensor in its stored type, after checking the type and the numbers.

    Raises:
      UserError: it is quantized, or holds NaN or infinity.
    """
    array = source.read(name)
    if array.dtype not in DTYPES:
        raise dtype_error(source.path, name, array.dtype.name)
    # The sum is four times as fast as a test of each number; it can overflow although all are finite.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = array.size and not np.isfinite(np.sum(array, dtype=np.float32))
    if suspicious and not np.isfinite(array.astype(np.float64)).all():
        raise user_error(
            f"{source.path}: {name} holds NaN or infinity", "finite weights", "use another checkpoint of this model"
        )
    return array


def dtype_error(path: Path, name: str, dtype: str) -> UserError:
    """The error for a tensor that is quantized."""
    return user_error(
        f"{path}: {name} is stored as {dtype}",
        f"one of {', '.join(np.dtype(known).name for known in DTYPES)}",
        "use the weights before quantization",
    )


def check_tensors(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str, net: str, do: str
) -> None:
    """Compares names and shapes of tensors.

    Raises:
      UserError: missing or unknown names, or another shape; it starts with `what`, expects the tensors of `net` and
        ends with `do`.
    """
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    lists = [(kind, names) for kind, names in (("missing", missing), ("unknown", unknown)) if names]
    if lists:
        listed = " and ".join(f"{len(names)} {kind} names ({some(names)})" for kind, names in lists)
        raise user_error(f"{what} with {listed}", f"the {len(expected)} tensors of {net}", do)
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise user_error(f"{what}: {name} has shape {tuple(found[name])}", f"{shape}", do)


def some(names: list[str], most: int = 3) -> str:
    """The first names of a list, for one line of an error."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
