import os
from pathlib import Path

import pytest

from kaleido_jax.config.load import load_config
from kaleido_jax.errors import UserError
from kaleido_jax.runtime.files import make_folder, new_folder, read_json, refuse_lfs_pointer
from kaleido_jax.train.fit import fit


def nowhere(tmp_path):
    """Places where nobody, not even root, can make a folder."""
    (tmp_path / "file").touch()
    return (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("a" * 300), tmp_path / "nul\0", "/proc/x")


@pytest.mark.parametrize("number", range(5))
def test_where_nothing_can_be_written_is_one_line(number, tmp_path):
    path = type(tmp_path)(nowhere(tmp_path)[number])
    for make in (make_folder, lambda path, name: new_folder(path, name).__enter__()):
        with pytest.raises(UserError, match="--output=.*; expected a .*folder.*; name another") as caught:
            make(path, "--output")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_address_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("emoji_combined")
    for write in (
        lambda: make_folder(Path("gs://bucket/run"), "--workdir"),
        lambda: new_folder(Path("s3://bucket/run"), "--output").__enter__(),
        lambda: fit(config, "gs://bucket/run"),
        lambda: fit(config, Path("gs://bucket/run")),
    ):
        with pytest.raises(UserError, match="=(gs|s3):/.*; expected a path of this machine or of a mounted"):
            write()
    assert not list(tmp_path.iterdir())
    for local in ("a:b/c", "./gs", tmp_path / "gs:" / "b"):
        make_folder(Path(local), "--workdir")


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a" / "b", "--output") as folder:
        (folder / "half").touch()
        raise ZeroDivisionError
    assert not list((tmp_path / "a").iterdir())
    with new_folder(tmp_path / "a" / "b", "--output") as folder:
        (folder / "whole").touch()
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["whole"]
    with pytest.raises(UserError, match="exists; expected a new folder"), new_folder(tmp_path / "a", "--output"):
        raise AssertionError("not refused")


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    (tmp_path / f".new.{os.getpid()}").mkdir()  # in containers a process often has the number of an earlier one
    with new_folder(tmp_path / "new", "--output") as folder:
        (folder / "whole").touch()
    assert (tmp_path / "new" / "whole").exists()


def test_of_two_processes_the_first_writes_the_folder_and_the_second_is_told(tmp_path):
    with (
        pytest.raises(UserError, match="--output=.*new exists; expected a new folder; name another or remove it"),
        new_folder(tmp_path / "new", "--output") as second,
    ):
        (second / "file").write_text("second")
        with new_folder(tmp_path / "new", "--output") as first:
            (first / "file").write_text("first")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert (tmp_path / "new" / "file").read_text() == "first"


DAMAGED = [b"", b"[]", b"null", b'{"a": ', b"\0\5\x16\7\xff\xfe", b"[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED)
def test_json_that_is_damaged_or_of_somebody_else_is_one_line(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a.json is damaged \(.*\); expected a report; measure again") as caught:
        read_json(tmp_path / "a.json", "a report", "measure again")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json", "a report", "measure again")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_as_editors_save_it(encoding, tmp_path):
    (tmp_path / "a.json").write_text('{"a": "\u00e4"}', encoding=encoding)
    assert read_json(tmp_path / "a.json", "a report", "measure again") == {"a": "\u00e4"}


def test_a_pointer_of_git_lfs_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="model.safetensors is a git-LFS pointer; .*git lfs pull"):
        refuse_lfs_pointer(path)
    path.write_bytes(b"version of something else")
    refuse_lfs_pointer(path)
