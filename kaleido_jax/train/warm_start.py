"""Progressive training (MDM, section 5.3): a net trained at a low resolution becomes the inner net of a larger one.

The adapters between them start at zero, so the low-resolution output is at first bit for bit what it was.
"""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kaleido_jax.config.schema import T5, Config
from kaleido_jax.errors import user_error
from kaleido_jax.interop.mdm import names as mdm
from kaleido_jax.interop.mdm.files import OurDenoiser, open_denoiser, shapes_in
from kaleido_jax.interop.t5.load import KaleidoCheckpoint, load_t5, place
from kaleido_jax.interop.t5.names import t5_shapes
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.workdir import CONFIG

log = logging.getLogger(__name__)

SET = "set config.init.inner to a run or file of this inner net, or change config.model.denoiser.inner"
CARRIED = ("prior", "encoder")  # besides the denoiser, where the earlier run trained them


def load_inner(config: Config, wanted: dict) -> dict:
    """The parts of config.init.inner, placed: {"denoiser": {"inner": ...}} and what carries over with a run.

    Args:
      config: the experiment; its inner net takes the weights.
      wanted: trainable parameters as jax.ShapeDtypeStruct with shardings.

    Raises:
      UserError: nothing there, damage, a tensor missing, unknown or of another shape, or a net with other settings.
    """
    path, inner = Path(config.init.inner), wanted["denoiser"]["inner"]
    if (path / "checkpoints").is_dir():
        return _from_run(config, path, wanted)
    source = open_denoiser(path)
    mdm.check(shapes_in(source), mdm.shapes_of(inner), f"config.init.inner: {source.path}")
    leaves, targets = mdm.named(inner), flatten_dict(inner)
    placed = {p: place(mdm.from_torch(source.read(n), shape), targets[p]) for n, (p, shape) in leaves.items()}
    log.info("the inner net starts from %s", source.path)
    return {"denoiser": {"inner": unflatten_dict(placed)}}


def _from_run(config, path, wanted):
    """From a workdir's EMA; a prior or encoder that it trained carries over, as from the paper's 64 px stage."""
    _check_settings(config, path)
    have = checkpoints.ema_shapes(path)
    parts = {part: wanted[part] for part in CARRIED if part in have and part in wanted}
    parts["denoiser"] = wanted["denoiser"]["inner"]
    for part, tree in parts.items():
        mdm.check(_names(have[part]), _names(tree), f"config.init.inner: the {part} of {path}")
    ema, step = checkpoints.restore_ema(path, parts)
    log.info("inner net%s start from step %d of %s", "".join(f", {p}" for p in parts if p in CARRIED), step, path)
    return ema | {"denoiser": {"inner": ema["denoiser"]}}


def _names(tree):
    return {"/".join(path): tuple(leaf.shape) for path, leaf in flatten_dict(tree).items()}


def _check_settings(config, path):
    """That the two nets agree in what no shape tells, such as the groups of the norms."""
    stored = _stored(path)["model"]["denoiser"]
    mine = json.loads(json.dumps(dataclasses.asdict(config.model.denoiser.inner)))
    for there, here, name in _both(stored, mine, "model.denoiser"):
        if there != here:
            raise user_error(
                f"config.init.inner: {path} has {name} = {there!r}", f"{here!r}, as in config.model.denoiser.inner", SET
            )


def _stored(path):
    try:
        values = json.loads((path / CONFIG).read_text())
        values["model"]["denoiser"], values["diffusion"]["shift_power"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise user_error(f"{path / CONFIG} is missing or damaged", "the config of a run", "name another run") from error
    return values


def _both(there, here, name):
    """(value there, value here, name) of each field, net by net; recomputing in the backward pass changes nothing."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        yield there, here, name
        return
    for key in sorted((there | here).keys() - {"remat"}):
        yield from _both(there.get(key), here.get(key), f"{name}.{key}")


def trained_t5(path: Path) -> KaleidoCheckpoint:
    """Encoder and prior of a workdir's latest checkpoint (EMA), as `open_t5` gives those of files.

    An encoder that was frozen is in no checkpoint: it comes from the run's config.model.t5.checkpoint, in float32.

    Raises:
      UserError: no checkpoint, one without a prior, or the frozen encoder's file is missing, damaged or another one.
    """
    values, shapes = _stored(path), checkpoints.ema_shapes(path)
    if "prior" not in shapes:
        raise user_error(f"no prior in {path}", "a run with latents", "name another run")
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {part: shapes[part] for part in CARRIED if part in shapes}
    targets = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first), targets)
    parts = checkpoints.restore_ema(path, targets)[0]
    if "encoder" not in parts:
        parts["encoder"] = _frozen_encoder(values)
    return KaleidoCheckpoint(_InMemory(path, flatten_dict(parts, sep="/")))


def _frozen_encoder(values):
    t5 = values["model"]["t5"]
    tokenizer = load_tokenizer(t5["vocabulary"], values["latents"]["codebook_size"])
    sizes = T5(**{field.name: t5[field.name] for field in dataclasses.fields(T5) if field.name != "encoder"})
    encoder, _ = t5_shapes(sizes, tokenizer.base_vocab_size)
    given = {"num_pieces": tokenizer.num_pieces, "base_vocab_size": tokenizer.base_vocab_size, "seed": values["seed"]}
    return load_t5(t5["checkpoint"], {"encoder": encoder}, **given)["encoder"]


class _InMemory:
    """Arrays as `interop.checkpoint.Leaves`."""

    def __init__(self, path, leaves):
        self.path, self._leaves, self.names = path, leaves, tuple(sorted(leaves))

    def shape(self, name):
        return tuple(self._leaves[name].shape)

    def read(self, name, index=...):
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
    values = _stored(path)
    settings = {
        "denoiser": values["model"]["denoiser"],
        "diffusion": {"shift_power": values["diffusion"]["shift_power"]},
    }
    return OurDenoiser(path, {p: leaf.shape for p, leaf in leaves.items()}, leaves.__getitem__, settings)
