"""The benchmark of the job runs: its annotator has what the job asks of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_benchmark_of_the_job_writes_its_table(tmp_path):
    command = [sys.executable, REPO / "benchmarks/annotate.py", "--images=20", "--rounds=1", f"--out={tmp_path}/a.md"]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| the job, annotators that do nothing |" in (tmp_path / "a.md").read_text()
