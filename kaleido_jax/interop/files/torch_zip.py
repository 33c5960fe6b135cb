"""Torch zips: the tensors of a file from torch.save, read without torch and one at a time."""

import struct
import zipfile
from pathlib import Path

import numpy as np

from kaleido_jax.errors import UserError, user_error
from kaleido_jax.interop.files.inert_pickle import DAMAGE, Tensor, read_program
from kaleido_jax.interop.files.torch_tensors import FETCH_AGAIN, check_inside, state_dict_of, view_of
from kaleido_jax.runtime.files import refuse_lfs_pointer

ZIP = b"PK\x03\x04"
MOST_PROGRAM_BYTES = 64 * 2**20  # a state dict of a thousand tensors takes 0.2 MB
BAD_ZIP = (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error)


# --------------------------------------------------------------------------------------------- the file
class TorchZip:
    """The state dict of a torch file; one tensor is read at a time, and its checksum is checked."""

    def __init__(self, path: Path) -> None:
        """Reads the zip's directory and the pickle, no tensor.

        Raises:
          UserError: not a zip of torch, damaged, or without tensors.
        """
        self.path, self._zip = path, _open(path)
        self._entries = {info.filename: info for info in self._zip.infolist()}
        programs = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(programs) != 1:
            raise self._damaged("no data.pkl" if not programs else "more than one data.pkl")
        self._folder = programs[0].removesuffix("data.pkl")
        if self._entries[programs[0]].file_size > MOST_PROGRAM_BYTES:
            raise self._damaged(f"a pickle of {self._entries[programs[0]].file_size} bytes")
        if self._folder + "byteorder" in self._entries and self._content("byteorder") != b"little":
            raise self._damaged("another byte order than little")
        try:
            root = read_program(self._content("data.pkl"))
        except DAMAGE as error:
            raise self._damaged(" ".join(str(error)[:200].split()) or type(error).__name__) from error
        self._tensors = state_dict_of(root, path)
        self.names = tuple(sorted(self._tensors))
        for name, tensor in self._tensors.items():
            self._check(name, tensor)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; reads no data."""
        return self._tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor in the type it is stored in."""
        tensor = self._tensors[name]
        return view_of(tensor, self._content(f"data/{tensor.storage.key}"))

    def _check(self, name: str, tensor: Tensor) -> None:
        """Checks that a tensor lies inside its storage, and the storage inside the file."""
        entry = self._entries.get(f"{self._folder}data/{tensor.storage.key}")
        check_inside(tensor, name, min(entry.file_size, entry.compress_size) if entry else 0, self.path)
        if entry is None:  # of a tensor without a number, whose storage torch writes too
            raise self._damaged(f"no storage of {name}")

    def _content(self, name: str) -> bytes:
        info = self._entries[self._folder + name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise self._damaged(f"{name} compressed or encrypted")
        try:
            return self._zip.read(info)
        except BAD_ZIP as error:
            raise self._damaged(" ".join(str(error).split()) or type(error).__name__) from error

    def _damaged(self, what: str) -> UserError:
        return user_error(f"{self.path} is damaged or not of torch ({what})", "a file of torch.save", FETCH_AGAIN)


def _open(path: Path) -> zipfile.ZipFile:
    refuse_lfs_pointer(path)
    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith(ZIP):
        page = head.lstrip()[:1] == b"<"
        found = "a web page" if page else "no zip" if head else "empty"
        raise user_error(f"{path} is {found}", "the zip that torch.save writes (torch 1.6 or later)", FETCH_AGAIN)
    try:
        return zipfile.ZipFile(path)
    except BAD_ZIP as error:
        reason = " ".join(str(error).split())
        raise user_error(f"{path} is damaged ({reason})", "the zip that torch.save writes", FETCH_AGAIN) from error
