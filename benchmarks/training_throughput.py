"""Images a second of the quickstart's training command in two checkouts, as its own log tells them, in turns.

python -m benchmarks.training_throughput --before=DIR --before_config=FILE --after=DIR --after_config=FILE
    [--rounds=4] [--reports=4] [--out=FILE.md]

Both sides are what a user would start, with both cores, the loader and the log. Both processes live all the time; a
signal stops the one whose turn it is not. A report that such a pause falls into does not count.
"""

import argparse
import os
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from benchmarks.machine import describe

EVERY = 20  # steps between reports


class Side:
    """A training process, and the img/s of its reports as they come."""

    def __init__(self, checkout: Path, config: str, workdir: Path, extra: list[str]) -> None:
        options = {"num_steps": 10**6, "log_every_steps": EVERY, "checkpoint_every_steps": 10**6}
        command = [sys.executable, "-m", "kaleido_jax.main", f"--config={config}", f"--workdir={workdir}"]
        command += [f"--config.train.{name}={value}" for name, value in options.items()]
        environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            command + extra, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.rates: queue.Queue[float | None] = queue.Queue()  # None: the process has ended
        self.last = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.last = line
            if found := re.search(r"train .* ([\d.]+) img/s", line):
                self.rates.put(float(found[1]))
        self.rates.put(None)

    def turn(self, reports: int) -> list[float]:
        """Runs until `reports` of them are in that no pause fell into, then pauses."""
        self.process.send_signal(signal.SIGCONT)
        waiting = self.rates.qsize()  # of before the pause
        rates = [self._next() for _ in range(waiting + reports + 1)][waiting + 1 :]
        self.process.send_signal(signal.SIGSTOP)
        return rates

    def _next(self) -> float:
        rate = self.rates.get(timeout=600)
        if rate is None:
            raise SystemExit(f"a training ended early: {self.last}")
        return rate


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("before", "after")
    for name in names:
        parser.add_argument(f"--{name}", type=Path, required=True)
        parser.add_argument(f"--{name}_config", required=True)
        parser.add_argument(f"--{name}_extra", default="", help="further options of its command, separated by spaces")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--reports", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in names}
    sides: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in names:
                checkout, extra = getattr(args, name).resolve(), getattr(args, f"{name}_extra").split()
                sides[name] = Side(checkout, getattr(args, f"{name}_config"), Path(folder) / name, extra)
                sides[name].turn(1)  # makes its records and compiles
            for _ in range(args.rounds):
                for name, side in sides.items():
                    rates[name] += side.turn(args.reports)
                    print(f"{name}: {rates[name][-args.reports :]} img/s", flush=True)
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.wait()
    lines = ["| training | img/s: median (least, most) of reports |", "|---|---|"]
    for name, each in rates.items():
        figures = f"{statistics.median(each):.1f} ({min(each):.1f}, {max(each):.1f}) of {len(each)}"
        lines.append(f"| {name}: `{getattr(args, f'{name}_config')}` | {figures} |")
    quotient = statistics.median(rates["after"]) / statistics.median(rates["before"])
    lines.append(f"| after / before | {quotient:.2f} |")
    text = describe("jax", "jaxlib", "flax") + f"\n- load: {os.getloadavg()[0]:.1f}\n\n" + "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
