"""Files of weights in any of the formats that are read here: .npz, .safetensors, torch's of any age."""

from pathlib import Path

import numpy as np

from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.npz import Npz
from kaleido_jax.interop.files.safetensors import Safetensors, is_safetensors
from kaleido_jax.interop.files.torch_legacy import HEAD, TorchLegacy
from kaleido_jax.interop.files.torch_zip import TorchZip
from kaleido_jax.interop.source import Source, read_weight


def open_weights(path: Path, what: str) -> Source:
    """The tensors of one file; `what` is expected in it, for the error when there is none.

    Raises:
      UserError: missing, damaged, or of no format that is read here.
    """
    if not path.is_file():
        raise user_error(f"no file {path}", what, "correct the path or fetch the weights")
    if path.suffix == ".npz":
        return Npz(path)
    return Safetensors(path) if is_safetensors(path) else open_torch(path)


def open_torch(path: Path) -> Source:
    """The state dict of a file of torch.save, of any age.

    Raises:
      UserError: damaged, or not such a file.
    """
    with path.open("rb") as file:
        old = file.read(len(HEAD)) == HEAD
    return TorchLegacy(path) if old else TorchZip(path)


def read_float32(source: Source) -> dict[str, np.ndarray]:
    """All tensors as float32.

    Raises:
      UserError: one is quantized, or holds NaN or infinity.
    """
    return {name: np.array(read_weight(source, name), np.float32) for name in source.names}
