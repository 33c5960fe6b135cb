"""The experiments of docs/results on one accelerator: annotates, trains every model, sweeps all of them.

    python launch/experiments.py emoji [tiny_imagenet] [--jobs=4] [--models=combined-0,baseline-0]

--jobs of the steps run beside each other, since nets as small as these do not fill a device; a step starts when what it
needs is there. Logs are in runs/logs, and what is finished is not done again by the same command. --models trains and
sweeps these alone, and leaves out the page of all.
"""

import argparse
import dataclasses
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kaleido_jax.config.sweep import Sweep, load_sweep  # noqa: E402

MAIN = "python -m kaleido_jax.main"
MEMORY = 0.9  # share of the device's memory that all steps together take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One command."""

    name: str
    command: str
    after: tuple[str, ...] = ()  # names of steps that it needs
    on_device: bool = True


def emoji() -> list[Step]:
    """Those of configs/claim_emoji.py and sweep_emoji.py:claim."""
    folder, config = "runs/claim", "configs/claim_emoji.py"
    sweep = load_sweep(f"{ROOT}/configs/sweep_emoji.py:claim", {})
    steps = [
        Step(
            name=f"records-{records}",
            command=f"{MAIN} annotate --config={config}:{model} --workdir={folder}/records-{records} "
            f"--config.annotate.num_workers={max(1, (os.cpu_count() or 1) // 4)}",
            on_device=False,
        )
        for records, model in {"0": "combined-0", "1": "combined-1", "2": "combined-2", "oracle-0": "oracle-0"}.items()
    ]
    of_model = {
        model: Step(
            name=model,
            command=f"{MAIN} --config={config}:{model} --workdir={folder}/{model}",
            after=(f"records-{model if model.startswith('oracle') else model.rpartition('-')[2]}",),
        )
        for model in trainings(sweep)
    }
    return steps + in_order(of_model, sweeps(sweep, "configs/sweep_emoji.py:claim", folder), EMOJI_FIRST)


# The trainings that come first; their sweeps come before the other trainings.
EMOJI_FIRST = (
    *("combined-0", "baseline-0", "combined-1", "baseline-1", "combined-2", "baseline-2"),
    *("oracle-0", "text-0", "bbox-0", "blob-0", "voken-0"),
)


def trainings(sweep: Sweep) -> list[str]:
    """Names of the workdirs of a sweep's models."""
    return list(dict.fromkeys(Path(path).name for model in sweep.models for path in model.paths))


def in_order(trained: dict[str, Step], swept: Sequence[Step], first: Sequence[str]) -> list[Step]:
    """The trainings named `first`, then their sweeps, then the others and theirs."""
    names, later = [*first], [name for name in trained if name not in first]
    result: list[Step] = []
    for group in (names, later):
        result += [trained[name] for name in group]
        for step in swept:  # a model's first training comes before its others
            if step not in result and {*step.after} <= {other.name for other in result}:
                result.append(step)
    return result


def sweeps(sweep: Sweep, spec: str, folder: str) -> list[Step]:
    """Each training's part, and the page of all; a model's first training tunes it, so the others wait for that."""
    command = f"{MAIN} evaluate --sweep={spec} --workdir={folder}/sweep"
    steps = []
    for model in sweep.models:
        for i, path in enumerate(model.paths):
            first = (f"sweep of {model.name}/0",) if i else ()
            part = f"{model.name}/{i}"
            quoted = shlex.quote(f"--part={part}")
            steps.append(Step(name=f"sweep of {part}", command=f"{command} {quoted}", after=(Path(path).name, *first)))
    return [*steps, Step(name="page", command=command, after=tuple(step.name for step in steps))]


EXPERIMENTS = {"emoji": emoji}


class Runner:
    """Runs steps, several at a time, the earlier ones of the list first."""

    def __init__(self, steps: Sequence[Step], logs: Path, jobs: int) -> None:
        self.steps, self.logs, self.jobs = list(steps), logs, jobs
        self.done: set[str] = set()
        self.failed: list[str] = []
        self._waiting = list(steps)
        self._changed = threading.Condition()

    def run(self) -> list[str]:
        """Returns the names of the steps that failed; those that need them are left out."""
        workers = [threading.Thread(target=self._work) for _ in range(self.jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return self.failed

    def _work(self) -> None:
        while (step := self._next()) is not None:
            start = time.monotonic()
            succeeded = self._run(step)
            with self._changed:
                (self.done.add if succeeded else self.failed.append)(step.name)
                self._changed.notify_all()
            say(f"{step.name}: {'done' if succeeded else 'FAILED'} after {time.monotonic() - start:.0f} s")

    def _next(self) -> Step | None:
        with self._changed:
            while self._waiting:
                lost = {*self.failed}
                for step in self.steps:  # each comes after what it needs
                    if lost & {*step.after}:
                        lost.add(step.name)
                self._waiting = [step for step in self._waiting if step.name not in lost]
                for step in self._waiting:
                    if self.done >= {*step.after}:
                        self._waiting.remove(step)
                        return step
                self._changed.wait(timeout=1)
            return None

    def _run(self, step: Step) -> bool:
        environment = dict(os.environ)
        if step.on_device:  # otherwise each process takes most of the device's memory
            environment.setdefault("XLA_CLIENT_MEM_FRACTION", f"{MEMORY / self.jobs:.3f}")
        else:
            environment["JAX_PLATFORMS"] = "cpu"
        say(f"{step.name}: {step.command}")
        with (self.logs / f"{step.name.replace('/', '-')}.log").open("ab") as log:
            command = shlex.split(step.command.replace("python", shlex.quote(sys.executable), 1))
            return (
                subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=ROOT, check=False).returncode == 0
            )


def say(text: str) -> None:
    """A line with the time."""
    sys.stdout.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stdout.flush()


def chosen(steps: Sequence[Step], models: Sequence[str]) -> list[Step]:
    """The steps of some trainings, with what these need and the sweeps that need nothing else."""
    kept = {step.name for step in steps if step.name in models}
    by_name = {step.name: step for step in steps}
    kept |= {name for model in models for name in by_name[model].after}
    changed = True
    while changed:
        more = {step.name for step in steps if step.name not in kept and step.after and kept >= {*step.after}}
        more = {name for name in more if name.startswith("sweep of ")}
        changed, kept = bool(more), kept | more
    return [step for step in steps if step.name in kept]


def main(argv: list[str]) -> int:
    """Parses the flags and runs; 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--models", default="", help="trainings, separated by commas")
    flags = parser.parse_args(argv)
    steps = [step for name in flags.experiments for step in EXPERIMENTS[name]()]
    if flags.models:
        models, known = flags.models.split(","), {step.name for step in steps}
        if unknown := [model for model in models if model not in known]:
            parser.error(f"no training {unknown[0]!r}")
        steps = chosen(steps, models)
    logs = ROOT / "runs" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    failed = Runner(steps, logs, flags.jobs).run()
    for name in failed:
        say(f"{name} failed; {logs} has its log")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
