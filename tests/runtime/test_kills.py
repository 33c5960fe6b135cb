"""A process that is killed while it saves: whatever the moment, the newest checkpoint that is there is whole."""

import random
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.runtime import checkpoints

SAVER = """
import sys
from pathlib import Path
from kaleido_jax.runtime import checkpoints
from tests.runtime.test_kills import Place, abstract, state_at

workdir = Path(sys.argv[1])
with checkpoints.open_manager(workdir, checkpoints.Settings(2)) as manager:
    place, step = Place(), 0
    if checkpoints.steps_of(workdir):
        step = int(checkpoints.restore(manager, abstract(), place)["step"])
        assert place.batch == step
    print("from", step, flush=True)
    while True:
        step += 1
        place.batch = step
        checkpoints.save(manager, step, state_at(step), place)
        print(step, flush=True)
"""


class Place:
    batch = 0

    def get_state(self):
        return {"batch": self.batch}

    def set_state(self, state):
        self.batch = state["batch"]


def state_at(step):
    return {"step": jnp.int32(step), "params": {str(i): jnp.full((300, 100), step + i, jnp.float32) for i in range(5)}}


def abstract():
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), state_at(0))


@pytest.mark.slow
def test_twenty_kills_while_saving_lose_nothing_that_was_written(tmp_path, caplog):
    rng, before = random.Random(0), 0
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert int(process.stdout.readline().split()[1]) >= before
        for _ in range(3):  # of which two are whole; on a busy machine a time alone may be too short for one
            process.stdout.readline()
        try:
            process.wait(rng.uniform(0.05, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        with checkpoints.open_manager(tmp_path, checkpoints.Settings(2)) as manager:
            if not checkpoints.steps_of(tmp_path):
                continue
            place = Place()
            state = checkpoints.restore(manager, abstract(), place)
        step = int(state["step"])
        jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
        assert place.batch == step == max(checkpoints.steps_of(tmp_path)) and step >= before
        before = step
    assert before > 20
    assert not [record for record in caplog.records if record.name == checkpoints.__name__]  # nothing was damaged
