"""Hugging Face models from a local folder; nothing is downloaded and no code or pickle of the folder is run."""

import hashlib
import json
from pathlib import Path

from kaleido_jax.errors import user_error

BATCH_IMAGES = 8  # always this many, the last ones blank, so that an answer does not depend on its neighbors


def import_torch():
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


def torch_device(torch) -> str:
    """The first GPU, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_config(folder: Path) -> dict:
    """A model folder's config.json.

    Raises:
      UserError: it is missing or damaged.
    """
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise user_error(f"no model in {folder} ({error})", "a folder of Hugging Face's", "correct the path") from error


def load_local(folder: Path, model_class: str, processor_class: str):
    """A model on its device in evaluation mode, float32, its processor, and torch.

    Args:
      folder: config.json, *.safetensors and the processor's files.
      model_class: name in transformers, e.g. "AutoModel".
      processor_class: likewise.

    Raises:
      UserError: torch or transformers are missing, or the folder holds no such model.
    """
    torch, transformers = import_torch()
    read_config(folder)
    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = getattr(transformers, processor_class).from_pretrained(folder, **here)
        model = getattr(transformers, model_class).from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, **here
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        found = f"{folder} cannot be opened ({' '.join(str(error).split())[:200]})"
        raise user_error(found, f"a model for {model_class}", "fetch it again") from error
    return model.eval().to(torch_device(torch)), processor, torch


def fingerprint(folder: Path) -> str:
    """16 hex digits that change with the weights and with what config and processor say."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]
