"""Checkpoints of a run, the state and the place in the data, and snapshots of averages, written and read by Orbax.

Damage is detected on reading, by Orbax or by stored checksums, since Orbax misses most flipped bits in an array. The
newest undamaged checkpoint is then used instead.
"""

import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils.epath.gpath import PosixGPath
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import is_full_disk, is_passing, is_refused, make_folder

log = logging.getLogger(__name__)

FOLDER, DAMAGED, SNAPSHOTS = "checkpoints", "checkpoints_damaged", "ema_snapshots"
_STEP = re.compile("0|[1-9][0-9]*")  # as Orbax names what it writes
_LEFT = re.compile(r"\d+(\.replaced\.[0-9a-f]{8}|\.orbax-checkpoint-tmp.*)")  # by a killed process among the snapshots
WAIT_SEC = 600.0  # for other processes
PAUSES_SEC = (1, 4, 15)  # before a file system that did not answer is asked again
_MOMENT_SEC = 0.2  # in which a deletion that is under way gets further
CHECKSUMS, PLACE, VERSION = "checksums", "place", "version"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Settings:
    """Which checkpoints are kept."""

    newest: int = 1
    every_steps: int = 0  # those at multiples of this too; 0 = none


class NotWritten(UserError):
    """A checkpoint could not be written, for example on a full disk; those before it are intact."""

    def __init__(self, line: str, *, full_disk: bool) -> None:
        super().__init__(line)
        self.full_disk = full_disk  # and no other reason


@runtime_checkable
class Place(Protocol):
    """An iterator over data that can go on from where another one was."""

    def get_state(self) -> dict[str, Any]:
        """The place as JSON can store it, the same in every process."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes there."""


class _Literal(PosixGPath):
    """A path for Orbax, whose `glob` takes the pattern alone for one.

    A plain one of etils takes the folder's own path for a pattern too. In one such as lr[1e-4] Orbax then finds nothing
    of what it has just written, and leaves a checkpoint without its arrays.
    """

    def glob(self, pattern: str) -> Iterator["_Literal"]:
        """The paths below this one that match."""
        return (type(self)(found) for found in Path(self).glob(pattern))


def check_path(folder: Path) -> None:
    """Checks that a folder can hold checkpoints.

    Raises:
      UserError: its path has a backslash, which TensorStore takes for a slash: the arrays would be written elsewhere.
    """
    if "\\" in str(folder.absolute()):
        raise user_error(f"{folder.absolute()} for checkpoints", "a path without a backslash", "use another folder")


def _for_orbax(path: Path) -> _Literal:
    check_path(path)
    return _Literal(path.absolute())


# --------------------------------------------------------------------------------------------- writing
@contextmanager
def open_manager(workdir: Path, settings: Settings) -> Iterator[ocp.CheckpointManager]:
    """A manager of the checkpoints in a workdir; on exit, even after an error, it finishes a pending save.

    Raises:
      UserError: the last checkpoint could not be written, nothing can be written there, or no old one can be read.
    """
    check_path(workdir)
    folder = (workdir / FOLDER).absolute()
    _set_unreadable_aside(folder, distributed.tell("checkpoints there", lambda: steps_of(workdir), WAIT_SEC))
    if distributed.is_main():
        make_folder(folder, "--workdir")  # in a folder that is not writable, Orbax waits for minutes
    distributed.barrier("checkpoints are looked through", WAIT_SEC)
    options = ocp.CheckpointManagerOptions(max_to_keep=settings.newest, keep_period=settings.every_steps or None)
    manager = ocp.CheckpointManager(_for_orbax(folder), options=options)
    try:
        yield manager
    except BaseException:
        # If left open, its threads print a page of tracebacks; a second failure would hide the first.
        with suppress(Exception):
            manager.close()
        raise
    with _written_or_user_error(manager.directory):
        manager.close()


