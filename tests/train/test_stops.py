"""Ctrl-C and SIGTERM in training: the step in hand is the last one, and a second press leaves the last checkpoint."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import types

import pytest

from kaleido_jax.errors import Terminated, UserError
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.runtime import checkpoints
from kaleido_jax.train import loop, watching
from tests.conftest import REPO
from tests.tiny import single_net_config, tiny_batch

CONFIG = single_net_config(train__num_steps=60, train__checkpoint_every_steps=60, train__log_every_steps=60)


class Pressing:
    """Batches; sends this process a signal before the one of a given number."""

    def __init__(self, at, number):
        self.batch, self.at, self.number = 0, at, number

    def __next__(self):
        self.batch += 1
        if self.batch == self.at:
            os.kill(os.getpid(), self.number)
        return tiny_batch(CONFIG, seed=self.batch)

    def get_state(self):
        return {"batch": self.batch}

    def set_state(self, state):
        self.batch = state["batch"]

    def close(self):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_step_in_hand_is_the_last_one(tmp_path, number, error, capfd, monkeypatch):
    """Also of the device: of the steps before the last two, the results are on the host."""
    behind, add = [], loop.Watch.add

    def adding(self, step, batch, scalars):
        stop = add(self, step, batch, scalars)
        behind.append(len(self._pending))
        return stop

    monkeypatch.setattr(loop.Watch, "add", adding)
    with pytest.raises(error):
        loop.train(CONFIG, tmp_path, load_tokenizer("emoji", 64), Pressing(7, number))
    assert checkpoints.steps_of(tmp_path) == [7] and max(behind) == 2
    assert json.loads((tmp_path / "checkpoints" / "7" / "data" / "metadata").read_text()) == {"batch": 7}
    assert "stopping after this step, with a checkpoint" in capfd.readouterr().err


def test_a_signal_while_the_last_checkpoint_is_written_ends_the_program_too(tmp_path, monkeypatch, caplog):
    """Otherwise it would go on with samples and measures."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, num_steps=2))
    wait = loop._Run._wait

    def waiting(self):
        wait(self)
        if checkpoints.steps_of(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop._Run, "_wait", waiting)
    with pytest.raises(Terminated):
        loop.train(config, tmp_path, load_tokenizer("emoji", 64), Pressing(0, 0))
    assert checkpoints.steps_of(tmp_path) == [2]
    assert "stopped at step 2 by a signal; training is finished" in caplog.text


@pytest.mark.parametrize("signaled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_without_its_last_checkpoint_no_run_ends_well(tmp_path, monkeypatch, signaled):
    """Also where training goes on without others, and where the command would be run again after SIGTERM."""
    train = dataclasses.replace(CONFIG.train, num_steps=4, checkpoint_every_steps=1, full_disk="continue")
    checked, check = [], checkpoints._check_room

    def checking(folder, state):
        checked.append(folder)
        if len(checked) in (2, 3):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        check(folder, state)

    monkeypatch.setattr(checkpoints, "_check_room", checking)
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(train, num_steps=60 if signaled else 3))
    step_3 = r"the checkpoint of step 3, the last, is not written \(.*No space .*; .* goes on from step 1, the newest"
    with pytest.raises(UserError, match=step_3):
        loop.train(config, tmp_path, load_tokenizer("emoji", 64), Pressing(3 if signaled else 0, signal.SIGTERM))
    assert len(checked) == 3 and checkpoints.steps_of(tmp_path) == [1]


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), ValueError("a bug"), RuntimeError("a bug")])
def test_training_goes_on_without_a_checkpoint_for_a_full_disk_alone(tmp_path, error):
    train = dataclasses.replace(CONFIG.train, full_disk="continue")
    run = types.SimpleNamespace(train=train, ending=False, lost=None)
    for said in (OSError(errno.EDQUOT, "quota"), ValueError(f"Failed to write: {os.strerror(errno.ENOSPC)} [28]")):
        with loop._Run._on_full_disk(run), checkpoints._written_or_user_error(tmp_path):
            raise said
    with (
        pytest.raises(checkpoints.NotWritten),
        loop._Run._on_full_disk(run),
        checkpoints._written_or_user_error(tmp_path),
    ):
        raise error


