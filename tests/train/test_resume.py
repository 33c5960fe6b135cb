"""Runs that are killed or stopped, and go on as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from kaleido_jax.config.codec import open_codec
from kaleido_jax.runtime import checkpoints
from kaleido_jax.train.fit import fit, make_batches
from tests.tiny import single_net_config

EVERYTHING = {
    "data__length_buckets": (32, 40),
    "data__num_workers": 2,
    "train__accumulate": 2,
    "train__ema_every_steps": 2,
    "train__ema_profiles": (0.05, 0.1),
    "train__ema_snapshot_every_steps": 15,
    "train__num_steps": 40,
    "train__checkpoint_every_steps": 20,
    "train__keep_checkpoints": 2,
    "train__log_every_steps": 5,
    "model__precision": "float16",
}
CONFIG = single_net_config(**EVERYTHING)
RUN = """
import sys, time
from kaleido_jax.main import run
from kaleido_jax.train.fit import fit
from kaleido_jax.train import loop
from kaleido_jax.verbs import train
from tests.tiny import single_net_config
import kaleido_jax.main as main

held, add = {held}, loop.Watch.add
def holding(self, step, batch, scalars):
    while step == held:
        time.sleep(1)
    return add(self, step, batch, scalars)

loop.Watch.add = holding
config = single_net_config(**{changes})
main.main = lambda argv: (print("started", flush=True), fit(config, {workdir!r}))
run()
"""


def start(workdir, held=None, **changes):
    """Starts a training, which waits in the step `held` until it is killed."""
    source = RUN.format(changes=EVERYTHING | changes, workdir=str(workdir), held=held)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", source], text=True, **pipes)


def stored(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    state = ocp.PyTreeCheckpointer().restore((folder / "state").absolute())
    return state, json.loads((folder / "data" / "metadata").read_text())


def snapshot(workdir, step):
    return ocp.PyTreeCheckpointer().restore((workdir / "ema_snapshots" / str(step) / "state").absolute())


def wait_for(condition, process=None):
    end = time.monotonic() + 600
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A workdir with the checkpoints of 20 and 40 steps, made in one go."""
    folder = tmp_path_factory.mktemp("straight")
    fit(CONFIG, folder)
    return folder


@pytest.mark.slow
def test_a_killed_run_ends_bit_identical(straight, tmp_path):
    """With buckets, two worker processes, accumulation, a loss scale, an EMA of every second step and snapshots."""
    shutil.copytree(straight / "records", tmp_path / "records")
    process = start(tmp_path, held=32)
    wait_for((tmp_path / "checkpoints" / "20").exists, process)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    wait_for(lambda: not any(alive(worker) for worker in workers))  # a killed process cannot end them
    assert not (tmp_path / "checkpoints" / "40").exists()
    again = start(tmp_path)
    assert again.wait(900) == 0, again.stderr.read()
    for step in (20, 40):
        (state, place), (expected, expected_place) = (stored(folder, step) for folder in (tmp_path, straight))
        jax_tree_equal(state, expected)
        assert place == expected_place == {"batch": step, "batch_size": 8, "records": CONFIG.data.emoji.num_train}
    assert {"params", "ema", "profiles", "opt_state", "guard", "step"} == set(state)
    assert checkpoints.steps_of(tmp_path, checkpoints.SNAPSHOTS) == [15, 30, 40]
    for step in (15, 30, 40):
        jax_tree_equal(*(snapshot(folder, step) for folder in (tmp_path, straight)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 41, 5))


def jax_tree_equal(found, expected):
    import jax

    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_the_code_to_requeue_on(straight, tmp_path):
    shutil.copytree(straight / "records", tmp_path / "records")
    process = start(tmp_path, train__num_steps=100_000, train__checkpoint_every_steps=100_000)
    metrics = tmp_path / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 75
    error = process.stderr.read()
    assert "stopping after this step" in error and "Traceback" not in error
    [step] = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert stored(tmp_path, step)[1]["batch"] == step

    # While it starts, restores and compiles: nothing new to save, the same code.
    for delay in (0, 1, 4):
        process = start(tmp_path, train__num_steps=100_000, train__checkpoint_every_steps=100_000)
        assert process.stdout.readline() == "started\n"
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 75
        assert "Traceback" not in process.stderr.read()
        steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
        assert steps and steps[-1] >= step and all(name.isdigit() for name in os.listdir(tmp_path / "checkpoints"))


@pytest.mark.slow
def test_the_order_of_samples_is_that_of_any_number_of_processes(straight):
    codec = open_codec(CONFIG)
    from kaleido_jax.annotate.prepare import prepare_records

    whole = make_batches(CONFIG, prepare_records(CONFIG, straight, codec), codec)
    ids = [next(whole)["sample_id"] for _ in range(6)]
    whole.close()
    state = {"batch": 3, "batch_size": 8}  # as one process has saved it; two go on
    from kaleido_jax.data.loader import make_loader

    shares = []
    for rows in (slice(0, 4), slice(4, 8)):
        share = make_loader(
            prepare_records(CONFIG, straight, codec),
            codec=codec,
            batch_size=8,
            max_caption_tokens=8,
            max_latents_tokens=64,
            length_buckets=CONFIG.data.length_buckets,
            seed=CONFIG.seed,
            rows=rows,
        )
        share.set_state(state)
        shares.append([next(share)["sample_id"] for _ in range(3)])
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), ids[3:])
