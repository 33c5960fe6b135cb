"""The T5 reference files (tests/golden/t5/README.md), or another folder laid out like them.

KALEIDO_T5_GOLDEN names the other folder. Sizes are those in its config.json files, steps are found by pattern, and a
test of something that a folder lacks is skipped.
"""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from kaleido_jax.config import schema as cfg
from kaleido_jax.interop.t5.layout import TABLE, one_table, t5x_names

FOLDER = Path(os.environ.get("KALEIDO_T5_GOLDEN") or Path(__file__).parent / "golden" / "t5")
NAMES = {  # our field -> t5x's, Hugging Face's
    "d_model": ("emb_dim", "d_model"),
    "d_ff": ("mlp_dim", "d_ff"),
    "num_heads": ("num_heads", "num_heads"),
    "head_dim": ("head_dim", "d_kv"),
    "num_encoder_layers": ("num_encoder_layers", "num_layers"),
    "num_decoder_layers": ("num_decoder_layers", "num_decoder_layers"),
}


def reference(*path):
    """A file or folder of the reference set."""
    found = FOLDER.joinpath(*path)
    return found if found.exists() else pytest.skip(f"{'/'.join(path)} is not in {FOLDER}")


def step_folder(name):
    """The checkpoint_<step> of a t5x folder, whatever its step."""
    found = sorted(path for path in reference(name).glob("checkpoint_*") if path.is_dir())
    return found[0] if found else pytest.skip(f"{name} in {FOLDER} has no checkpoint_*")


@cache
def tensors(name):
    """Key -> array of a safetensors file."""
    return load_file(reference(f"{name}.safetensors"))


def wanted(given, *keys):
    """Some arrays of a file, or a skip where it has not all of them."""
    missing = [key for key in keys if key not in given]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not in {FOLDER}")
    return tuple(given[key] for key in keys)


def sizes_of(name):
    """(sizes, rows of the token table) that the config.json of a checkpoint tells, in t5x's or Hugging Face's words."""
    message = json.loads(reference(name, "config.json").read_text())
    dialect = int("d_model" in message)
    return cfg.T5(**{field: message[names[dialect]] for field, names in NAMES.items()}), message["vocab_size"]


def to_flat(encoder, decoder):
    """Inverse of `t5x.from_flat`; of two tables the longer is kept where it starts with the other."""
    flat = {}
    for stack, params in (("encoder", encoder), ("decoder", decoder)):
        for path, leaf in flatten_dict(params).items():
            rows = leaf if path[0] == "layers" else [leaf]
            names = t5x_names(stack, path, len(leaf))
            flat |= {name: np.asarray(row) for name, row in zip(names, rows, strict=True)}
    flat[TABLE] = one_table(*(np.asarray(part["token_embedder"]["embedding"]) for part in (encoder, decoder)))
    return flat
