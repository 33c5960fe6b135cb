"""Torch's older files: the tensors of a file from torch.save before torch 1.6, read without torch and one at a time.

Such a file is five pickles (a magic number, the protocol, facts of the machine, the state dict, the keys of the
storages) and then the storages in the order of the keys, each as a count (int64) and its numbers. The pickles are read
as data and never run.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kaleido_jax.errors import UserError, user_error
from kaleido_jax.interop.files.inert_pickle import DAMAGE, Tensor, read_program
from kaleido_jax.interop.files.torch_tensors import FETCH_AGAIN, check_inside, state_dict_of, view_of
from kaleido_jax.runtime.files import refuse_lfs_pointer

MAGIC = 0x1950A86A20F9469CFC6C
HEAD = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little")  # of the file: the magic number as a pickle
_PROTOCOL = 1001


class TorchLegacy:
    """The state dict of an older torch file; one tensor is read at a time. Such files hold no checksums."""

    def __init__(self, path: Path) -> None:
        """Reads the pickles, no tensor.

        Raises:
          UserError: not such a file, damaged, or without tensors.
        """
        self.path = path
        refuse_lfs_pointer(path)
        try:
            with path.open("rb") as file:
                if (read_program(file), read_program(file)) != (MAGIC, _PROTOCOL):
                    raise ValueError("another magic number or protocol")
                machine, root, keys = (read_program(file) for _ in range(3))
                if not isinstance(machine, dict) or machine.get("little_endian") is not True:
                    raise ValueError("another byte order than little")
                self._tensors = state_dict_of(root, path)
                # Where each storage begins in the file, and its bytes.
                self._places = _places(file, keys, {t.storage.key: t.storage.dtype for t in self._tensors.values()})
        except (*DAMAGE, OSError, struct.error) as error:
            raise self._damaged(" ".join(str(error)[:200].split()) or type(error).__name__) from error
        self.names = tuple(sorted(self._tensors))
        for name, tensor in self._tensors.items():
            check_inside(tensor, name, self._places.get(tensor.storage.key, (0, 0))[1], path)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; reads no data."""
        return self._tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor in the type it is stored in."""
        tensor: Tensor = self._tensors[name]
        start, size = self._places[tensor.storage.key]
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) != size:
            raise self._damaged("shorter than it was")
        return view_of(tensor, content)

    def _damaged(self, what: str) -> UserError:
        return user_error(f"{self.path} is damaged or not of torch ({what})", "a file of torch.save", FETCH_AGAIN)


def _places(file: BinaryIO, keys: Any, dtypes: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(start, bytes) of each storage, from where the file is now; its end is the file's."""
    # The bytes of a storage that no tensor uses are not known, so what follows it could not be found.
    if not isinstance(keys, list) or set(keys) != dtypes.keys():
        raise ValueError("storages without tensors, or tensors without storages")
    places, start = {}, file.tell()
    for key in keys:
        file.seek(start)
        (count,) = struct.unpack("<q", file.read(8))
        size = count * np.dtype(dtypes[key]).itemsize
        if count < 0:
            raise ValueError(f"a storage of {count} numbers")
        places[key] = (start + 8, size)
        start += 8 + size
    if file.seek(0, 2) != start:
        raise ValueError(f"{file.tell()} bytes instead of {start}")
    return places
