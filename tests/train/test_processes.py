"""One run in several processes, from an empty folder to samples and measures, and on in another number of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.tiny import small_nest_config

REPO = Path(__file__).parent.parent.parent
CHANGES = {
    "data__length_buckets": (40,),
    "train__num_steps": 6,
    "train__checkpoint_every_steps": 2,
    "train__keep_checkpoints": 4,
    "train__log_every_steps": 1,
    "train__ema_decay": 0.5,
    "train__ema_profiles": (0.05, 0.1),
    "eval__protocol": "emoji",
    "sample__captions": ("fruit",),
    "mesh__data": 2,
    "mesh__fsdp": 2,
    "mesh__tensor": 2,
}


def run(config, workdir, processes, steps=6):
    """Ends at `steps`; returns the lines of all processes."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "PYTHONPATH": str(REPO)}
    launch = ["bash", "launch/local.sh", f"--processes={processes}", f"--devices={8 // processes}"]
    command = [*launch, f"--config={config}", f"--workdir={workdir}", f"--config.train.num_steps={steps}"]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def snapshot(workdir, step):
    """On the host, since its devices are not here."""
    folder, checkpointer = (workdir / "ema_snapshots" / str(step) / "state").absolute(), ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(folder).item_metadata.tree
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=on_host))


@pytest.mark.slow
def test_two_processes_train_sample_and_measure_and_one_goes_on(tmp_path):
    (tmp_path / "config.json").write_text(small_nest_config(**CHANGES).to_json())
    moving, alone = tmp_path / "moving", tmp_path / "alone"
    run(tmp_path / "config.json", moving, processes=2, steps=2)  # from an empty folder: it makes the records too
    run(tmp_path / "config.json", moving, processes=1, steps=4)
    text = run(tmp_path / "config.json", moving, processes=2)
    assert text.count("eval/emoji.json:") == 1 and "resumed from step 4" in text
    run(tmp_path / "config.json", alone, processes=1)
    np.testing.assert_allclose(losses(moving), losses(alone), rtol=1e-4)
    assert len(losses(moving)) == 6
    places = [json.loads((w / "checkpoints" / "6" / "data" / "metadata").read_text()) for w in (moving, alone)]
    number = small_nest_config(**CHANGES).data.emoji.num_train
    assert places == [{"batch": 6, "batch_size": 8, "records": number}] * 2
    for step in (2, 4, 6):  # the first and the last of two processes, each of which wrote its own parts
        found, expected = (snapshot(workdir, step) for workdir in (moving, alone))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), found, expected)
    names = [
        sorted(path.name for path in (w / "samples" / "step_00000006" / "gamma2_seed0").iterdir())
        for w in (moving, alone)
    ]
    assert names[0] == names[1] and "grid.png" in names[0]
    reports = [json.loads((w / "eval" / "emoji.json").read_text()) for w in (moving, alone)]
    assert reports[0].keys() == reports[1].keys()
