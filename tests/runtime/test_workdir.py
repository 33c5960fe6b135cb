import subprocess
import sys

import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.runtime.workdir import CONFIG, locked, read_config

HOLDER = """
import sys, time
from pathlib import Path
from kaleido_jax.runtime.workdir import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_a_killed_one_lets_go(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training in .*; expected one run"), locked(tmp_path):
            raise AssertionError("not refused")
        first.kill()
    with locked(tmp_path), pytest.raises(UserError, match="another process"), locked(tmp_path):
        raise AssertionError("not refused")
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"[]", b"null", b"5", b'{"seed": ', b"\xff{}", b"[" * 100_000])
def test_a_config_that_is_no_object_is_one_line(content, tmp_path):
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(UserError, match="config.json is damaged") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_config_that_an_editor_on_windows_saved_is_read(tmp_path):
    (tmp_path / CONFIG).write_text('{"name": "x"}', encoding="utf-8-sig")
    assert read_config(tmp_path) == {"name": "x"}


def test_a_workdir_without_a_config_has_none(tmp_path):
    assert read_config(tmp_path) is None and read_config(tmp_path / "gone") is None
    (tmp_path / "file").touch()
    assert read_config(tmp_path / "file") is None
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(UserError, match=r"config.json is damaged \(Is a directory\)"):
        read_config(tmp_path)
