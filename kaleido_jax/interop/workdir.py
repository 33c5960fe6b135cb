"""Trained networks of a workdir (EMA of its newest whole checkpoint) as sources, like those of files."""

from pathlib import Path
from types import EllipsisType
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from kaleido_jax.config.fields import build
from kaleido_jax.config.schema import T5
from kaleido_jax.errors import user_error
from kaleido_jax.interop.mdm.load import OurDenoiser, trained_settings
from kaleido_jax.interop.t5.kaleido import KaleidoCheckpoint
from kaleido_jax.interop.t5.layout import STACKS, t5_shapes
from kaleido_jax.interop.t5.load import load_t5
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.workdir import CONFIG, read_config, vocabulary_path


def trained_t5(path: Path) -> KaleidoCheckpoint:
    """Encoder and prior of a workdir's latest checkpoint (EMA), as `open_t5` gives those of files.

    A frozen encoder is not in the checkpoint: it comes from the run's config.model.t5.checkpoint, in float32.

    Raises:
      UserError: no checkpoint, one without a prior, or the frozen encoder's file is missing, damaged or another one.
    """
    values, shapes = stored_config(path), checkpoints.ema_shapes(path)
    if "prior" not in shapes:
        raise user_error(f"no prior in {path}", "a run with latents", "name another run")
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {part: shapes[part] for part in STACKS if part in shapes}
    targets = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first), targets)
    parts = checkpoints.restore_ema(path, targets)[0]
    if "encoder" not in parts:
        parts["encoder"] = _frozen_encoder(values, path)
    return KaleidoCheckpoint(_InMemory(path, flatten_dict(parts, sep="/")))


def _frozen_encoder(values: dict[str, Any], folder: Path) -> dict:
    t5 = build(T5, values["model"]["t5"], "model.t5")  # which may lack fields that are younger than the run
    tokenizer = load_tokenizer(vocabulary_path(t5.vocabulary, folder), values["latents"]["codebook_size"])
    encoder, _ = t5_shapes(t5, tokenizer.base_vocab_size)
    given = {"num_pieces": tokenizer.num_pieces, "base_vocab_size": tokenizer.base_vocab_size, "seed": values["seed"]}
    return load_t5(t5.checkpoint, {"encoder": encoder}, **given)["encoder"]


class _InMemory:
    """Arrays as `Leaves`."""

    def __init__(self, path: Path, leaves: dict[str, jax.Array]) -> None:
        self.path, self._leaves, self.names = path, leaves, tuple(sorted(leaves))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a leaf."""
        return tuple(self._leaves[name].shape)

    def read(self, name: str, index: int | EllipsisType = ...) -> np.ndarray:
        """A leaf, or one layer of it."""
        return np.asarray(self._leaves[name][index])


def trained_denoiser(path: Path) -> OurDenoiser:
    """The denoiser of a workdir's latest checkpoint (EMA), as `open_denoiser` gives those of files.

    Raises:
      UserError: no checkpoint, or one without a denoiser of images.
    """
    shapes = checkpoints.ema_shapes(path).get("denoiser", {})
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first), shapes)
    leaves = flatten_dict(checkpoints.restore_ema(path, {"denoiser": targets})[0]["denoiser"])
    settings = trained_settings(stored_config(path), path / CONFIG)
    return OurDenoiser(path, {p: leaf.shape for p, leaf in leaves.items()}, leaves.__getitem__, settings)


def stored_config(path: Path) -> dict[str, Any]:
    """The values in the config.json of a run.

    Raises:
      UserError: it is missing or damaged.
    """
    values = read_config(path) or {}
    trained_settings(values, path / CONFIG)
    return values