def _set_unreadable_aside(folder: Path, steps: list[int]) -> None:
    damaged = {}
    for step in steps:  # a new manager reads this of every checkpoint, and would fail on a damaged one
        metadata = ocp.path.step.Metadata(step, _for_orbax(folder / str(step)))
        try:
            _in_all_processes(lambda metadata=metadata: metadata.commit_timestamp)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  Orbax raises anything, even bare Exceptions
            damaged[step] = error
    if damaged and len(damaged) == len(steps):
        raise _none_whole(folder, damaged)
    if distributed.is_main():
        _set_aside(folder, damaged)


def save(manager: ocp.CheckpointManager, step: int, state: Any, place: Place) -> None:
    """Writes checkpoints/<step> in the background.

    Raises:
      NotWritten: this or the last checkpoint could not be written, e.g. on a full disk.
    """
    items = ocp.args.Composite(state=ocp.args.StandardSave(_filled(state)), data=ocp.args.JsonSave(place.get_state()))
    # The place twice, since a damaged digit of one of them would not be noticed.
    metadata = {CHECKSUMS: checksums(state), PLACE: place.get_state(), VERSION: _version()}
    with _written_or_user_error(manager.directory):
        _check_room(Path(manager.directory), state)
        manager.save(step, args=items, custom_metadata=metadata)


def _filled(state: Any) -> dict[str, Any]:
    """The parts of a state that hold arrays: Orbax tells an empty part from none, which older checkpoints have."""
    parts = state if isinstance(state, dict) else vars(state)
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


def _version() -> str:
    try:
        return importlib.metadata.version("kaleido_jax")
    except importlib.metadata.PackageNotFoundError:
        return "uninstalled"  # one word, as verify prints it


