"""Checkpoints of a run: the state and the data iterator, written and read by Orbax.

Damage is detected on reading, by Orbax or by stored checksums, since Orbax misses most flipped bits in an array. The
newest undamaged checkpoint is then used instead.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import Array, UInt32

from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import make_folder

log = logging.getLogger(__name__)

FOLDER, DAMAGED = "checkpoints", "checkpoints_damaged"
CHECKSUMS = "checksums"


# --------------------------------------------------------------------------------------------- writing
@contextmanager
def open_manager(workdir: Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """A manager that keeps the last `keep` checkpoints; on exit, even after an error, it finishes a pending save.

    Raises:
      UserError: the last checkpoint could not be written, the folder is not writable, or no old one can be read.
    """
    folder, damaged, steps = (workdir / FOLDER).absolute(), {}, steps_of(workdir)
    for step in steps:  # a new manager reads this of every checkpoint, and would fail on a damaged one
        try:
            ocp.path.step.Metadata(step, epath.Path(folder / str(step))).commit_timestamp  # noqa: B018
        except Exception as error:  # noqa: BLE001  Orbax raises anything, even bare Exceptions
            damaged[step] = error
    if damaged and len(damaged) == len(steps):
        raise _none_whole(folder, damaged)
    _set_aside(folder, damaged)
    make_folder(folder, "--workdir")  # in a folder that is not writable, Orbax waits for minutes
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep))
    try:
        yield manager
    except BaseException:
        # If left open, its threads print a page of tracebacks; a second failure would hide the first.
        with suppress(Exception):
            manager.close()
        raise
    with _written_or_user_error(manager.directory):
        manager.close()


def save(manager: ocp.CheckpointManager, step: int, state: Any, iterator: Iterator) -> None:
    """Writes checkpoints/<step> in the background.

    Raises:
      UserError: this or the last checkpoint could not be written, e.g. on a full disk.
    """
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator))
    sums = checksums(state)
    with _written_or_user_error(manager.directory):
        manager.save(step, args=items, custom_metadata={CHECKSUMS: sums})


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until the last checkpoint is on disk.

    Raises:
      UserError: it could not be written.
    """
    with _written_or_user_error(manager.directory):
        manager.wait_until_finished()


@contextmanager
def _written_or_user_error(folder: os.PathLike) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore's errors are ValueErrors
        raise user_error(
            f"a checkpoint cannot be written to {folder} ({_reason(error)})",
            "free space and permission",
            "provide them; the same command then resumes from the last whole checkpoint",
        ) from error


# --------------------------------------------------------------------------------------------- reading
def steps_of(workdir: Path) -> list[int]:
    """Steps of the checkpoints in a workdir, oldest first."""
    folder = workdir / FOLDER
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def restore(manager: ocp.CheckpointManager, abstract_state: Any, iterator: Iterator) -> tuple[Any, Iterator]:
    """(state, iterator) of the newest whole checkpoint, sharded as the abstract state.

    Newer damaged ones are moved to checkpoints_damaged/, since their steps will be written again.

    Raises:
      UserError: none can be read.
    """
    folder, damaged = Path(manager.directory), {}
    for step in sorted(manager.all_steps(), reverse=True):
        state, data = ocp.args.StandardRestore(abstract_state), grain.checkpoint.CheckpointRestore(iterator)
        try:
            restored = manager.restore(step, args=ocp.args.Composite(state=state, data=data))
            _check(folder / str(step), restored["state"])
        except jax.errors.JaxRuntimeError:  # out of memory, for example
            raise
        except Exception as error:  # noqa: BLE001  as above
            damaged[step] = error
            continue
        if damaged:
            _set_aside(folder, damaged)
            manager.reload()
        return restored["state"], restored["data"]
    raise _none_whole(folder, damaged)


