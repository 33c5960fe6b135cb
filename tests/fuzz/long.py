"""One fuzzer for long: python -m tests.fuzz.long --target=NAME --seconds=600 --out=DIR (see launch/fuzz.sh).

With atheris installed, inputs that reach new code are kept and mutated further (libFuzzer); without it, mutations of
the seeds alone. What a target raises that it must not is written to DIR/NAME-<number>.bytes once for each place; the
last line says how many inputs were read in how long. The exit code is 1 if anything was found.

Seconds are those of CPU time from the first input on, all threads together: on a busy machine the clock says little.

An input also counts as found if it takes more than LONGEST_SEC of CPU time, or raises the process's memory by
LARGEST_BYTES.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

LONGEST_SEC, LARGEST_BYTES = 10.0, 2**28
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


class Fuzzer:
    """Reads inputs by one target and keeps what is found."""

    def __init__(self, name: str, out: Path, seconds: float) -> None:
        from tests.fuzz.targets import TARGETS

        self.name, self.out, self.seconds = name, out, seconds
        self.target = TARGETS[name](Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")))
        self.runs, self.longest, self.found = 0, 0.0, {}
        self.began, self.began_cpu = time.monotonic(), time.process_time()

    def __call__(self, data: bytes) -> None:
        """Reads one input; ends the process when its CPU time is used up."""
        from tests.fuzz.targets import probe

        before, begun = _peak_bytes(), time.process_time()
        if begun - self.began_cpu > self.seconds:
            self.end()
        self.runs += 1
        try:
            with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
                probe(self.target, data)
        except Exception as error:  # noqa: BLE001  that is what is looked for
            self._keep(data, f"{type(error).__name__} at {_where(error)}", "".join(traceback.format_exception(error)))
        took = time.process_time() - begun  # not by the clock: other programs may take the processor
        self.longest = max(self.longest, took)
        if took > LONGEST_SEC:
            self._keep(data, "slow", f"{took:.1f} s")
        if (grown := _peak_bytes() - before) > LARGEST_BYTES:
            self._keep(data, "memory", f"{grown / 2**20:.0f} MiB")

    def _keep(self, data: bytes, what: str, text: str) -> None:
        if what in self.found:
            self.found[what] += 1
            return
        self.found[what] = 1
        stem = f"{self.name}-{len(self.found)}"
        (self.out / f"{stem}.bytes").write_bytes(data)
        (self.out / f"{stem}.txt").write_text(f"{what}\n{text}\n", errors="backslashreplace")
        sys.stdout.write(f"{self.name}: found {what}: {text.strip().splitlines()[-1][:200]}\n")
        sys.stdout.flush()

    def end(self) -> None:
        """Says what was done."""
        cpu, clock = time.process_time() - self.began_cpu, time.monotonic() - self.began
        sys.stdout.write(
            f"{self.name}: {self.runs} inputs in {cpu:.0f} s of CPU time ({clock:.0f} s by the clock)"
            f", {'coverage' if HAS_ATHERIS else 'no coverage'}, longest {self.longest:.2f} s"
            f", {_peak_bytes() / 2**20:.0f} MiB, found {len(self.found)} {self.found or ''}\n"
        )
        sys.stdout.flush()
        os._exit(bool(self.found))  # threads of the libraries do not end by themselves


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "kaleido_jax" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def main() -> None:
    """Parses the flags and fuzzes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True)
    parser.add_argument("--seconds", type=float, default=600, help="of CPU time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logging.disable(logging.CRITICAL)
    if HAS_ATHERIS:
        import atheris

        with atheris.instrument_imports(include=["kaleido_jax"]):
            import tests.fuzz.targets  # noqa: F401  and with it all that it reads with
    from tests.fuzz.mutate import mutate

    fuzzer = Fuzzer(flags.target, flags.out, flags.seconds)
    seeds, form = fuzzer.target.seeds, fuzzer.target.form
    if not HAS_ATHERIS:
        rng = random.Random(flags.seed)
        while True:
            fuzzer(mutate(rng.choice(seeds), rng, form))
    corpus = flags.out / f"{flags.target}-corpus"
    corpus.mkdir(exist_ok=True)
    for i, seed in enumerate(seeds):
        (corpus / f"seed-{i}").write_bytes(seed)

    def custom(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:  # libFuzzer's own, which knows what comparisons want
            return atheris.Mutate(data, max_size)
        return mutate(data or rng.choice(seeds), rng, form, max_size)

    libfuzzer = [sys.argv[0], str(corpus), f"-seed={flags.seed}", f"-max_len={2**16}", "-timeout=1200", "-verbosity=0"]
    atheris.Setup([*libfuzzer, "-rss_limit_mb=8192", f"-artifact_prefix={flags.out}/"], fuzzer, custom_mutator=custom)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