def _check_room(folder: Path, state: Any) -> None:
    """Checks that a checkpoint fits, since one that is torn by a full disk takes minutes to fail.

    In several processes it does so in all or in none: their disks may differ, and free space changes between two looks
    at one that they share. One that skips a save would leave the others waiting in it.
    """
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    if not distributed.agree("room for a checkpoint", free >= needed, WAIT_SEC):
        where = "are free" if free < needed else "are free here, but less where another process writes"
        raise OSError(errno.ENOSPC, f"it needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB {where}")


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until the last checkpoint is on disk.

    Raises:
      NotWritten: it could not be written.
    """
    with _written_or_user_error(manager.directory):
        manager.wait_until_finished()


@contextmanager
def _written_or_user_error(folder: os.PathLike, what: str = "a checkpoint") -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore's errors are ValueErrors
        line = user_error(
            f"{what} cannot be written to {folder} ({reason(error)})",
            "free space and permission",
            "provide them; the same command then resumes from the last whole checkpoint",
        )
        raise NotWritten(str(line), full_disk=is_full_disk(error)) from error


# --------------------------------------------------------------------------------------------- reading
def steps_of(workdir: Path, name: str = FOLDER) -> list[int]:
    """Steps of the checkpoints in a workdir, oldest first; with name=SNAPSHOTS those of the snapshots.

    A folder of any other name than a step, such as bad_10 or 10_old, is one that somebody has put aside.
    """
    folder = workdir / name
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if _STEP.fullmatch(path.name) and path.is_dir())


def check_there(workdir: Path) -> None:
    """Checks that a workdir holds a checkpoint; reads none.

    Raises:
      UserError: it holds none.
    """
    if not steps_of(workdir):
        raise _no_checkpoint(workdir)


def restore(manager: ocp.CheckpointManager, abstract_state: Any, place: Place) -> Any:
    """The state of the newest whole checkpoint, sharded as the abstract state; `place` goes to its place in the data.

    Newer damaged ones are moved to checkpoints_damaged/, since their steps will be written again.

    Raises:
      UserError: none can be read.
    """
    folder, damaged = Path(manager.directory), {}
    steps = distributed.tell("checkpoints to restore", lambda: sorted(map(int, manager.all_steps())), WAIT_SEC)
    for step in reversed(steps):
        try:
            state, data = _read_whole(folder / str(step), _filled(abstract_state))
            _in_all_processes(lambda data=data: place.set_state(data))
        except (UserError, jax.errors.JaxRuntimeError):  # the config has changed; out of memory, for example
            raise
        except Exception as error:  # noqa: BLE001  as above
            damaged[step] = error
            continue
        if damaged:
            if distributed.is_main():
                _set_aside(folder, damaged, step)
            distributed.barrier("damaged checkpoints are set aside", WAIT_SEC)
            manager.reload()
        return abstract_state | state if isinstance(abstract_state, dict) else abstract_state.replace(**state)
    raise _none_whole(folder, damaged)


def _read_whole(folder: Path, item: dict[str, Any], *, parts: bool = False) -> tuple[Any, dict[str, Any] | None]:
    """(state, place in the data) in the folder of a step, checked; with `parts` only what the item has, and no place.

    It fails in all processes where it does in one, and reads by Orbax's handlers, since at its end a checkpointer waits
    for all processes, also for one that cannot read.
    """
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=parts)

    def read() -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
        state = ocp.PyTreeCheckpointHandler().restore(_for_orbax(folder / "state"), args=args)
        return state, None if parts else json.loads((folder / "data" / "metadata").read_text()), _metadata(folder)

    state, place, stored = _in_all_processes(read)  # before the checksums, for which processes wait for each other too
    _in_all_processes(lambda: _check(stored, state, place))
    return state, place


def _in_all_processes(act: Callable[[], _T]) -> _T:
    """What `act` returns; where it fails in one process, it fails in all.

    Raises:
      UserError: not all processes came, or a file system does not answer or refuses, which says nothing about a
        checkpoint; else what `act` raises, or a ValueError.
    """
    result = error = None
    try:
        result = _patiently(act)
    except jax.errors.JaxRuntimeError:  # out of memory, for example: nothing is damaged
        raise
    except Exception as raised:  # noqa: BLE001  as above
        error = raised
    mine = None if error is None else [reason(error), is_passing(error) or is_refused(error)]
    told = distributed.gather("a whole checkpoint", mine, WAIT_SEC)
    for index, other in enumerate(told):
        if other is not None and other[1]:
            found = f"a checkpoint that process {index} cannot read" if len(told) > 1 else "a checkpoint cannot be read"
            do = "mend that, and the same command goes on; or move this checkpoint away, to go on from the one before"
            raise user_error(f"{found} ({other[0]})", "a file system that reads it", do)
    if error is not None:
        raise error
    for index, other in enumerate(told):
        if other is not None:
            raise ValueError(f"process {index} cannot read it: {other[0]}")
    return result


def _patiently(read: Callable[[], _T]) -> _T:
    """Reads again after a while where a file system did not answer, which says nothing of what it holds."""
    for pause in PAUSES_SEC:
        try:
            return read()
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore's errors are ValueErrors
            if not is_passing(error):
                raise
            log.warning("a checkpoint cannot be read (%s); trying again in %d s", reason(error), pause)
            time.sleep(pause)
    return read()


def restore_ema(workdir: Path, abstract_ema: Any, step: int | None = None) -> tuple[Any, int]:
    """(EMA parameters, step) of a checkpoint, by default the newest whole one; reads only the parts in the tree.

    Raises:
      UserError: the workdir holds no checkpoint, none of `step`, or only damaged ones.
    """

    return _newest_whole(workdir, lambda folder: _read_part(folder, "ema", abstract_ema), step)


def _read_part(folder: Path, name: str, abstract: Any) -> Any:
    """One part of the state in the folder of a step, as far as the abstract tree goes."""
    return _read_whole(folder, {name: abstract}, parts=True)[0][name]


def ema_shapes(workdir: Path) -> dict:
    """The EMA parameters of the newest whole checkpoint as jax.ShapeDtypeStruct; reads no array.

    Raises:
      UserError: the workdir holds no checkpoint, or only damaged ones.
    """

    def read(folder: Path) -> dict:
        tree = ocp.PyTreeCheckpointer().metadata(_for_orbax(folder / "state")).item_metadata.tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree["ema"])

    return _newest_whole(workdir, lambda folder: _in_all_processes(lambda: read(folder)))[0]


def certificates(workdir: Path, name: str = FOLDER) -> Iterator[tuple[int, dict[str, str] | Exception]]:
    """(step, certificate) of every checkpoint, or with name=SNAPSHOTS snapshot, oldest first, or a damaged one's error.

    A certificate has the program's version and 16 hex digits for each part of the state and for the place in the data.
    They change with any bit of it and do not depend on the devices, so equal runs have equal certificates. The parts of
    a snapshot are averages, by their place in config.train.ema_profiles. What a training deletes meanwhile is left out.

    Raises:
      UserError: the workdir holds no checkpoint; it may hold no snapshot.
    """
    check_path(workdir)
    folder, steps = (workdir / name).absolute(), steps_of(workdir, name)
    if not steps and name == FOLDER:
        raise _no_checkpoint(workdir)
    for step in steps:
        try:
            found = _certificate(folder / str(step))
        except Exception as error:  # noqa: BLE001  as above
            if _is_deleted(folder / str(step)):
                continue
            found = error
        yield step, found


def _is_deleted(folder: Path) -> bool:
    """Whether it is gone, or going: then it holds less a moment later."""
    before = _count_files(folder)
    time.sleep(_MOMENT_SEC)
    return not folder.is_dir() or _count_files(folder) < before


def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _certificate(folder: Path) -> dict[str, str]:
    checkpointer, path = ocp.PyTreeCheckpointer(), _for_orbax(folder / "state")
    tree = checkpointer.metadata(path).item_metadata.tree
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    state = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))
    snapshot = folder.parent.name == SNAPSHOTS
    place, stored = None if snapshot else json.loads((folder / "data" / "metadata").read_text()), _metadata(folder)
    _check(stored, state, place)
    digests = {}
    for part, tree in sorted(state.items()):
        digest = hashlib.sha256()
        for path, leaf in sorted((_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)):
            digest.update(f"{path} {leaf.shape} {leaf.dtype}\n".encode())
            digest.update(np.asarray(leaf).tobytes())
        digests[f"profile_{part}" if snapshot else part] = digest.hexdigest()[:16]
    if not snapshot:
        digests["place"] = hashlib.sha256(json.dumps(place, sort_keys=True).encode()).hexdigest()[:16]
    return {VERSION: stored.get(VERSION, "unknown")} | digests


def _no_checkpoint(workdir: Path) -> UserError:
    folder = (workdir / FOLDER).absolute()
    return user_error(f"no checkpoint in {workdir}", f"{folder}/<step>", "train first, or correct the path")


def _newest_whole(workdir: Path, read: Any, step: int | None = None) -> tuple[Any, int]:
    """(what `read` makes of the folder of a step, step), of the same step in every process.

    Beside a training that saves, each would list other steps. `read` fails in all processes where it does in one.
    """
    folder = (workdir / FOLDER).absolute()
    steps = distributed.tell("checkpoints to read", lambda: steps_of(workdir), WAIT_SEC)
    if not steps:
        raise _no_checkpoint(workdir)
    if step is not None and step not in steps:
        kept = ", ".join(str(s) for s in steps)
        raise user_error(f"no checkpoint {step} in {workdir}", f"one of the steps {kept}", "name one of these")
    damaged = {}
    for candidate in [step] if step is not None else steps[::-1]:
        try:
            return read(folder / str(candidate)), candidate
        except (UserError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # noqa: BLE001  as above
            damaged[candidate] = error
            if distributed.is_main():
                log.warning(
                    "checkpoint %s is damaged (%s); delete it and train again to get it back, the next older is tried",
                    folder / str(candidate),
                    reason(error),
                )
    raise _none_whole(folder, damaged)


def _set_aside(folder: Path, damaged: dict[int, Exception], whole: int | None = None) -> None:
    """Moves damaged checkpoints to checkpoints_damaged/, where someone may still repair them.

    `whole` is the step that is read instead, if known.
    """
    instead = "the next older one" if whole is None else f"{folder / str(whole)}"
    for step, error in damaged.items():
        aside = folder.with_name(DAMAGED) / f"{step}_{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        line = "checkpoint %s is damaged (%s); moved to %s, and training resumes from %s"
        log.warning(line, folder / str(step), reason(error), aside, instead)


def _none_whole(folder: Path, damaged: dict[int, Exception]) -> UserError:
    reasons = "; ".join(f"{step}: {reason(error)}" for step, error in damaged.items())
    return user_error(
        f"no checkpoint in {folder} can be read ({reasons})",
        "a whole one of this model",
        "put a copy there, or move the folder away to train from the start",
    )


def reason(error: BaseException) -> str:
    """An error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


