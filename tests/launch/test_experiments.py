"""The experiments' steps and their order; what they run is tested where it belongs."""

import importlib.util
import shlex
import sys
import threading
import time
from pathlib import Path

import pytest

from kaleido_jax.config.load import load_config
from kaleido_jax.main import parse_flags, split_verb
from kaleido_jax.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def experiments():
    spec = importlib.util.spec_from_file_location("experiments", ROOT / "launch/experiments.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def steps_of(experiments):
    return {name: make() for name, make in experiments.EXPERIMENTS.items()}


def test_every_step_needs_earlier_steps_alone_and_is_a_command_that_is_understood(experiments, monkeypatch):
    monkeypatch.chdir(ROOT)
    for steps in steps_of(experiments).values():
        seen = set()
        for step in steps:
            assert {*step.after} <= seen and step.name not in seen
            seen.add(step.name)
            words = shlex.split(step.command)
            if words[1:3] != ["-m", "kaleido_jax.main"]:
                assert Path(words[1]).exists()
                continue
            verb, flags = split_verb(words[3:])
            parse_flags(VERBS[verb], flags)
        assert steps[-1].name.endswith(" page")


def test_trainings_read_the_records_that_they_wait_for_and_write_where_the_sweep_looks(experiments, monkeypatch):
    monkeypatch.chdir(ROOT)
    for steps in steps_of(experiments).values():
        annotated = {step.name for step in steps if " annotate " in step.command}
        trained = [step for step in steps if {*step.after} & annotated]
        for step in trained:
            words = shlex.split(step.command)
            config = load_config(words[3].partition("=")[2])
            assert (config.data.records,) == step.after and words[4] == f"--workdir={step.name}"
        swept = {name for step in steps if "--part=" in step.command for name in step.after if " " not in name}
        assert swept == {step.name for step in trained}


def test_steps_run_side_by_side_when_what_they_need_is_there(experiments, tmp_path):
    def step(name, *after, beside="", code=0):
        """A step that writes a file, once the one that is to run beside it has written its own."""
        text = f"import pathlib, time; root = pathlib.Path({str(tmp_path)!r}); other = root / {beside!r}; "
        text += "[time.sleep(0.01) for _ in range(6000) if not other.exists()]; other.stat(); "
        text += f"(root / {name!r}).touch()"
        command = f"python -c {shlex.quote(f'{text}; raise SystemExit({code})')}"
        return experiments.Step(name=name, command=command, after=after)

    steps = [
        step("slow", beside="quick"),
        step("quick"),
        step("bad", code=3),
        step("after both", "slow", "quick"),
        step("lost", "bad"),
        step("lost too", "lost"),
    ]
    runner = experiments.Runner(steps, tmp_path, jobs=3)
    assert runner.run() == ["bad"] and runner.done == {"slow", "quick", "after both"}
    made = {path.name: path.stat().st_mtime for path in tmp_path.iterdir() if path.suffix != ".log"}
    assert {*made} == {"slow", "quick", "bad", "after both"} and made["after both"] >= made["slow"] >= made["quick"]


@pytest.mark.parametrize(("experiment", "root"), [("emoji", "runs/claim/"), ("emoji_cpu", "runs/claim_cpu/")])
def test_the_models_that_are_compared_come_before_the_others(experiments, experiment, root):
    names = [step.name.removeprefix(root) for step in steps_of(experiments)[experiment]]
    trained = [name for name in names if name[-1].isdecimal() and "records" not in name and " " not in name]
    assert [name.rpartition("-")[2] for name in trained[:6]] == ["0", "0", "1", "1", "2", "2"]
    assert {name.partition("-")[0] for name in trained[:6]} == {"baseline", "combined"} and len(trained) == 11


def test_nothing_more_is_started_after_a_stop(experiments, tmp_path):
    begun, stopped = tmp_path / "begun", tmp_path / "stopped"
    text = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); stopped = pathlib.Path({str(stopped)!r}); "
    text += "[time.sleep(0.01) for _ in range(6000) if not stopped.exists()]"
    command = f"python -c {shlex.quote(text)}"
    runner = experiments.Runner([experiments.Step(name=name, command=command) for name in "abc"], tmp_path, jobs=1)

    def stop():
        while not begun.exists():
            time.sleep(0.01)
        runner.stop()
        stopped.touch()

    threading.Thread(target=stop, daemon=True).start()
    assert runner.run() == [] and runner.done == {"a"}


def test_a_step_that_cannot_be_started_has_failed_and_the_others_go_on(experiments, tmp_path, capsys):
    (tmp_path / "a.log").mkdir()
    command = f"python -c {shlex.quote('')}"
    steps = [experiments.Step(name=name, command=command, after=after) for name, after in (("a", ()), ("b", ("a",)))]
    runner = experiments.Runner([*steps, experiments.Step(name="c", command=command)], tmp_path, jobs=1)
    running = threading.Thread(target=runner.run, daemon=True)
    running.start()
    running.join(timeout=120)
    assert not running.is_alive() and runner.failed == ["a"] and runner.done == {"c"}
    assert "a: [Errno" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "said"), [("--sweep.chunck=3", "chunk"), ("--sweep.chunk", "sweep.chunk"), ("--jobs=0", "1 or more")]
)
def test_bad_flags_are_refused_before_the_first_step(experiments, flag, said, capsys):
    with pytest.raises(SystemExit):
        experiments.main(["emoji", flag])
    assert said in capsys.readouterr().err
