"""PyTorch models in Hugging Face folders: config, fingerprint, loading.

Nothing is downloaded, and no code or pickle in the folder is run.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError

from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import fingerprint, read_json, refuse_lfs_pointer

BATCH_IMAGES = 8  # always this many, padded with blank ones, so that an answer does not depend on its neighbors
_DECIDING = (".json", ".jinja", ".txt", ".model", ".safetensors")  # files that decide the answers
_WHOLE_BYTES = 2**26  # largest file that is hashed whole: reading 15 GB just for a fingerprint would take minutes
_STEP_BYTES, _SAMPLE_BYTES = 2**23, 2**12  # of larger files, this much of every step: some of every large tensor


def import_torch() -> tuple[ModuleType, ModuleType]:
    """(torch, transformers).

    Raises:
      UserError: one of them is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        do = "pip install 'kaleido_jax[annotate]' torch torchvision"
        raise user_error(f"{error.name} is not installed", "PyTorch and transformers for local models", do) from error
    return torch, transformers


def torch_device(torch: ModuleType) -> str:
    """The first GPU, or the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
      UserError: it is missing or damaged, or a file of the folder is a git-LFS pointer.
    """
    path = folder / "config.json"
    expected, do = "a folder with config.json and weights", "download the model and name its folder"
    if not path.is_file():
        raise user_error(f"no model in {folder}", expected, do)
    for file in _deciding_files(folder):
        refuse_lfs_pointer(file)
    return read_json(path, expected, do)


def load_local(
    folder: Path, model_class: str, processor_class: str, *, half: bool = False
) -> tuple[Any, Any, ModuleType]:
    """A model on its device in evaluation mode, its processor, and torch.

    Args:
      folder: config.json, *.safetensors and the processor's files.
      model_class: name in transformers, e.g. "AutoModel".
      processor_class: name in transformers, e.g. "AutoProcessor".
      half: bfloat16 or float16 on a GPU (also Apple's). On a CPU, where these are slower, and by default float32.

    Raises:
      UserError: torch or transformers are missing, or the folder holds no such model.
    """
    torch, transformers = import_torch()
    read_config(folder)
    device, dtype = torch_device(torch), torch.float32
    if half and device != "cpu":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    elif half and torch.backends.mps.is_available():
        device, dtype = "mps", torch.float16
    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = getattr(transformers, processor_class).from_pretrained(folder, **here)
        model = getattr(transformers, model_class).from_pretrained(folder, use_safetensors=True, dtype=dtype, **here)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        found = f"{folder} cannot be loaded ({' '.join(str(error).split())[:200]})"
        do = "name a folder with config, safetensors and processor files that this transformers knows"
        raise user_error(found, f"a model for {model_class}", do) from error
    return model.eval().to(device), processor, torch


def folder_fingerprint(folder: Path) -> str:
    """16 hex digits that change with the weights, config, processor and chat template.

    Of files above 64 MiB, 4 KiB in every 8 MiB are hashed: other weights differ there, but a single changed bit may be
    missed.
    """
    return fingerprint(*_identity(folder))


def _deciding_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _DECIDING and path.is_file())


def _identity(folder: Path) -> Iterator[bytes]:
    for path in _deciding_files(folder):
        size = path.stat().st_size
        yield f"{path.name}:{size}:".encode()
        with path.open("rb") as file:
            if size <= _WHOLE_BYTES:
                yield file.read()
                continue
            for start in range(0, size, _STEP_BYTES):
                file.seek(start)
                yield file.read(_SAMPLE_BYTES)
