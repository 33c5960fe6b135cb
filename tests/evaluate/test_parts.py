"""Measuring that may be stopped: what was stored is found again, and what is damaged is measured again."""

import json
import os
import shutil
import time

import numpy as np
import pytest

from kaleido_jax.evaluate.parts import IN_USE_SEC, draw_in_parts, read_stored, remove_samples, stored_report


@pytest.mark.parametrize("content", ["", '{"of": ', "[]", "[" * 100_000])
def test_a_damaged_report_is_told_and_measured_again(content, tmp_path, caplog):
    path = tmp_path / "emoji.json"
    path.write_text(content)
    assert stored_report(path, {"seed": 1}) is None
    [told] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"{path} is damaged (") and told.endswith("; it is measured again")


def test_a_report_of_the_same_is_found_and_of_another_not(tmp_path, caplog):
    path = tmp_path / "emoji.json"
    assert read_stored(path) is None and stored_report(path, {"seed": 1}) is None
    path.write_text(json.dumps({"of": {"seed": 1}, "accuracy": 0.5}))
    assert stored_report(path, {"seed": 1}) == read_stored(path) and stored_report(path, {"seed": 2}) is None
    assert not caplog.messages


def drawing(folder, drawn):
    def draw(rows):
        drawn.extend(rows)
        return {"index": np.array(rows)}

    return [part["index"].tolist() for part in draw_in_parts(5, 2, folder, draw)]


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:50], lambda whole: b"no archive"])
def test_a_damaged_part_is_told_and_drawn_again(damage, tmp_path, caplog):
    assert drawing(tmp_path, []) == [[0, 1], [2, 3], [4]]
    path = tmp_path / "000002.npz"
    path.write_bytes(damage(path.read_bytes()))
    for again in ([2, 3], []):
        drawn = []
        assert drawing(tmp_path, drawn) == [[0, 1], [2, 3], [4]] and drawn == again
    [told] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"{path} is damaged (") and told.endswith("; its samples are drawn again")


def test_a_run_survives_another_that_removes_the_samples(tmp_path, monkeypatch):
    save = np.savez

    def saved_and_removed(file, **arrays):
        save(file, **arrays)
        monkeypatch.setattr(os, "replace", lambda temporary, path: replace(temporary, path) or shutil.rmtree(folder))

    folder, replace = tmp_path / "samples", os.replace
    monkeypatch.setattr(np, "savez", saved_and_removed)
    assert drawing(folder, []) == [[0, 1], [2, 3], [4]] and not folder.exists()


def test_only_samples_that_nobody_draws_are_removed(tmp_path):
    root = tmp_path / "samples"
    folders = {name: root / name for name in ("own", "kept", "running", "left")}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / "000000.npz").touch()
    long_ago = time.time() - IN_USE_SEC - 1
    for name in ("kept", "left"):
        os.utime(folders[name], (long_ago, long_ago))
    remove_samples(root, [folders["own"]], kept=[folders["kept"]])
    assert {path.name for path in root.iterdir()} == {"kept", "running"}
    remove_samples(root, list(folders.values()))
    assert not root.exists()
    remove_samples(root, [folders["own"]])  # another run was faster
