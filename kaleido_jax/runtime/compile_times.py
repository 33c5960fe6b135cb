"""How long compiling takes: told before it begins, as it was measured on this machine.

JAX compiles when a function is first called, in which time nothing moves. What it took is kept in compile_times.json in
the compilation cache's own folder, so it is forgotten together with the functions.
"""

import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kaleido_jax.runtime.distributed import is_main
from kaleido_jax.runtime.files import fingerprint, write_atomically

log = logging.getLogger(__name__)

FILE = "compile_times.json"
MOST_ENTRIES = 1_000
SHORTEST_SEC = 0.5  # what takes less is not worth a line
# JAX's names of the parts of compiling; the last one happens only for functions that are in the cache.
_PARTS = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")
_RETRIEVED = "cache_retrieval_time_sec"

_done: set[str] = set()  # keys of what this process has compiled
_measuring: list["_Measured"] = []
_listening = False


@contextmanager
def compiling(what: str, *depends_on: object) -> Iterator[None]:
    """Says that `what` is compiled and about how long that takes, once something is, and measures it.

    Args:
      what: of the line, e.g. "the training step".
      *depends_on: what the compiled functions depend on, as values whose str() tells them apart.
    """
    key = _key(what, depends_on)
    if key in _done:
        yield
        return
    _listen()
    measured = _Measured(f"compiling {what}, {_about(_read().get(key, {}))}")
    _measuring.append(measured)
    try:
        yield
    finally:
        _measuring.remove(measured)
    _done.add(key)
    if (seconds := measured.seconds()) >= SHORTEST_SEC:
        log.info("compiled %s in %.0f s", what, max(seconds, 1))
        _keep(key, measured.kind, round(seconds, 1))


def expected(what: str, *depends_on: object) -> str:
    """What `compiling` would say of the time, e.g. "about 20 s (as the last time here)"."""
    return _about(_read().get(_key(what, depends_on), {}))


def _key(what: str, depends_on: tuple[object, ...]) -> str:
    return fingerprint(importlib.metadata.version("jaxlib"), what, *(f"\n{one}" for one in depends_on))


def _about(known: dict[str, float]) -> str:
    if "cached" in known:
        return f"about {max(known['cached'], 1):.0f} s (as the last time here, with the compilation cache)"
    if "fresh" in known:
        return f"at most about {max(known['fresh'], 1):.0f} s (as it took without the compilation cache)"
    return (
        "for the first time here: about a minute for a model of the quickstart's size on a CPU, longer for larger ones"
    )


class _Measured:
    """The parts of compiling in some time, as intervals that may lie inside each other."""

    def __init__(self, news: str) -> None:
        self._news, self._intervals = news, []
        self._compiled = self._retrieved = 0

    def add(self, event: str, duration_sec: float) -> None:
        """Takes one of JAX's events, which come when a part has ended."""
        name = event.rpartition("/")[2]
        self._retrieved += name == _RETRIEVED
        if name in _PARTS:
            if not self._intervals:
                log.info("%s", self._news)
            self._compiled += name == _PARTS[-1]
            now = time.monotonic()
            self._intervals.append((now - duration_sec, now))

    @property
    def kind(self) -> str:
        """Whether most functions were in the compilation cache."""
        return "cached" if 2 * self._retrieved >= self._compiled > 0 else "fresh"

    def seconds(self) -> float:
        """The time in which anything was compiled."""
        total, end = 0.0, float("-inf")
        for start, stop in sorted(self._intervals):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total


def _listen() -> None:
    global _listening
    if _listening:
        return
    import jax

    def hear(event: str, duration_sec: float, **_: Any) -> None:
        for measured in _measuring:
            measured.add(event, duration_sec)

    jax.monitoring.register_event_duration_secs_listener(hear)
    _listening = True


# ------------------------------------------------------------------------------------------------ file
def _path() -> Path | None:
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(folder) / FILE if folder else None


def _read() -> dict[str, dict[str, float]]:
    """What is known; {} where the file is missing or damaged, since it only spares a guess."""
    path = _path()
    try:
        known = json.loads(path.read_text("utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: times for key, times in known.items() if _are_times(times)} if isinstance(known, dict) else {}


def _are_times(times: Any) -> bool:
    return isinstance(times, dict) and all(type(value) in (int, float) for value in times.values())


def _keep(key: str, kind: str, seconds: float) -> None:
    path, known = _path(), _read()
    if path is None or not is_main():
        return
    known[key] = known.pop(key, {}) | {kind: seconds}  # the newest last
    newest = dict(list(known.items())[-MOST_ENTRIES:])
    try:
        write_atomically(path, json.dumps(newest, indent=1).encode())
    except OSError as error:
        log.info("%s cannot be written (%s), so no time of compiling is kept", path, error.strerror)
