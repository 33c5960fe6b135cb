"""The commands of README.md run as they stand, in a folder that looks like a clean clone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
BLOCK = re.compile(r"(?P<long><!-- long -->\n\s*)?^```bash\n(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = list(BLOCK.finditer((REPO / "README.md").read_text()))
MADE_BY_RUNS = {"runs", ".venv", ".git"}


def folder_like_a_clone(folder):
    """Links to everything in the repository but what runs have made."""
    for entry in REPO.iterdir():
        if entry.name not in MADE_BY_RUNS:
            (folder / entry.name).symlink_to(entry)
    return folder


def test_both_first_commands_are_on_the_page():
    message = [block["commands"].strip() for block in BLOCKS]
    assert "bash launch/quickstart.sh" in message
    assert "bash launch/test.sh" in message


@pytest.mark.slow
def test_commands_run_in_the_order_of_the_page(tmp_path):
    folder = folder_like_a_clone(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for commands in [block["commands"] for block in BLOCKS if not block["long"]]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=3600,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_linked_files_exist():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (REPO / "README.md").read_text())
    missing = [link for link in links if not (REPO / link).exists()]
    assert [link for link in missing if not link.startswith("docs/images/")] == []