# ------------------------------------------------------------------------------------------- snapshots
@contextmanager
def open_snapshots(workdir: Path) -> Iterator[ocp.AsyncCheckpointer]:
    """A writer of ema_snapshots/; on exit, even after an error, it finishes a pending one.

    What a killed run left there unfinished is removed.

    Raises:
      UserError: the last snapshot could not be written, or nothing can be written there.
    """
    check_path(workdir)
    folder = workdir / SNAPSHOTS
    if distributed.is_main():
        for path in make_folder(folder, "--workdir").iterdir():
            if _LEFT.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
    distributed.barrier("snapshots can be written", WAIT_SEC)
    writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    try:
        yield writer
    except BaseException:
        with suppress(Exception):
            writer.close()
        raise
    with _written_or_user_error(folder, "an EMA snapshot"):
        writer.close()


def save_snapshot(writer: ocp.AsyncCheckpointer, workdir: Path, step: int, profiles: Sequence[Any]) -> None:
    """Writes ema_snapshots/<step> as float16 in the background, in place of an earlier one of this step.

    float16 has three bits more than bfloat16, and sums of snapshots within the profiles' range do not enlarge its
    rounding (Karras et al. 2024 store it too). No other save may be under way: of two, several processes would mix up
    which they wait for.

    Raises:
      NotWritten: this or the last snapshot could not be written, e.g. on a full disk.
    """
    folder = (workdir / SNAPSHOTS).absolute()
    trees = {str(i): jax.tree.map(lambda leaf: leaf.astype(jnp.float16), tree) for i, tree in enumerate(profiles)}
    with _written_or_user_error(folder, "an EMA snapshot"):
        _check_room(folder, trees)
        metadata = {CHECKSUMS: checksums(trees), VERSION: _version()}
        if distributed.is_main() and (folder / str(step)).exists():
            # Orbax's `force` would leave a part of it under its name if the process is killed meanwhile.
            replaced = (folder / str(step)).rename(folder / f"{step}.replaced.{uuid.uuid4().hex[:8]}")
            shutil.rmtree(replaced)
        items = ocp.args.Composite(state=ocp.args.StandardSave(trees))
        writer.save(_for_orbax(folder / str(step)), args=items, custom_metadata=metadata)


