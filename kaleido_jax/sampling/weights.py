"""Trained parameters for sampling: from a workdir's checkpoints or snapshots, or from an exported folder."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.schema import Config, identity
from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.safetensors import Safetensors
from kaleido_jax.interop.source import check_tensors, read_weight
from kaleido_jax.interop.t5.load import load_pretrained, put_leaf
from kaleido_jax.models.kaleido import boxed_shapes, build_model, split_frozen
from kaleido_jax.runtime import checkpoints, distributed
from kaleido_jax.runtime.files import read_json
from kaleido_jax.runtime.mesh import make_mesh, shardings_of
from kaleido_jax.runtime.posthoc_ema import coefficients
from kaleido_jax.runtime.workdir import CONFIG

log = logging.getLogger(__name__)

_AS_EXPORTED = ("the file as exported", "export again, or delete it")
# Where weights and vocabulary are, and how networks compute, may differ between a model and its worse one.
_OWN = ("model.t5.checkpoint", "model.t5.vocabulary", "model.precision")
_PROCESS = tuple(f"diffusion.{name}" for name in ("schedule", "num_steps", "prediction", "shift_power"))
EXPORT = "export.json"  # in an exported folder: the step, the dtype of the stored weights, sigma_rel of a post-hoc EMA
LARGE_ERROR = 0.1  # of a profile made of others; worth a warning


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Parameters by part: encoder, prior (where there are latents), denoiser."""

    params: dict[str, Any]
    step: int = 0  # of the checkpoint; 0 = unknown
    bad_params: dict[str, Any] | None = None  # of a worse model, for autoguidance


def is_export(folder: Path) -> bool:
    """Whether it is an exported folder, not a workdir."""
    return not (folder / "checkpoints").is_dir() and any(folder.glob("*.safetensors"))


def check_there(folder: Path) -> None:
    """Checks that a folder holds weights: the headers of an export's files, or a checkpoint. Reads no weights.

    Raises:
      UserError: there are none, or a file of an export is damaged.
    """
    if is_export(folder):
        Safetensors(folder)
    else:
        checkpoints.check_there(folder)


def load_workdir(
    config: Config, folder: Path, base_vocab_size: int, step: int | None = None, sigma_rel: float | None = None
) -> Weights:
    """The EMA of the latest checkpoint or of `step`; a frozen encoder comes from config.model.t5.checkpoint.

    With `sigma_rel` the average of that width at the latest snapshot or at `step`, made of the snapshots up to there.
    With config.sample.guidance = "autoguidance" also a worse model, the EMA of `autoguidance_step` or an export.

    Raises:
      UserError: no such checkpoint or snapshot, no T5 weights for a frozen encoder, or a worse model of another kind.
    """
    factors, step = ({}, step) if sigma_rel is None else _plan(config, folder, sigma_rel, step)
    boxed = _boxed(config, base_vocab_size)
    trainable, frozen = split_frozen(boxed, config)
    if frozen and config.model.t5.checkpoint is None:
        raise user_error("a frozen encoder without weights", "config.model.t5.checkpoint", "set it to where T5 is")
    if factors:
        ema = _summed(folder, _placed(config, trainable), factors)
    else:
        ema, step = checkpoints.restore_ema(folder, _placed(config, trainable), step)
    bad = _worse(config, folder, boxed)
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)
    loaded = load_pretrained(config, nn.meta.unbox(frozen), shardings_of(frozen, mesh, config.mesh.rules))
    return Weights(params=ema | loaded, step=step, bad_params=bad and ema | loaded | bad)


def _plan(
    config: Config, workdir: Path, sigma_rel: float, step: int | None
) -> tuple[dict[tuple[int, int], np.float32], int]:
    """({(step of a snapshot, number of its average): factor}, the step) of an average of this width.

    Karras et al. 2024, algorithm 3, from the snapshots up to the step. Reads no weights.
    """
    profiles, every = config.train.ema_profiles, config.train.ema_every_steps
    found = []
    if profiles:  # told, since beside a training that writes them each process would list others
        found = distributed.tell(
            "snapshots to read", lambda: checkpoints.steps_of(workdir, checkpoints.SNAPSHOTS), checkpoints.WAIT_SEC
        )
    steps = {one - one % every: one for one in found if one >= every}  # by the step at which the averages last moved
    if not steps:
        raise user_error(
            f"no EMA snapshots in {workdir}, whose config.train.ema_profiles = {profiles}",
            f"{checkpoints.SNAPSHOTS}/<step>",
            "train with config.train.ema_profiles=(0.05,0.1), or leave sigma_rel out",
        )
    if step is not None and step not in steps.values():
        known = ", ".join(str(one) for one in steps.values())
        raise user_error(f"no EMA snapshot {step} in {workdir}", f"one of the steps {known}", "name one of these")
    step = max(found) if step is None else step
    last = step - step % every
    kept = [(moved, number) for moved in steps if moved <= last for number in range(len(profiles))]
    times, widths = np.asarray([moved for moved, _ in kept]), np.asarray([profiles[number] for _, number in kept])
    factors, error = coefficients(times, widths, last, sigma_rel)
    log.info("the EMA of sigma_rel %g at step %d, %.2g off in L2, from %d averages", sigma_rel, step, error, len(kept))
    if error > LARGE_ERROR:
        log.warning(
            "the profile of sigma_rel %g is %.0f %% off; take a width nearer to config.train.ema_profiles = %s, or "
            "write snapshots more often",
            *(sigma_rel, 100 * error, profiles),
        )
    return {(steps[moved], i): np.float32(factor) for (moved, i), factor in zip(kept, factors, strict=True)}, step


