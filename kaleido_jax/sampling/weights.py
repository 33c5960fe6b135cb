"""Trained parameters for sampling: from a workdir's checkpoints, or from an exported folder."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.schema import Config
from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.safetensors import Safetensors
from kaleido_jax.interop.source import check_tensors, read_weight
from kaleido_jax.interop.t5.load import load_pretrained, put_leaf
from kaleido_jax.models.kaleido import build_model, init_params, split_frozen
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.mesh import make_mesh, shardings_of

EXPORT = "export.json"  # in an exported folder: the checkpoint's step and the dtype of the stored weights


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Parameters by part: encoder, prior (where there are latents), denoiser."""

    params: dict[str, Any]
    step: int = 0  # of the checkpoint; 0 = unknown
    bad_params: dict[str, Any] | None = None  # of a worse model, for autoguidance


def load_workdir(config: Config, folder: Path, base_vocab_size: int) -> Weights:
    """The EMA of the latest checkpoint; a frozen encoder comes from config.model.t5.checkpoint.

    With config.sample.guidance = "autoguidance" also the EMA of `autoguidance_step`.

    Raises:
      UserError: no such checkpoint, or no T5 weights for a frozen encoder.
    """
    trainable, frozen = split_frozen(_boxed(config, base_vocab_size), config)
    if frozen and config.model.t5.checkpoint is None:
        raise user_error("a frozen encoder without weights", "config.model.t5.checkpoint", "set it to where T5 is")
    ema, step = checkpoints.restore_ema(folder, _placed(config, trainable))
    bad = {}
    if config.sample.guidance == "autoguidance":
        bad_folder = Path(config.sample.autoguidance_workdir or folder).expanduser()
        bad, _ = checkpoints.restore_ema(bad_folder, _placed(config, trainable), config.sample.autoguidance_step)
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)
    loaded = load_pretrained(config, nn.meta.unbox(frozen), shardings_of(frozen, mesh, config.mesh.rules))
    return Weights(params=ema | loaded, step=step, bad_params=bad | loaded if bad else None)


def load_export(config: Config, folder: Path, base_vocab_size: int) -> Weights:
    """Every leaf from the folder's safetensors, named by its path, e.g. "encoder/layers/mlp/wo/kernel".

    Raises:
      UserError: a file is missing or damaged, or its tensors do not match the config.
    """
    files = Safetensors(folder)
    wanted = flatten_dict(_placed(config, _boxed(config, base_vocab_size)), sep="/")
    found, expected = {n: files.shape(n) for n in files.names}, {n: leaf.shape for n, leaf in wanted.items()}
    check_tensors(found, expected, str(folder), "this config", "take the folder's own config and weights")
    leaves = {name: put_leaf(read_weight(files, name), leaf) for name, leaf in wanted.items()}
    return Weights(params=unflatten_dict(leaves, sep="/"), step=_step_of(folder))


def _step_of(folder: Path) -> int:
    path = folder / EXPORT
    if not path.is_file():
        return 0
    try:
        return int(json.loads(path.read_text())["step"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise user_error(f"{path} is damaged", "the file as exported", "export again, or delete it") from error


def _boxed(config: Config, base_vocab_size: int) -> dict[str, Any]:
    """Shapes of all parameters with their logical axes."""
    model = build_model(config, base_vocab_size)
    return jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))


def _placed(config: Config, boxed: dict[str, Any]) -> dict[str, Any]:
    """Shapes with dtypes and shardings."""
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)
    return checkpoints.abstract(nn.meta.unbox(boxed), shardings_of(boxed, mesh, config.mesh.rules))
