"""Measuring that may be stopped: what was stored is found again, and what is damaged is measured again."""

import json

import pytest

from kaleido_jax.evaluate.parts import read_stored, stored_report


@pytest.mark.parametrize("content", ["", '{"of": ', "[]", "[" * 100_000])
def test_a_damaged_report_is_told_and_measured_again(content, tmp_path, caplog):
    path = tmp_path / "emoji.json"
    path.write_text(content)
    assert stored_report(path, {"seed": 1}) is None
    [told] = caplog.messages
    assert told.startswith(f"{path} is damaged (") and told.endswith("; it is measured again")


def test_a_report_of_the_same_is_found_and_of_another_not(tmp_path, caplog):
    path = tmp_path / "emoji.json"
    assert read_stored(path) is None and stored_report(path, {"seed": 1}) is None
    path.write_text(json.dumps({"of": {"seed": 1}, "accuracy": 0.5}))
    assert stored_report(path, {"seed": 1}) == read_stored(path) and stored_report(path, {"seed": 2}) is None
    assert not caplog.messages
