"""A training under faults ends with the parameters of an undisturbed one, bit for bit.

The faults: slow worker processes, SIGTERM, SIGKILL while a checkpoint is written, a disk that is full while one is
written (train.full_disk="continue"). Both trainings read the same records, some of which are damaged.
KALEIDO_SOAK_STEPS sets the number of steps (launch/soak.sh: 2,000).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from kaleido_jax.annotate.prepare import prepare_records
from kaleido_jax.config.codec import open_codec
from kaleido_jax.data import loader
from kaleido_jax.runtime import checkpoints
from kaleido_jax.train import loop
from kaleido_jax.train.fit import fit
from tests.conftest import REPO
from tests.full_disk import full_disk
from tests.tiny import single_net_config

STEPS = int(os.environ.get("KALEIDO_SOAK_STEPS", 120))
EVERY = max(STEPS // 20, 2)  # steps between checkpoints
CONFIG = single_net_config(
    data__num_workers=2,
    data__verify="size",
    data__max_bad_share=0.5,
    train__num_steps=STEPS,
    train__checkpoint_every_steps=EVERY,
    train__log_every_steps=EVERY,
    train__full_disk="continue",
)
# Step -> signal that the process sends itself once; SIGKILL right after a checkpoint is begun.
STOPS = {STEPS // 6: signal.SIGTERM, STEPS // 2 // EVERY * EVERY: signal.SIGKILL, STEPS * 4 // 5: signal.SIGTERM}
FULL = [step for step in range(EVERY, STEPS, EVERY) if step // EVERY % 4 == 1]  # checkpoints that the disk is full for


class SlowReader(loader._Reader):
    """Now and then as slow as a network disk."""

    def __call__(self, number):
        if random.random() < 0.002:
            time.sleep(0.3)
        return super().__call__(number)


def disturbed(workdir):
    """Trains under faults; the exit code is that of the command line."""
    from kaleido_jax import main

    loader._Reader = SlowReader
    save, add = checkpoints.save, loop.Watch.add

    def saving(manager, step, state, place):
        if step in FULL:
            with full_disk():
                save(manager, step, state, place)
                checkpoints.wait(manager)
        save(manager, step, state, place)

    def adding(self, step, batch, scalars):
        marker = workdir / f"stopped_{step}"
        before = workdir / f"stopped_{step - 1}"
        if STOPS.get(step) == signal.SIGTERM and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        if STOPS.get(step - 1) == signal.SIGKILL and not before.exists():
            before.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return add(self, step, batch, scalars)

    checkpoints.save, loop.Watch.add = saving, adding
    main.main = lambda argv: (main.start_logging(), fit(CONFIG, workdir))
    main.run()


def parameters(workdir):
    folder = (workdir / "checkpoints" / str(STEPS)).absolute()
    return ocp.PyTreeCheckpointer().restore(folder / "state"), json.loads((folder / "data" / "metadata").read_text())


def damage(folder):
    """Some records of each shard, whose size stays."""
    for shard in folder.glob("train/*.array_record*"):
        content = bytearray(shard.read_bytes())
        for part in (3, 5):
            place = len(content) * part // 7
            content[place : place + 40] = bytes(40)
        shard.write_bytes(content)


@pytest.mark.slow
def test_faults_leave_no_trace_in_the_parameters(tmp_path):
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    prepare_records(CONFIG, calm, open_codec(CONFIG))
    damage(calm / "records")
    shutil.copytree(calm, wild)
    fit(CONFIG, calm)
    source = "import sys, tests.conftest\nfrom pathlib import Path\nfrom tests.train import test_soak as soak\n"
    command, codes, said = [sys.executable, "-c", f"{source}soak.disturbed(Path(sys.argv[1]))", wild], [], ""
    while not codes or codes[-1]:
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=3600)
        codes, said = [*codes, done.returncode], said + done.stderr
        # Of a checkpoint that a full disk cuts short, tensorstore itself prints a traceback ("Event loop is closed").
        assert len(codes) <= len(STOPS) + 1 and done.returncode in (0, 75, -signal.SIGKILL), done.stderr[-3000:]
    assert codes == [75, -signal.SIGKILL, 75, 0]
    assert "training goes on as config.train.full_disk says" in said
    assert "the next record of its length stands in for it" in said  # the damaged ones
    (state, place), (expected, expected_place) = (parameters(folder) for folder in (wild, calm))
    import jax

    assert place == expected_place
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    reported, usual = (
        [json.loads(line)["step"] for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (wild, calm)
    )
    # Each once and in order; a training that is asked to stop reports there, too.
    assert reported == sorted(set(reported)) and set(reported) >= set(usual)
    stops = {step + later for step, number in STOPS.items() if number == signal.SIGTERM for later in (0, 1, 2)}
    assert set(reported) - set(usual) <= stops