def _summed(workdir: Path, abstract: dict[str, Any], factors: dict[tuple[int, int], np.float32]) -> dict[str, Any]:
    """The sum of averages in snapshots, each times its factor; one of them at a time is in memory."""
    add = jax.jit(lambda total, factor, part: jax.tree.map(lambda a, b: a + factor * b, total, part), donate_argnums=0)
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), abstract)
    for (step, number), factor in factors.items():
        total = add(total, factor, checkpoints.restore_snapshot(workdir, step, number, abstract))
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(total)):
        found = f"weights in the EMA snapshots of {workdir} that float16 could not hold"
        raise user_error(found, "none above 65504", "take the EMA of a checkpoint, without sigma_rel")
    return total


def _worse(config: Config, folder: Path, boxed: dict[str, Any]) -> dict[str, Any] | None:
    """The trainable parameters of the worse model of autoguidance (Karras et al. 2024b); None without it."""
    if config.sample.guidance != "autoguidance":
        return None
    bad = Path(config.sample.autoguidance_workdir or folder).expanduser()
    _check_alike(config, bad)
    if is_export(bad):
        return split_frozen(_read_export(config, bad, boxed), config)[0]
    trainable = _placed(config, split_frozen(boxed, config)[0])
    return checkpoints.restore_ema(bad, trainable, config.sample.autoguidance_step)[0]


def _check_alike(config: Config, bad: Path) -> None:
    """Checks that a worse model predicts the same as the model: the rule extrapolates from one to the other.

    Raises:
      UserError: its config, if it has one, has other networks, latents or another process.
    """
    if not (bad / CONFIG).is_file():
        return
    mine, theirs = (identity(dataclasses.asdict(one)) for one in (config, Config.from_json(bad)))
    for key in sorted(theirs | mine):
        alike = key in _PROCESS or key.startswith(("model.", "latents."))
        if alike and key not in _OWN and theirs.get(key) != mine.get(key):
            raise user_error(
                f"the worse model {bad} with {key} = {theirs.get(key)!r:.80}",
                f"{mine.get(key)!r:.80}, that of the model",
                "set config.sample.autoguidance_workdir to a run of the same networks and process",
            )


def load_export(config: Config, folder: Path, base_vocab_size: int) -> Weights:
    """Every leaf from the folder's safetensors, named by its path, e.g. "encoder/layers/mlp/wo/kernel".

    With config.sample.guidance = "autoguidance" also a worse model, as `load_workdir`.

    Raises:
      UserError: a file is missing or damaged, its tensors do not match the config, or a worse model of another kind.
    """
    boxed = _boxed(config, base_vocab_size)
    params, bad = _read_export(config, folder, boxed), _worse(config, folder, boxed)
    return Weights(params=params, step=_step_of(folder), bad_params=bad and params | bad)


def _read_export(config: Config, folder: Path, boxed: dict[str, Any]) -> dict[str, Any]:
    files = Safetensors(folder)
    wanted = flatten_dict(_placed(config, boxed), sep="/")
    found, expected = {n: files.shape(n) for n in files.names}, {n: leaf.shape for n, leaf in wanted.items()}
    check_tensors(found, expected, str(folder), "this config", "take the folder's own config and weights")
    leaves = {name: put_leaf(read_weight(files, name), leaf) for name, leaf in wanted.items()}
    return unflatten_dict(leaves, sep="/")


def _step_of(folder: Path) -> int:
    stored = read_export(folder)
    try:
        return 0 if stored is None else int(stored["step"])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise user_error(f"{folder / EXPORT} is damaged", *_AS_EXPORTED) from error


def read_export(folder: Path) -> dict[str, Any] | None:
    """What an exported folder says of its weights (step, precision, sigma_rel); None if it says nothing.

    Raises:
      UserError: the file is damaged.
    """
    path = folder / EXPORT
    return read_json(path, *_AS_EXPORTED) if path.is_file() else None


def _boxed(config: Config, base_vocab_size: int) -> dict[str, Any]:
    """Shapes of all parameters with their logical axes."""
    return boxed_shapes(build_model(config, base_vocab_size))


def _placed(config: Config, boxed: dict[str, Any]) -> dict[str, Any]:
    """Shapes with dtypes and shardings."""
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)
    return checkpoints.abstract(nn.meta.unbox(boxed), shardings_of(boxed, mesh, config.mesh.rules))
