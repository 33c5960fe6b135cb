"""Warm start (progressive training, MDM section 5.3): a low-resolution net becomes the inner net of a larger one.

The adapters between them start at zero, so at first the low-resolution output is bit for bit what it was.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from kaleido_jax.config.schema import Config, Diffusion
from kaleido_jax.errors import user_error
from kaleido_jax.interop.mdm import layout as mdm
from kaleido_jax.interop.mdm.load import open_denoiser, shapes_in
from kaleido_jax.interop.source import read_weight
from kaleido_jax.interop.t5.load import put_leaf
from kaleido_jax.interop.workdir import stored_config
from kaleido_jax.runtime import checkpoints

log = logging.getLogger(__name__)

SET = "set config.init.inner to a run or file of this inner net, or change config.model.denoiser.inner"
SAME = "set config.init.inner to a run of this diffusion, or change config.diffusion"
PARAMETRIZATION = ("prediction", "schedule", "num_steps")  # of config.diffusion: what inputs and outputs mean
CARRIED = ("prior", "encoder")  # besides the denoiser, if the earlier run trained them


def load_inner(config: Config, wanted: dict) -> dict:
    """The parts of config.init.inner on their devices: {"denoiser": {"inner": ...}} and what a run carries over.

    Args:
      config: the experiment; its inner net takes the weights.
      wanted: trainable parameters as jax.ShapeDtypeStruct with shardings.

    Raises:
      UserError: nothing there, or damaged; a tensor is missing, unknown or of another shape; other settings of the net
        or of its diffusion.
    """
    path, inner = Path(config.init.inner), wanted["denoiser"]["inner"]
    if (path / "checkpoints").is_dir():
        return _from_run(config, path, wanted)
    source = open_denoiser(path)
    mdm.check_denoiser(shapes_in(source), mdm.shapes_of(inner), f"config.init.inner: {source.path}")
    leaves, targets = mdm.named(inner), flatten_dict(inner)
    placed = {
        p: put_leaf(mdm.from_torch(read_weight(source, n), shape), targets[p]) for n, (p, shape) in leaves.items()
    }
    log.info("the inner net starts from %s", source.path)
    return {"denoiser": {"inner": unflatten_dict(placed)}}


def _from_run(config: Config, path: Path, wanted: dict) -> dict:
    """From a workdir's EMA; a prior or encoder that it trained is carried over, as from the paper's 64 px stage."""
    _check_settings(config, path)
    have = checkpoints.ema_shapes(path)
    parts = {part: wanted[part] for part in CARRIED if part in have and part in wanted}
    parts["denoiser"] = wanted["denoiser"]["inner"]
    for part, tree in parts.items():
        mdm.check_denoiser(_names(have[part]), _names(tree), f"config.init.inner: the {part} of {path}")
    ema, step = checkpoints.restore_ema(path, parts)
    log.info("inner net%s start from step %d of %s", "".join(f", {p}" for p in parts if p in CARRIED), step, path)
    return ema | {"denoiser": {"inner": ema["denoiser"]}}


def _names(tree: dict) -> dict[str, tuple[int, ...]]:
    return {"/".join(path): tuple(leaf.shape) for path, leaf in flatten_dict(tree).items()}


def _check_settings(config: Config, path: Path) -> None:
    """Checks that the two nets agree in settings that shapes do not show, such as the groups of the norms."""
    stored = stored_config(path)
    mine = json.loads(json.dumps(dataclasses.asdict(config.model.denoiser.inner)))
    for there, here, name in _both(stored["model"]["denoiser"], mine, "model.denoiser"):
        if there != here:
            raise user_error(
                f"config.init.inner: {path} has {name} = {there!r}", f"{here!r}, as in config.model.denoiser.inner", SET
            )
    for name in PARAMETRIZATION:
        there = stored["diffusion"].get(name, getattr(Diffusion(), name))  # younger than the run: its default
        here = getattr(config.diffusion, name)
        if there != here:
            raise user_error(
                f"config.init.inner: {path} has diffusion.{name} = {there!r}", f"{here!r}, as in config.diffusion", SAME
            )


def _both(there: Any, here: Any, name: str) -> Iterator[tuple[Any, Any, str]]:
    """(value there, value here, name) of each field, net by net; `remat` and `attention` do not matter."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        yield there, here, name
        return
    for key in sorted((there | here).keys() - {"remat", "attention"}):
        yield from _both(there.get(key), here.get(key), f"{name}.{key}")