def wait_for_snapshot(writer: ocp.AsyncCheckpointer, workdir: Path) -> None:
    """Waits until the last snapshot is on disk.

    Raises:
      NotWritten: it could not be written.
    """
    with _written_or_user_error(workdir / SNAPSHOTS, "an EMA snapshot"):
        writer.wait_until_finished()


def restore_snapshot(workdir: Path, step: int, number: int, abstract: Any) -> Any:
    """The profile of this number in ema_snapshots/<step> as float16, sharded as the abstract parameters.

    Raises:
      UserError: it is missing or damaged.
    """
    folder = (workdir / SNAPSHOTS / str(step)).absolute()
    halves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float16, sharding=leaf.sharding), abstract)
    try:
        return _read_part(folder, str(number), halves)
    except (UserError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # noqa: BLE001  as above
        found = f"EMA snapshot {folder} cannot be read ({reason(error)})"
        raise user_error(found, "a whole one", "delete it; the others serve without it") from error


# ------------------------------------------------------------------------- parameters for other programs
def write_params(folder: Path, params: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Writes a tree of host arrays as an Orbax checkpoint of its own, which any program restores without this package.

    `ocp.StandardCheckpointer().restore(folder)` gives the nested dict. The arrays carry no sharding, so that it also
    does on other devices; `metadata` is the checkpoint's custom metadata.

    Raises:
      UserError: it could not be written, e.g. on a full disk.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(_for_orbax(folder), params, custom_metadata=metadata)
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore's errors are ValueErrors
        found = f"{folder} cannot be written ({reason(error)})"
        raise user_error(found, "free space and permission", "provide them") from error


# ------------------------------------------------------------------------------------------- checksums
def checksums(tree: Any) -> dict[str, int]:
    """Path of each leaf -> the sum of its 32-bit words modulo 2**32, the same for any sharding.

    A flipped bit always changes it. On accelerators each shape is compiled separately: one function for all leaves took
    minutes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = [[_checksum(part) for part in _own_parts(leaf)] for _, leaf in leaves]
    mine = np.asarray([sum(int(value) for value in each) % 2**32 for each in jax.device_get(sums)], np.uint32)
    if jax.process_count() > 1:  # one collective for all: hundreds of small ones at a time deadlock on CPU
        mine = multihost_utils.process_allgather(mine).sum(0, dtype=np.uint32)
    return {_name(path): int(value) for (path, _), value in zip(leaves, mine, strict=True)}


def _own_parts(leaf: Array | np.ndarray) -> list[Array | np.ndarray]:
    """The parts of an array on this process's devices, each part of the whole once over all processes."""
    if not isinstance(leaf, jax.Array):
        return [leaf]
    return [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]


def _checksum(part: Array | np.ndarray) -> UInt32[Array, ""] | np.uint32:
    # Memory of CPU devices is the host's, where numpy need not compile a function for each shape.
    if isinstance(part, np.ndarray) or all(device.platform == "cpu" for device in part.devices()):
        return _sum_of_words(np.asarray(part))
    return _compiled_sum_of_words(part)


def _sum_of_words(part: Array | np.ndarray) -> UInt32[Array, ""] | np.uint32:
    xp = part.__array_namespace__()
    return part.view(f"uint{8 * part.dtype.itemsize}").astype(xp.uint32).sum(dtype=xp.uint32)


_compiled_sum_of_words = jax.jit(_sum_of_words)


def _name(path: tuple) -> str:
    """The same name for a State and for the nested dicts that Orbax restores without one."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _metadata(folder: Path) -> dict[str, Any]:
    """What was stored beside the state in the folder of a step: checksums, place, version."""
    return json.loads((folder / "_CHECKPOINT_METADATA").read_text()).get("custom_metadata") or {}


def _check(stored: dict[str, Any], restored: Any, place: dict[str, Any] | None = None) -> None:
    """Compares what was read with the stored checksums and place; a checkpoint without any passes."""
    found = checksums(restored)  # first, since all processes must come to it
    expected = stored.get(CHECKSUMS)
    if place is not None and place != stored.get(PLACE, place):
        raise ValueError("the place in the data is not as it was saved")
    if expected is None:
        return
    wrong = [name for name, value in found.items() if expected.get(name) != value]
    if wrong:
        raise ValueError(f"{len(wrong)} arrays are not as they were saved, such as {wrong[0]}")


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )
