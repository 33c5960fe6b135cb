"""Checkpoints of a small state: whatever is damaged in the newest, the one before it is read instead."""

import errno
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import struct

from kaleido_jax.config.load import load_config
from kaleido_jax.errors import UserError
from kaleido_jax.export.folder import export_folder
from kaleido_jax.runtime import checkpoints
from kaleido_jax.train.fit import fit
from tests.full_disk import full_disk
from tests.runtime.test_distributed import three


def state_at(step):
    return {
        "step": jnp.int32(step),
        "params": {"a": jnp.arange(3000.0) + step},
        "ema": {"a": jnp.arange(3000.0) - step, "b": jnp.full((40, 50), step, jnp.float32)},
    }


ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
ABSTRACT = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=ONE), state_at(0))


class Numbers:
    """0, 1, ..., with a place."""

    next = 0

    def __next__(self):
        self.next += 1
        return self.next - 1

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


TWO = checkpoints.Settings(newest=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, iterator = tmp_path_factory.mktemp("run"), Numbers()
    with checkpoints.open_manager(folder, TWO) as manager:
        for step in (5, 10):
            next(iterator)
            checkpoints.save(manager, step, state_at(step), iterator)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """(workdir, folder of its newest checkpoint)."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run", tmp_path / "run" / "checkpoints" / "10"


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


DAMAGES = {
    "no manifests": lambda newest: [path.unlink() for path in newest.rglob("manifest.ocdbt")],
    "cut": lambda newest: [cut(path) for path in (newest / "state").rglob("d/*")],
    "emptied": lambda newest: [path.write_bytes(b"") for path in (newest / "state").rglob("d/*")],
    "no files": lambda newest: [shutil.rmtree(newest), newest.mkdir()],
    "no state": lambda newest: shutil.rmtree(newest / "state"),
    "an empty state": lambda newest: [shutil.rmtree(newest / "state"), (newest / "state").mkdir()],
    "metadata of the state": lambda newest: (newest / "state" / "_METADATA").write_bytes(b"{"),
    "metadata": lambda newest: (newest / "_CHECKPOINT_METADATA").write_bytes(b"{"),
    "strange metadata": lambda newest: (newest / "_CHECKPOINT_METADATA").write_bytes(
        b'{"a": 1, "custom_metadata": {"b": 1}}'
    ),
    "no data": lambda newest: shutil.rmtree(newest / "data"),
    "cut data": lambda newest: [path.write_bytes(b"\0\0") for path in newest.glob("data/*")],
    "strange data": lambda newest: [path.write_bytes(b"[]") for path in newest.glob("data/*")],
}


def restored(workdir):
    with checkpoints.open_manager(workdir, TWO) as manager:
        iterator = Numbers()
        return checkpoints.restore(manager, ABSTRACT, iterator), iterator


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_newest_is_read_with_its_place_in_the_data(whole):
    state, iterator = restored(whole)
    equal(state, state_at(10))
    assert next(iterator) == 2
    ema, step = checkpoints.restore_ema(whole, {"b": ABSTRACT["ema"]["b"]})
    assert step == 10
    equal(ema, {"b": state_at(10)["ema"]["b"]})


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_resumes_from_the_one_before_and_writes_the_step_again(damage, run, caplog):
    workdir, newest = run
    DAMAGES[damage](newest)
    with checkpoints.open_manager(workdir, TWO) as manager:
        iterator = Numbers()
        state = checkpoints.restore(manager, ABSTRACT, iterator)
        equal(state, state_at(5))
        assert next(iterator) == 1
        checkpoints.save(manager, 10, state_at(10), iterator)
    # Ours alone: asyncio reports another test's failed read whenever its task is collected.
    [message] = [record.getMessage() for record in caplog.records if record.name == checkpoints.__name__]
    assert "checkpoints/10 is damaged" in message and "\n" not in message
    equal(restored(workdir)[0], state_at(10))
    assert len(list((workdir / "checkpoints_damaged").iterdir())) == 1


OF_DATA = ("no data", "cut data", "strange data", "strange metadata")  # nothing that sampling reads


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in OF_DATA])
def test_sampling_takes_the_one_before_and_moves_nothing(damage, run, caplog):
    workdir, newest = run
    DAMAGES[damage](newest)
    ema, step = checkpoints.restore_ema(workdir, ABSTRACT["ema"])
    assert step == 5 and "checkpoints/10 is damaged" in caplog.text
    equal(ema, state_at(5)["ema"])
    assert jax.tree.structure(checkpoints.ema_shapes(workdir)) == jax.tree.structure(ema)
    assert newest.exists() and not (workdir / "checkpoints_damaged").exists()
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(10: "):
        checkpoints.restore_ema(workdir, ABSTRACT["ema"], step=10)


def test_processes_read_the_same_checkpoint_beside_a_training_that_saves(whole, monkeypatch):
    """The main process has seen step 5 only; then step 10 is there, which another process cannot read."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.distributed, "tell", lambda name, make, timeout_s: [5])
        assert checkpoints.restore_ema(whole, ABSTRACT["ema"])[1] == 5
        with pytest.raises(UserError, match="no checkpoint 10 in .*; expected one of the steps 5"):
            checkpoints.restore_ema(whole, ABSTRACT["ema"], step=10)
    others = [["ValueError: cut", False], None, None]  # of reading step 10, then of step 5 and its sums
    monkeypatch.setattr(checkpoints.distributed, "gather", lambda name, mine, timeout_s: [mine, others.pop(0)])
    assert checkpoints.restore_ema(whole, ABSTRACT["ema"])[1] == 5


def read_as_one_of_two(root, me):
    """Run in each of two processes; reads what its own folders hold."""
    checkpoints.WAIT_SEC = 30.0
    both = jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.sharding.PartitionSpec())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=both), state_at(0))
    for damage in OF_ONE:
        workdir = Path(root) / damage / str(me)
        ema, step = checkpoints.restore_ema(workdir, shapes["ema"])
        assert jax.tree.structure(checkpoints.ema_shapes(workdir)) == jax.tree.structure(ema)
        with checkpoints.open_manager(workdir, TWO) as manager:
            numbers = Numbers()
            state = checkpoints.restore(manager, shapes, numbers)
        read = step, ema["b"][0, 0], state["step"], state["params"]["a"][0], numbers.next
        sys.stdout.write(", ".join([damage, *(str(int(value)) for value in read)]) + "\n")


def change_sums(newest):
    path = newest / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"]["checksums"] = dict.fromkeys(metadata["custom_metadata"]["checksums"], 7)
    path.write_text(json.dumps(metadata))


OF_ONE = {name: DAMAGES[name] for name in ("cut", "no files", "cut data")} | {"other sums": change_sums}


def test_what_one_of_two_processes_cannot_read_both_leave_out(whole, tmp_path):
    """Each has a disk of its own here. The other waited in a barrier of Orbax, or for the checksums, until a limit."""
    for damage, harm in OF_ONE.items():
        for me in "01":
            shutil.copytree(whole, tmp_path / damage / me)
        harm(tmp_path / damage / "1" / "checkpoints" / "10")
    body = "from tests.runtime.test_checkpoints import read_as_one_of_two; "
    codes, outputs, errors = three(f"{body}read_as_one_of_two({str(tmp_path)!r}, me)", count=2)
    assert codes == [0, 0], (outputs, errors)
    for damage in OF_ONE:
        sampled = 10 if damage == "cut data" else 5  # nothing that sampling reads
        expected = f"{damage}, {sampled}, {sampled}, 5, 5, 1"
        assert all(expected in output.splitlines() for output in outputs), outputs
        folder = tmp_path / damage / "0" / "checkpoints"
        [line] = [line for line in errors[0].splitlines() if f"{folder}/10 is" in line and "moved to" in line]
        assert "is damaged (ValueError: process 1 cannot read it: " in line
        assert line.endswith(f"training resumes from {folder}/5")
        assert checkpoints.steps_of(folder.parent) == [5]


def test_what_one_process_cannot_open_is_set_aside_before_orbax_opens_it(run, monkeypatch, caplog):
    workdir, newest = run
    others = [None, ["FileNotFoundError: [Errno 2] No such file", False]]  # of steps 5 and 10
    monkeypatch.setattr(checkpoints.distributed, "gather", lambda name, mine, timeout_s: [mine, others.pop(0)])
    with checkpoints.open_manager(workdir, TWO) as manager:
        assert list(manager.all_steps()) == [5]
    assert f"{newest} is damaged (ValueError: process 1 cannot read it: FileNotFoundError: [Errno 2]" in caplog.text
    assert "training resumes from the next older one" in caplog.text


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_file_system_that_does_not_answer_once_damages_no_checkpoint(code, run, monkeypatch, caplog):
    workdir, read = run[0], checkpoints._metadata
    failures = [OSError(code, os.strerror(code)), ValueError(f"Error reading: {os.strerror(code)}")]
    monkeypatch.setattr(checkpoints, "PAUSES_SEC", (0, 0))
    monkeypatch.setattr(checkpoints, "_metadata", lambda folder: _fails(failures.pop()) if failures else read(folder))
    equal(restored(workdir)[0], state_at(10))
    assert caplog.text.count("trying again in 0 s") == 2 and not (workdir / "checkpoints_damaged").exists()


def _fails(error):
    raise error


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_checkpoint_that_a_file_system_never_reads_or_refuses_is_one_line_and_stays(code, run, monkeypatch):
    workdir, newest = run
    monkeypatch.setattr(checkpoints, "PAUSES_SEC", (0, 0))
    monkeypatch.setattr(checkpoints, "_metadata", lambda folder: _fails(OSError(code, os.strerror(code))))
    with pytest.raises(UserError, match=f"cannot be read .*{os.strerror(code)}.*or move this checkpoint away"):
        restored(workdir)
    assert newest.exists() and not (workdir / "checkpoints_damaged").exists()


def test_no_flipped_bit_changes_weights(run):
    workdir, newest = run
    rng = random.Random(0)
    files = [path for path in (newest / "state").rglob("*") if path.is_file()]
    for _ in range(25):
        path = rng.choices(files, [path.stat().st_size for path in files])[0]
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        ema, step = checkpoints.restore_ema(workdir, ABSTRACT["ema"])
        equal(ema, state_at(step)["ema"])
        path.write_bytes(content)


def test_no_flipped_bit_changes_a_run_that_goes_on(whole, tmp_path, caplog):
    """Anywhere in the newest checkpoint, metadata and the place in the data included: 60 places."""
    rng, older = random.Random(1), 0
    for i in range(60):
        workdir = tmp_path / str(i)
        shutil.copytree(whole, workdir)
        files = [path for path in (workdir / "checkpoints" / "10").rglob("*") if path.is_file()]
        # Every fourth in the small files, where a bit is rarely hit by chance.
        weights = [path.stat().st_size if i % 4 else 1 for path in files]
        path = rng.choices(files, weights)[0]
        flipped = bytearray(path.read_bytes())
        if not flipped:
            continue
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        caplog.clear()
        state, iterator = restored(workdir)
        step = int(state["step"])
        equal(state, state_at(step))
        assert next(iterator) == step // 5
        if step == 5:
            older += 1
            [message] = [record.getMessage() for record in caplog.records if record.name == checkpoints.__name__]
            assert "checkpoints/10 is damaged" in message and "\n" not in message
    assert older > 20


class Old(struct.PyTreeNode):
    step: Any
    ema: Any


class New(Old):
    averages: Any = ()


def test_a_state_with_an_empty_part_reads_a_checkpoint_from_before_it_was_there(tmp_path):
    step, ema = jnp.int32(5), state_at(5)["ema"]
    with checkpoints.open_manager(tmp_path, TWO) as manager:
        manager.save(
            5, args=ocp.args.Composite(state=ocp.args.StandardSave(Old(step, ema)), data=ocp.args.JsonSave({"next": 3}))
        )
        manager.wait_until_finished()
        checkpoints.save(manager, 6, New(step, ema), Numbers())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=ONE), New(step, ema))
    for number in (6, 5):
        with checkpoints.open_manager(tmp_path, TWO) as manager:
            found = checkpoints.restore(manager, shapes, Numbers())
        assert isinstance(found, New) and found.averages == ()
        equal(found, New(step, ema))
        assert set(dict(checkpoints.certificates(tmp_path))[number]) == {"version", "step", "ema", "place"}
        shutil.rmtree(tmp_path / "checkpoints" / "6", ignore_errors=True)


# --------------------------------------------------------------------------------------------- snapshots
def averages(step):
    return tuple({"a": jnp.linspace(-step, step, 3000), "b": jnp.full((4, 5), 0.1 * i + step)} for i in range(2))


SHAPES = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=ONE), averages(1)[0])


@pytest.fixture
def snapshots(tmp_path):
    with checkpoints.open_snapshots(tmp_path) as writer:
        for step in (4, 8):
            checkpoints.save_snapshot(writer, tmp_path, step, averages(step))
    return tmp_path


def test_snapshots_hold_the_averages_as_float16_and_are_written_again_in_place(snapshots):
    def check(step, expected):
        for i, tree in enumerate(averages(expected)):
            halves = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16), tree)
            equal(checkpoints.restore_snapshot(snapshots, step, i, SHAPES), halves)

    assert checkpoints.steps_of(snapshots, checkpoints.SNAPSHOTS) == [4, 8]
    check(4, 4)
    check(8, 8)
    for left in ("12.orbax-checkpoint-tmp", "4.replaced.01234567"):  # by a process that was killed
        (snapshots / "ema_snapshots" / left / "state").mkdir(parents=True)
    others = ("5_backup", "mine", "8.orig")  # of the user, which nobody else may delete
    for other in others:
        (snapshots / "ema_snapshots" / other).mkdir()
    with checkpoints.open_snapshots(snapshots) as writer:
        checkpoints.save_snapshot(writer, snapshots, 8, averages(7))
        checkpoints.save_snapshot(writer, snapshots, 12, averages(12))
    assert checkpoints.steps_of(snapshots, checkpoints.SNAPSHOTS) == [4, 8, 12]
    assert {path.name for path in (snapshots / "ema_snapshots").iterdir()} == {"4", "8", "12", *others}
    check(8, 7)
    check(12, 12)


@pytest.mark.parametrize("harm", ["change", "remove"])
def test_a_damaged_snapshot_is_named(snapshots, harm):
    folder = snapshots / "ema_snapshots" / "8" / "state"
    if harm == "remove":
        shutil.rmtree(folder)
    else:  # as if other arrays had been written
        path = folder.parent / "_CHECKPOINT_METADATA"
        metadata = json.loads(path.read_text())
        metadata["custom_metadata"]["checksums"]["1/b"] ^= 1
        path.write_text(json.dumps(metadata))
    found = dict(checkpoints.certificates(snapshots, checkpoints.SNAPSHOTS))
    assert isinstance(found[4], dict) and isinstance(found[8], Exception)
    with pytest.raises(UserError, match=r"EMA snapshot .*ema_snapshots/8 cannot be read \(.*; delete it") as caught:
        for number in (0, 1):
            checkpoints.restore_snapshot(snapshots, 8, number, SHAPES)
    assert "\n" not in str(caught.value)


def test_a_snapshot_that_does_not_fit_is_one_line_and_the_next_is_whole(snapshots, monkeypatch):
    with checkpoints.open_snapshots(snapshots) as writer:
        with monkeypatch.context() as full:
            full.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))
            with pytest.raises(checkpoints.NotWritten, match="an EMA snapshot cannot be written to .*it needs 0.00 GB"):
                checkpoints.save_snapshot(writer, snapshots, 12, averages(12))
        with pytest.raises(checkpoints.NotWritten, match="an EMA snapshot cannot be written to"), full_disk():
            checkpoints.save_snapshot(writer, snapshots, 12, averages(12))
            checkpoints.wait_for_snapshot(writer, snapshots)
        checkpoints.save_snapshot(writer, snapshots, 16, averages(16))
    assert checkpoints.steps_of(snapshots, checkpoints.SNAPSHOTS) == [4, 8, 16]


# ------------------------------------------------------------------------------------------ which are kept
def test_checkpoints_at_multiples_are_kept_and_others_only_while_new(tmp_path):
    with checkpoints.open_manager(tmp_path, checkpoints.Settings(newest=1, every_steps=4)) as manager:
        for step in range(1, 8):
            checkpoints.save(manager, step, state_at(step), Numbers())
    assert checkpoints.steps_of(tmp_path) == [4, 7]


def test_a_checkpoint_larger_than_the_disk_is_not_begun(run, monkeypatch):
    workdir, newest = run
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))
    with (
        pytest.raises(checkpoints.NotWritten, match=r"it needs 0.00 GB and 0.00 GB are free.*free space"),
        checkpoints.open_manager(workdir, TWO) as manager,
    ):
        checkpoints.save(manager, 15, state_at(15), Numbers())
    assert sorted(path.name for path in newest.parent.iterdir()) == ["10", "5"]


def test_one_that_does_not_fit_in_another_process_is_begun_in_none(run, snapshots, monkeypatch):
    """Otherwise those with room for it wait in the save for the one that skipped it."""
    workdir, newest = run
    asked = []
    monkeypatch.setattr(checkpoints.distributed, "agree", lambda name, mine, timeout_s: asked.append((name, mine)))
    less = r"are free here, but less where another process writes"
    with checkpoints.open_manager(workdir, TWO) as manager, pytest.raises(checkpoints.NotWritten, match=less):
        checkpoints.save(manager, 15, state_at(15), Numbers())
    with checkpoints.open_snapshots(snapshots) as writer, pytest.raises(checkpoints.NotWritten, match=less):
        checkpoints.save_snapshot(writer, snapshots, 20, averages(20))
    assert asked == [("room for a checkpoint", True)] * 2
    assert sorted(path.name for path in newest.parent.iterdir()) == ["10", "5"]
    assert 20 not in checkpoints.steps_of(snapshots, checkpoints.SNAPSHOTS)


def test_after_a_save_that_failed_the_next_one_is_whole(run):
    """As with config.train.full_disk = "continue"."""
    workdir, _ = run
    with checkpoints.open_manager(workdir, TWO) as manager:
        with pytest.raises(checkpoints.NotWritten), full_disk():
            checkpoints.save(manager, 15, state_at(15), Numbers())
            checkpoints.wait(manager)
        checkpoints.save(manager, 20, state_at(20), Numbers())
        checkpoints.wait(manager)
    equal(restored(workdir)[0], state_at(20))
    assert 15 not in checkpoints.steps_of(workdir)


def test_where_none_is_whole_it_is_one_line_and_nothing_is_moved(run):
    workdir, newest = run
    for folder in (newest, newest.with_name("5")):
        shutil.rmtree(folder / "state")
    for read in (lambda: restored(workdir), lambda: checkpoints.restore_ema(workdir, ABSTRACT["ema"])):
        with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(10: .*; 5: .*\); expected") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert checkpoints.steps_of(workdir) == [5, 10]
    for folder in (newest, newest.with_name("5")):
        (folder / "_CHECKPOINT_METADATA").write_text("{")
    with pytest.raises(UserError, match="can be read"):
        restored(workdir)


def test_a_checkpoint_that_cannot_be_written_is_one_line(run):
    workdir, _ = run
    refused = pytest.raises(UserError, match="a checkpoint cannot be written to .*; the same command")
    with refused as caught, checkpoints.open_manager(workdir, TWO) as manager, full_disk():
        checkpoints.save(manager, 15, state_at(15), Numbers())
        checkpoints.wait(manager)
    assert "\n" not in str(caught.value)
    equal(restored(workdir)[0], state_at(10))
    (workdir.parent / "checkpoints").touch()
    with pytest.raises(UserError, match="nothing can be written to --workdir=.*checkpoints .it is a file"):
        restored(workdir.parent)


def test_an_error_beside_a_save_leaves_that_save_whole(run):
    workdir, _ = run
    with pytest.raises(FloatingPointError), checkpoints.open_manager(workdir, TWO) as manager:
        checkpoints.save(manager, 15, state_at(15), Numbers())
        raise FloatingPointError
    equal(restored(workdir)[0], state_at(15))


def test_a_workdir_without_checkpoints_has_none(tmp_path):
    assert checkpoints.steps_of(tmp_path) == []
    with pytest.raises(UserError, match="no checkpoint in .*; train first"):
        checkpoints.restore_ema(tmp_path, ABSTRACT["ema"])


def test_a_checkpoint_that_is_deleted_while_they_are_read_is_not_called_damaged(run, monkeypatch):
    """As a training beside deletes old ones: gone when it is read, or on its way."""
    workdir, newest = run
    found = checkpoints.certificates(workdir)
    assert next(found)[0] == 5
    shutil.move(newest, workdir / "10")
    assert not list(found)
    shutil.move(workdir / "10", newest)
    (newest / "state" / "_METADATA").unlink()
    assert [step for step, error in checkpoints.certificates(workdir) if isinstance(error, Exception)] == [10]
    counts = iter((9, 8))
    monkeypatch.setattr(checkpoints, "_count_files", lambda folder: next(counts))
    assert [step for step, _ in checkpoints.certificates(workdir)] == [5]


# ----------------------------------------------------------------------------------------- names of folders
@pytest.mark.parametrize("name", ["bad_10", "old_3", "backup_of_7", "10_old", "010", "10.bak"])
def test_a_checkpoint_that_is_put_aside_by_a_name_is_none(name, run):
    workdir, newest = run
    newest.rename(newest.with_name(name))
    (newest.parent / "12").touch()
    assert checkpoints.steps_of(workdir) == [5]
    assert checkpoints.restore_ema(workdir, ABSTRACT["ema"])[1] == 5
    assert [step for step, _ in checkpoints.certificates(workdir)] == [5]
    with checkpoints.open_manager(workdir, TWO) as manager:
        equal(checkpoints.restore(manager, ABSTRACT, Numbers()), state_at(5))
        for step in (7, 10, 11):
            checkpoints.save(manager, step, state_at(step), Numbers())
    assert checkpoints.steps_of(workdir) == [10, 11]
    assert (newest.parent / name / "state").is_dir()


@pytest.mark.parametrize("name", ["lr[1e-4]", "run [final]/x?y", "a*b"])
def test_a_workdir_may_have_any_name_that_a_pattern_might(name, tmp_path):
    workdir, like = tmp_path / name, tmp_path / name.replace("*", "-")
    for folder in {like, workdir}:  # one that "a*b" would match as a pattern, too
        with checkpoints.open_manager(folder, TWO) as manager:
            checkpoints.save(manager, 5, state_at(5), Numbers())
    equal(restored(workdir)[0], state_at(5))
    assert isinstance(dict(checkpoints.certificates(workdir))[5], dict)
    with checkpoints.open_snapshots(workdir) as writer:
        checkpoints.save_snapshot(writer, workdir, 4, averages(4))
    assert isinstance(dict(checkpoints.certificates(workdir, checkpoints.SNAPSHOTS))[4], dict)
    params = {"a": np.arange(3.0)}
    checkpoints.write_params(workdir / "orbax", params, {})
    shutil.copytree(workdir / "orbax", tmp_path / "copy")  # for a program that reads with plain paths
    equal(ocp.StandardCheckpointer().restore(tmp_path / "copy"), params)


def test_a_backslash_which_tensorstore_takes_for_a_slash_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "a\\b"
    for write in (
        lambda: checkpoints.open_manager(folder, TWO).__enter__(),
        lambda: checkpoints.open_snapshots(folder).__enter__(),
        lambda: checkpoints.write_params(folder, {"a": np.arange(3.0)}, {}),
        lambda: next(checkpoints.certificates(folder)),
        lambda: fit(load_config("emoji_combined"), folder),
        lambda: export_folder("emoji-tiny", folder, orbax=True),
    ):
        with pytest.raises(UserError, match=r"a.b for checkpoints; expected a path without a backslash"):
            write()
    assert not list(tmp_path.iterdir())
