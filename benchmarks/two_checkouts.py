"""Cost of the quickstart's model in two checkouts: training step, decoding and sampling step, by their command lines.

python -m benchmarks.two_checkouts --before=DIR --after=DIR [--rounds=3] [--out=benchmarks/results/two_checkouts.md]

Each figure is the CPU time of a longer command minus that of a shorter one, divided by what the longer does more, so
that starting and compiling cancel out; both checkouts run alternately, and medians are compared. The
command line is the interface that any two versions share: renamed flags are given by --after_flags. Needs a workdir
made by --before, so that both sample from weights of their own training.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe

CONFIG = "configs/fashion_combined.py"
SMALL = ("--config.data.num_train=512", "--config.data.num_test=64", "--config.train.sample_at_end=False")
QUIET = ("--config.eval.protocol=none", "--config.train.log_every_steps=1000")
ENVIRONMENT = {"JAX_PLATFORMS": "cpu"}


def captions(count: int) -> str:
    """A flag with this many captions."""
    names = ("bag", "coat", "dress", "sandal", "shirt")
    return f"--config.sample.captions={tuple(names[i % len(names)] for i in range(count))!r}"


class Checkout:
    """One version of the project and a workdir for each kind of command."""

    def __init__(self, name: str, folder: Path, work: Path, per_caption: str) -> None:
        self.name, self.folder, self.work, self.per_caption = name, folder, work, per_caption

    def run(self, verb: str, workdir: str, *flags: str) -> float:
        """CPU seconds of one command."""
        command = [sys.executable, "-m", "kaleido_jax.main", verb, f"--config={CONFIG}"]
        command += [f"--workdir={self.work / workdir}", *SMALL, *QUIET, *flags]
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(self.folder)}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{self.name}: {' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def train(self, steps: int, number: int) -> float:
        """CPU seconds of a fresh run of this many steps, over records that are there already."""
        records = f"--config.data.records={self.work / 'model' / 'records'}"
        source = "--config.data.source=records"
        return self.run("train", f"train-{number}-{steps}", f"--config.train.num_steps={steps}", records, source)

    def sample(self, count: int, steps: int, number: int) -> float:
        """CPU seconds of `count` captions of one image each, in this many steps."""
        flags = (captions(count), f"--config.{self.per_caption}=1", f"--config.sample.num_steps={steps}")
        return self.run("sample", "model", *flags, f"--config.sample.gamma={2 + number / 100}")


def measure(sides: list[Checkout], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Figure -> checkout -> one value each round."""
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(-1, rounds):  # the first round fills the compilation cache
        for side in sides if number % 2 else sides[::-1]:
            trained = (side.train(60, number + 1) - side.train(20, number + 1)) / 40
            few, many, long = (side.sample(*size, number + 1) for size in ((50, 2), (150, 2), (50, 22)))
            step = (long - few) / 20 / 50
            decoded = (many - few) / 100 - 2 * step
            values = {"training step (16 images)": trained, "latents of one caption": decoded, "sampling step": step}
            for figure, value in values.items():
                if number >= 0:
                    found.setdefault(figure, {}).setdefault(side.name, []).append(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--before_per_caption", default="sample.images_per_latents")
    parser.add_argument("--after_per_caption", default="sample.images_per_caption")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{work}/cache"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        sides = [
            Checkout(name, getattr(given, name).resolve(), Path(work) / name, getattr(given, f"{name}_per_caption"))
            for name in ("before", "after")
        ]
        for side in sides:
            side.run("train", "model", "--config.train.num_steps=2")
        found = measure(sides, given.rounds)
    lines = [
        "# The quickstart's model before and after",
        "",
        describe("jax", "jaxlib", "flax"),
        "",
        f"CPU milliseconds on both cores, median of {given.rounds} alternating rounds (each of them).",
        "",
        "| | before | after | after / before |",
        "|---|---|---|---|",
    ]
    for figure, sides_found in found.items():
        medians = {name: statistics.median(values) for name, values in sides_found.items()}
        cells = [
            f"{1000 * medians[name]:.1f} ({', '.join(f'{1000 * v:.1f}' for v in sides_found[name])})"
            for name in ("before", "after")
        ]
        lines.append(f"| {figure} | {' | '.join(cells)} | {medians['after'] / medians['before']:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
