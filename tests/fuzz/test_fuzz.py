"""Whatever bytes are read, there is a value or one line of an error: a few hundred mutations of each kind of file.

The same targets run for minutes or days by `bash launch/fuzz.sh` (docs/hardening.md).
"""

import functools
import random
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import long
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, Target, probe

# Lines of one kind of segments, and weights that are no denoiser's, end in an error after they are read.
NOT_WHOLE = ("latents_line", "torch_zip", "torch_pickle", "torch_legacy", "safetensors")
SLOW_TO_READ = {"checkpoint": 20, "shard": 60, "studio": 150, "zarray": 60, "t5x": 100, "config_flags": 100}


@functools.cache
def target(name):
    return TARGETS[name](Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")))


@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_is_read_without_an_error(name):
    """Otherwise mutations of it would end at the first check."""
    assert None in [probe(target(name), seed) for seed in target(name).seeds] or name in NOT_WHOLE


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_give_a_value_or_one_line(name):
    made = target(name)

    @settings(max_examples=SLOW_TO_READ.get(name, 200), suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.integers(0, 2**32 - 1), st.binary(max_size=8))
    def run(seed, raw):
        rng = random.Random(seed)
        probe(made, raw if seed % 16 == 0 else mutate(rng.choice(made.seeds), rng, made.form))

    run()


class Over(Exception):
    """The time is used up."""


@pytest.mark.parametrize("busy", [False, True])
def test_a_long_run_ends_by_its_cpu_time(busy, tmp_path, monkeypatch):
    """On a machine that others use, ten minutes by the clock can be ten seconds of work."""

    def read(data):
        begun = time.monotonic()
        while time.monotonic() < begun + 0.05:
            sum(range(1000)) if busy else time.sleep(0.05)

    def end(self):
        raise Over

    monkeypatch.setitem(TARGETS, "waits", lambda folder: Target(seeds=[b"a"], read=read))
    monkeypatch.setattr(long.Fuzzer, "end", end)
    fuzzer = long.Fuzzer("waits", tmp_path, 0.5)
    read_all = 0
    try:
        for _ in range(2000 if busy else 20):  # waiting: a second by the clock, next to nothing of the processor
            fuzzer(b"a")
            read_all += 1
    except Over:
        pass
    assert (3 < read_all < 2000) if busy else read_all == 20
    assert not fuzzer.found