TOGETHER = """
import os, signal, sys
from kaleido_jax.errors import Terminated
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.signals import StopSignal
from kaleido_jax.train import loop

distributed.start()
for numbers in ([], [signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]):
    with StopSignal() as stop:
        if numbers and distributed.process_index() < len(numbers):
            os.kill(os.getpid(), numbers[distributed.process_index()])
        end = type(loop._stop_of_all(stop)).__name__
    # In one piece and behind the line about the signal, which comes from another thread.
    sys.stdout.write(f"{[number.name for number in numbers]} {end}\\n")
"""


def test_all_processes_end_with_the_code_of_the_signal_that_one_got():
    command = ["bash", "launch/local.sh", "--processes=2", "--", sys.executable, "-c", TOGETHER]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=REPO, env=env, stdout=subprocess.PIPE, text=True, timeout=900)
    ends = {
        "[]": "NoneType",
        "['SIGINT']": "KeyboardInterrupt",
        "['SIGTERM']": "Terminated",
        "['SIGINT', 'SIGTERM']": "Terminated",
    }
    expected = [f"[{i}] {numbers} {end}" for i in range(2) for numbers, end in ends.items()]
    assert sorted(line for line in done.stdout.splitlines() if "[]" in line or "SIG" in line) == sorted(expected)


class Looking(watching.Looks):
    """Looks whose loss is the step."""

    def __init__(self, config, workdir, *_):
        self.config, self.workdir, self.batches = config, workdir, [{}]

    def __call__(self, step, ema, frozen):
        return {"held_out_loss": float(step)}


@pytest.mark.slow
def test_no_look_is_lost_by_a_stop(tmp_path, monkeypatch):
    """Neither by one at the step of the look, nor at the last step, nor by a kill in a step behind it."""
    monkeypatch.setattr(loop, "Looks", Looking)
    train = dataclasses.replace(CONFIG.train, num_steps=4)
    config = dataclasses.replace(CONFIG, train=train, eval=dataclasses.replace(CONFIG.eval, every_steps=2, grid=False))

    def looks():
        lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line]

    class Reading(Pressing):
        def __next__(self):
            seen.append(looks() if self.batch == 3 else None)
            return super().__next__()

    seen = []
    with pytest.raises(Terminated):
        loop.train(config, tmp_path, load_tokenizer("emoji", 64), Pressing(2, signal.SIGTERM))
    assert looks() == []
    with pytest.raises(Terminated):
        loop.train(config, tmp_path, load_tokenizer("emoji", 64), Reading(4, signal.SIGTERM))
    assert seen == [None, [(2, 2.0)]] and looks() == [(2, 2.0), (4, 4.0)]


def test_a_look_is_lacking_until_its_losses_and_its_grid_are_there(tmp_path):
    config = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, every_steps=2, grid=True))
    looks = Looking(config, tmp_path)
    grid = tmp_path / watching.FOLDER / "step_00000002.png"
    grid.parent.mkdir(parents=True)
    assert looks.lacks(2)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n{"step": 2, "held_out_loss": 1.0}\n{"step"')
    assert looks.lacks(2)
    grid.touch()
    assert not looks.lacks(2) and looks.lacks(4)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    assert looks.lacks(2)


TWICE = """
import os, signal, sys
from pathlib import Path
import tests.conftest
from kaleido_jax import main
from kaleido_jax.runtime import signals
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.train import loop
from tests.train.test_stops import CONFIG, Pressing

class Twice(Pressing):
    def __next__(self):
        if self.batch == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return super().__next__()

import dataclasses
signals.GRACE_SEC = 60  # a busy machine may need more than three seconds to the last line
config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, checkpoint_every_steps=5))
main.main = lambda argv: loop.train(config, Path(sys.argv[1]), load_tokenizer("emoji", 64), Twice(0, 0))
main.run()
"""


@pytest.mark.slow
def test_a_second_press_stops_without_a_checkpoint_and_leaves_the_last_one(tmp_path):
    command = [sys.executable, "-c", TWICE, tmp_path]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900)
    assert done.returncode == 130, done.stderr
    assert "stopped at once; the last checkpoint is whole" in done.stderr and "Traceback" not in done.stderr
    ((step, certificate),) = checkpoints.certificates(tmp_path)
    assert step == 5 and isinstance(certificate, dict)
