"""What compiling takes is told before, as it was measured on this machine."""

import json
import logging

import jax
import jax.numpy as jnp
import pytest

from kaleido_jax.runtime import compile_times
from kaleido_jax.runtime.compile_times import FILE, compiling, expected


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "kaleido_jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile_times, "_done", set())
    monkeypatch.setattr(compile_times, "SHORTEST_SEC", 1e-9)


def compile_something():
    jax.jit(lambda x: jnp.tanh(x) @ x + len(str(object())))(jnp.ones((8, 8)))


def test_the_second_process_is_told_what_the_first_one_took(tmp_path, caplog, monkeypatch):
    with compiling("a step", "of 8 rows"):
        assert "compiling" not in caplog.text  # nothing is yet
        compile_something()
    assert "compiling a step, for the first time here" in caplog.text and "compiled a step in" in caplog.text
    (times,) = json.loads((tmp_path / FILE).read_text()).values()
    assert set(times) <= {"fresh", "cached"} and 0 <= min(times.values()) < 60  # tenths of a second
    caplog.clear()
    with compiling("a step", "of 8 rows"):  # in this process it is compiled
        compile_something()
    assert "compiling" not in caplog.text
    monkeypatch.setattr(compile_times, "_done", set())  # another process
    (tmp_path / FILE).write_text(
        json.dumps({key: {"fresh": 83.2} for key in json.loads((tmp_path / FILE).read_text())})
    )
    assert expected("a step", "of 8 rows") == "at most about 83 s (as it took without the compilation cache)"
    assert "first time" in expected("a step", "of 16 rows")
    with compiling("a step", "of 8 rows"):
        compile_something()
    assert "compiling a step, at most about 83 s" in caplog.text


def test_nothing_is_said_where_nothing_is_compiled(tmp_path, caplog):
    with compiling("a report"):
        pass
    assert not caplog.text


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"cached": "x"}}', "\x00" * 10])
def test_a_damaged_file_only_costs_the_estimate(tmp_path, content, caplog):
    (tmp_path / FILE).write_text(content)
    with compiling("a step"):
        compile_something()
    assert "for the first time here" in caplog.text
    assert all(set(times) <= {"fresh", "cached"} for times in json.loads((tmp_path / FILE).read_text()).values())


def test_without_a_cache_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    with compiling("a step"):
        compile_something()
    assert not list(tmp_path.glob(FILE))


def test_parts_inside_each_other_count_once(monkeypatch):
    measured = compile_times._Measured("")
    now = [10.0]
    monkeypatch.setattr(compile_times.time, "monotonic", lambda: now[0])
    measured.add("/jax/core/compile/jaxpr_trace_duration", 1.0)  # 9 to 10
    now[0] = 11.0
    measured.add("/jax/core/compile/jaxpr_trace_duration", 3.0)  # 8 to 11, around it
    now[0] = 20.0
    measured.add("/jax/core/compile/backend_compile_duration", 5.0)  # 15 to 20
    measured.add("/jax/some/other_duration", 100.0)
    assert measured.seconds() == pytest.approx(8.0) and measured.kind == "fresh"
    measured.add("/jax/compilation_cache/cache_retrieval_time_sec", 0.1)
    assert measured.kind == "cached"
