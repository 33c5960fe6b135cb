import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import figure3
from kaleido_jax.errors import UserError

REPO = Path(__file__).parents[2]
SMALL = (
    "train.num_steps=3",
    "train.log_every_steps=2",
    "train.batch_size=16",
    "sample.num_steps=4",
    "eval.num_samples=40",
)


def test_points_have_the_true_shares_and_spread():
    points, classes = figure3.draw_points(20_000, seed=0)
    np.testing.assert_allclose(figure3.mode_shares(points, classes), [figure3.SHARES] * 2, atol=0.01)
    near = points[(classes == 0) & (np.linalg.norm(points - figure3.MODES[0, 0], axis=1) < 0.3)]
    np.testing.assert_allclose(near.mean(0), figure3.MODES[0, 0], atol=0.01)
    np.testing.assert_allclose(near.std(0), figure3.SPREAD, rtol=0.05)


def test_mode_shares_count_each_class_by_its_own_modes():
    points = np.repeat(figure3.MODES[[0, 0, 0, 1], [0, 0, 1, 1]], 5, axis=0)
    classes = np.repeat([0, 0, 0, 1], 5)
    assert figure3.mode_shares(points, classes) == [[2 / 3, 1 / 3], [0.0, 1.0]]


@pytest.mark.slow
def test_its_command_leaves_figure_and_numbers_and_does_nothing_twice(tmp_path, monkeypatch, capsys):
    flags = [f"--workdir={tmp_path}", *(f"--config.{change}" for change in SMALL)]
    command = [sys.executable, "examples/figure3.py", *flags]
    first = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=3600)
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "eval" / "figure3.json").read_text())
    assert set(report["share_of_each_mode"]) == {"standard", "latent_augmented"}
    for by_gamma in report["share_of_each_mode"].values():
        assert list(by_gamma) == ["1", "2", "4", "8"]
        np.testing.assert_allclose(np.sum(list(by_gamma.values()), axis=-1), 1)
    assert (tmp_path / "config.json").stat().st_size > 0
    assert Image.open(tmp_path / "eval" / "figure3.png").size[0] > 1000
    monkeypatch.setattr(figure3, "_train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(figure3, "start_logging", lambda: None)
    figure3.main(flags)
    assert capsys.readouterr().out == first.stdout != ""


def test_its_command_refuses_flags_that_it_does_not_know():
    for argv in ([], ["--workdir=x", "--worker=3"]):
        with pytest.raises(UserError, match=r"expected --workdir=DIR"):
            figure3.main(argv)
