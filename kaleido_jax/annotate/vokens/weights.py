"""Weights of the voken models: float32 arrays of a torch, safetensors or npz file, none quantized or not finite."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.torch_zip import TorchZip
from kaleido_jax.runtime.files import refuse_lfs_pointer

_FLOATS = ("float16", "float32", "float64", "bfloat16")


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a .npz, .safetensors or torch file (whose pickle is not run), float32.

    Raises:
      UserError: the file is missing, damaged, a git-LFS pointer, or holds tensors that are no weights.
    """
    if not path.is_file():
        raise user_error(f"no file {path}", "the weights of a tiny autoencoder's encoder", "correct the path")
    refuse_lfs_pointer(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            file = TorchZip(path)
            arrays = {name: file.read(name) for name in file.names}
    # AttributeError and TypeError: types that numpy does not know, float8 and bfloat16.
    except (SafetensorError, AttributeError, TypeError, ValueError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        do = "compare its size with the original's, or save the weights as float32 or float16"
        raise user_error(f"{path} cannot be read ({reason})", "npz or safetensors, no pickle", do) from error
    return {name: checked(path, name, array) for name, array in arrays.items()}


def checked(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array as float32.

    Raises:
      UserError: it is quantized, or a number is not finite; another network than its authors' in both cases.
    """
    if array.dtype.name not in _FLOATS:
        raise user_error(f"{path}: {name} of type {array.dtype.name}", "float weights", "fetch those not quantized")
    array = np.array(array, np.float32)
    if not np.isfinite(array).all():
        raise user_error(f"{path}: {name} holds numbers that are not finite", "weights", "fetch the file again")
    return array