def restore_ema(workdir: Path, abstract_ema: Any, step: int | None = None) -> tuple[Any, int]:
    """(EMA parameters, step) of a checkpoint, by default the newest whole one; reads only the parts in the tree.

    Raises:
      UserError: the workdir holds no checkpoint, none of `step`, or only damaged ones.
    """

    def read(folder: Path) -> Any:
        restored = ocp.PyTreeCheckpointer().restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                item={"ema": abstract_ema},
                restore_args=ocp.checkpoint_utils.construct_restore_args({"ema": abstract_ema}),
                partial_restore=True,
            ),
        )
        _check(folder, restored)
        return restored["ema"]

    return _newest_whole(workdir, read, step)


def ema_shapes(workdir: Path) -> dict:
    """The EMA parameters of the newest whole checkpoint as jax.ShapeDtypeStruct; reads no array.

    Raises:
      UserError: the workdir holds no checkpoint, or only damaged ones.
    """

    def read(folder: Path) -> dict:
        tree = ocp.PyTreeCheckpointer().metadata(folder / "state").item_metadata.tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree["ema"])

    return _newest_whole(workdir, read)[0]


def _newest_whole(workdir: Path, read: Any, step: int | None = None) -> tuple[Any, int]:
    """(what `read` makes of the folder of a step, step)."""
    folder, steps = (workdir / FOLDER).absolute(), steps_of(workdir)
    if not steps:
        raise user_error(f"no checkpoint in {workdir}", f"{folder}/<step>", "train first, or correct --workdir")
    if step is not None and step not in steps:
        kept = ", ".join(str(s) for s in steps)
        raise user_error(f"no checkpoint {step} in {workdir}", f"one of the steps {kept}", "name one of these")
    damaged = {}
    for candidate in [step] if step is not None else steps[::-1]:
        try:
            return read(folder / str(candidate)), candidate
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:  # noqa: BLE001  as above
            damaged[candidate] = error
            log.warning(
                "checkpoint %s is damaged (%s); delete it and train again to get it back, the next older one is tried",
                folder / str(candidate),
                _reason(error),
            )
    raise _none_whole(folder, damaged)


def _set_aside(folder: Path, damaged: dict[int, Exception]) -> None:
    """Moves damaged checkpoints to checkpoints_damaged/, where someone may still repair them."""
    for step, error in damaged.items():
        aside = folder.with_name(DAMAGED) / f"{step}_{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        log.warning("checkpoint %s is damaged (%s); moved to %s", folder / str(step), _reason(error), aside)


def _none_whole(folder: Path, damaged: dict[int, Exception]) -> UserError:
    reasons = "; ".join(f"{step}: {_reason(error)}" for step, error in damaged.items())
    return user_error(
        f"no checkpoint in {folder} can be read ({reasons})",
        "a whole one of this model",
        "put a copy there, or move the folder away to train from the start",
    )


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


# ------------------------------------------------------------------------------------------- checksums
def checksums(tree: Any) -> dict[str, int]:
    """Path of each leaf -> the sum of its 32-bit words modulo 2**32, the same for any sharding.

    A flipped bit always changes it. Each shape is compiled separately: one function for all leaves took minutes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get([_checksum(leaf) for _, leaf in leaves])
    return {_name(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


@jax.jit
def _checksum(leaf: Array) -> UInt32[Array, ""]:
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    return words.astype(jnp.uint32).sum(dtype=jnp.uint32)


def _name(path: tuple) -> str:
    """The same name for a State and for the nested dicts that Orbax restores without one."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _check(folder: Path, restored: Any) -> None:
    """Compares what was read with the stored checksums; a checkpoint without any passes."""
    stored = json.loads((folder / "_CHECKPOINT_METADATA").read_text()).get("custom_metadata") or {}
    expected = stored.get(CHECKSUMS)
    if expected is None:
        return
    wrong = [name for name, found in checksums(restored).items() if expected.get(name) != found]
    if wrong:
        raise ValueError(f"{len(wrong)} arrays are not as they were saved, such as {wrong[0]}")


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )
