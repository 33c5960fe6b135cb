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

from kaleido_jax.config.schema import Config
from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.safetensors import Safetensors, is_pickle
from kaleido_jax.interop.mdm import layout as mdm
from kaleido_jax.interop.mdm.load import PARAMETRIZATION, open_denoiser, settings_of, shapes_in, trained_settings
from kaleido_jax.interop.source import read_weight
from kaleido_jax.interop.t5.load import put_leaf
from kaleido_jax.interop.workdir import stored_config
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.workdir import CONFIG

log = logging.getLogger(__name__)

SET = "set config.init.inner to a run or file of this inner net, or change config.model.denoiser.inner"
SAME = "set config.init.inner to a run of this diffusion, or change config.diffusion"
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
    settings = settings_of(source) or {}
    if settings and not settings.get("assumed"):  # assumed ones may be wrong, and an imported net may be given others
        _check_settings(config, source.path, settings)
    leaves, targets = mdm.named(inner), flatten_dict(inner)
    placed = {
        p: put_leaf(mdm.from_torch(read_weight(source, n), shape), targets[p]) for n, (p, shape) in leaves.items()
    }
    carried = _of_export(source.path, wanted)
    log.info("the inner net%s from %s", _start_of(carried), source.path)
    return carried | {"denoiser": {"inner": unflatten_dict(placed)}}


def _from_run(config: Config, path: Path, wanted: dict) -> dict:
    """From a workdir's EMA; a prior or encoder that it trained is carried over, as from the paper's 64 px stage."""
    _check_settings(config, path, trained_settings(stored_config(path), path / CONFIG))
    have = checkpoints.ema_shapes(path)
    parts = {part: wanted[part] for part in CARRIED if part in have and part in wanted}
    parts["denoiser"] = wanted["denoiser"]["inner"]
    for part, tree in parts.items():
        mdm.check_denoiser(_names(have[part]), _names(tree), f"config.init.inner: the {part} of {path}")
    ema, step = checkpoints.restore_ema(path, parts)
    log.info("the inner net%s from step %d of %s", _start_of(parts), step, path)
    return ema | {"denoiser": {"inner": ema["denoiser"]}}


def _of_export(path: Path, wanted: dict) -> dict:
    """The prior and encoder beside the denoiser in an exported model's file; {} of other files."""
    files, parts = None if is_pickle(path) else Safetensors(path), {}
    for part in CARRIED:
        stored = [name for name in (files.names if files else ()) if name.startswith(f"{part}/")]
        if stored and part in wanted:
            have = {name.removeprefix(f"{part}/"): files.shape(name) for name in stored}
            mdm.check_denoiser(have, _names(wanted[part]), f"config.init.inner: the {part} of {path}")
            leaves = flatten_dict(wanted[part])
            parts[part] = {p: put_leaf(read_weight(files, "/".join((part, *p))), leaf) for p, leaf in leaves.items()}
    return {part: unflatten_dict(leaves) for part, leaves in parts.items()}


def _start_of(parts: dict) -> str:
    carried = "".join(f", {part}" for part in CARRIED if part in parts)
    return f"{carried} start" if carried else " starts"


def _names(tree: dict) -> dict[str, tuple[int, ...]]:
    return {"/".join(path): tuple(leaf.shape) for path, leaf in flatten_dict(tree).items()}


def _check_settings(config: Config, path: Path, settings: dict[str, Any]) -> None:
    """Checks that the two nets agree in settings that shapes do not show, such as the groups of the norms.

    Of the diffusion a file that `convert` wrote earlier tells less than a run.
    """
    mine = json.loads(json.dumps(dataclasses.asdict(config.model.denoiser.inner)))
    try:
        diffusion = {name: settings["diffusion"][name] for name in PARAMETRIZATION if name in settings["diffusion"]}
        both = list(_both(settings["denoiser"], mine, "model.denoiser"))
    except (KeyError, TypeError) as error:
        found = f"config.init.inner: the config beside {path} is damaged"
        raise user_error(found, "the net and its diffusion", "make it again") from error
    for there, here, name in both:
        if there != here:
            raise user_error(
                f"config.init.inner: {path} has {name} = {there!r}", f"{here!r}, as in config.model.denoiser.inner", SET
            )
    for name, there in diffusion.items():
        if there != (here := getattr(config.diffusion, name)):
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
