"""The arrays of a .npz file as a Source; no pickle is opened."""

from pathlib import Path

import numpy as np

from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import BAD_NPZ, refuse_lfs_pointer


class Npz:
    """The arrays in a .npz file, all read at once."""

    def __init__(self, path: Path) -> None:
        """Reads the arrays.

        Raises:
          UserError: damaged, or with pickled objects.
        """
        refuse_lfs_pointer(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                self._arrays = {name: file[name] for name in file.files}
            if not all(isinstance(array, np.ndarray) for array in self._arrays.values()):
                raise ValueError("something else than arrays in it")
        except BAD_NPZ as error:
            reason = " ".join(str(error).split())[:200]
            raise user_error(f"{path} cannot be read ({reason})", "arrays without pickle", "fetch it again") from error
        self.path, self.names = path, tuple(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        return self._arrays[name].shape

    def read(self, name: str) -> np.ndarray:
        """One array in the type it is stored in."""
        return self._arrays[name]
