"""Tensors of a torch file as its inert pickle describes them: whether they lie inside the file, and their numbers."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.inert_pickle import Tensor

FETCH_AGAIN = "fetch or copy the file again"
TENSOR_NAME = re.compile(r"[\w.]{1,200}", re.ASCII)


def state_dict_of(root: Any, path: Path) -> dict[str, Tensor]:
    """The state dict that a pickle's root is, or holds under "state_dict".

    Raises:
      UserError: neither, or it holds something else than tensors.
    """
    state = root.get("state_dict", root) if isinstance(root, dict) else None
    if not isinstance(state, dict) or not state:
        raise user_error(
            f"{path} holds no state dict", "a dict of tensors, or one under 'state_dict'", "name another file"
        )
    for name, value in state.items():
        if not TENSOR_NAME.fullmatch(str(name)) or not isinstance(value, Tensor):
            found = f"{path}: {str(name)[:80]!r} in the state dict is not a tensor"
            raise user_error(found, "tensors only", FETCH_AGAIN)
    return state


def check_inside(tensor: Tensor, name: str, num_bytes: int, path: Path) -> None:
    """Checks that a tensor lies inside its storage of so many bytes.

    Raises:
      UserError: it does not.
    """
    have = num_bytes // np.dtype(tensor.storage.dtype).itemsize
    size = math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    # A parameter does not overlap itself; one that does could have any size when copied.
    if size and (last >= have or size > have):
        found = f"{path}: {name} of shape {tensor.shape} in a storage of {have} numbers"
        raise user_error(found, f"at least {max(last + 1, size)}", FETCH_AGAIN)


def view_of(tensor: Tensor, content: bytes) -> np.ndarray:
    """The numbers of a tensor in the type they are stored in, read-only; `content` is its whole storage."""
    dtype = np.dtype(tensor.storage.dtype)
    storage = np.frombuffer(content, dtype, len(content) // dtype.itemsize)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
