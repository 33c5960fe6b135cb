"""The experiments of docs/results: annotates, trains every model, sweeps all of them.

    python launch/experiments.py emoji [emoji_controls] [tiny_imagenet] [--jobs=4] [--sweep.KEY=VALUE ...]
    python launch/experiments.py emoji_cpu [emoji_cpu_controls] [tiny_imagenet_cpu] --jobs=2 [--sweep.KEY=VALUE ...]

The first is for one accelerator; the second trains the same models on a sixth of the images, each in half an hour to an
hour of a CPU core. --jobs of the steps run beside each other, since nets as small as these do not fill a device; a step
starts when what it needs is there. Logs are in runs/logs, and what is finished is not done again by the same command.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kaleido_jax.config.load import load_config  # noqa: E402
from kaleido_jax.config.sweep import Sweep, load_sweep  # noqa: E402
from kaleido_jax.errors import UserError  # noqa: E402

MAIN = "python -m kaleido_jax.main"
MEMORY = 0.9  # share of the device's memory that all steps together take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One command."""

    name: str
    command: str
    after: tuple[str, ...] = ()  # names of steps that it needs
    on_device: bool = True


def emoji(cpu: bool = False) -> list[Step]:
    """Models of configs/claim_emoji.py with z of every kind, of all, and without, in the sweep sweep_emoji.py:claim.

    Args:
      cpu: those of the size for a CPU, and :claim-cpu.
    """
    records = {"0": "combined-0", "1": "combined-1", "2": "combined-2", "oracle-0": "oracle-0"}
    made = [
        annotating(f"{CLAIM}:{model}", f"runs/claim/records-{name}", len(records)) for name, model in records.items()
    ]
    sweep = f"configs/sweep_emoji.py:{'claim-cpu' if cpu else 'claim'}"
    return [*made, *trained_and_swept(CLAIM, sweep, "sweep", cpu)]


def emoji_controls(cpu: bool = False) -> list[Step]:
    """Further models of configs/claim_emoji.py, in the sweep sweep_emoji.py:claim-controls."""
    sweep = f"configs/sweep_emoji.py:{'claim-cpu-controls' if cpu else 'claim-controls'}"
    made = annotating(f"{CLAIM}:combined-0", "runs/claim/records-0", 1)
    return [made, *trained_and_swept(CLAIM, sweep, "controls", cpu)]


def tiny_imagenet(cpu: bool = False) -> list[Step]:
    """Models of configs/tiny_imagenet.py, whose data lie in data/ (see there)."""
    sweep = f"configs/sweep_tiny_imagenet.py{':cpu' * cpu}"
    made = annotating(f"{PHOTOGRAPHS}:both-0", "runs/tiny/records", 1)
    return [made, *trained_and_swept(PHOTOGRAPHS, sweep, "sweep", cpu)]


def trained_and_swept(config: str, spec: str, folder: str, cpu: bool) -> list[Step]:
    """All models of a sweep, those with several seeds first, and the sweep itself."""
    sweep = load_sweep(f"{ROOT}/{spec}", {})
    compared, others = ([m for m in sweep.models if (len(m.paths) > 1) == several] for several in (True, False))
    seeds = itertools.zip_longest(*(model.paths for model in compared))  # the first ones of all, then the second ones
    paths = [*itertools.chain.from_iterable(seeds), *(path for model in others for path in model.paths)]
    steps = []
    for path in dict.fromkeys(filter(None, paths)):
        model = f"{config}:{'cpu-' * cpu}{Path(path).name}"
        records = load_config(f"{ROOT}/{model}").data.records
        steps.append(Step(name=path, command=f"{MAIN} --config={model} --workdir={path}", after=(records,)))
    return [*steps, *sweeps(sweep, spec, f"{Path(steps[0].name).parent}/{folder}")]


CLAIM, PHOTOGRAPHS = "configs/claim_emoji.py", "configs/tiny_imagenet.py"


def annotating(config: str, folder: str, beside: int) -> Step:
    """Records of a config, made by this one's share of the processors among `beside` jobs."""
    workers = max(1, (os.cpu_count() or 1) // beside)
    command = f"{MAIN} annotate --config={config} --workdir={folder} --config.annotate.num_workers={workers}"
    return Step(name=folder, command=command, on_device=False)


def sweeps(sweep: Sweep, spec: str, folder: str) -> list[Step]:
    """Each training's part, and the page of all; a model's first training tunes it, so the others wait for that."""
    command = f"{MAIN} evaluate --sweep={spec} --workdir={folder}"
    steps = []
    for model in sweep.models:
        for i, path in enumerate(model.paths):
            first = (f"{folder} {model.name}/0",) if i else ()
            part = f"{model.name}/{i}"
            with_part = f"{command} {shlex.quote(f'--part={part}')}"
            steps.append(Step(name=f"{folder} {part}", command=with_part, after=(path, *first)))
    return [*steps, Step(name=f"{folder} page", command=command, after=tuple(step.name for step in steps))]


EXPERIMENTS = {
    "emoji": emoji,
    "emoji_controls": emoji_controls,
    "emoji_cpu": functools.partial(emoji, cpu=True),
    "emoji_cpu_controls": functools.partial(emoji_controls, cpu=True),
    "tiny_imagenet": tiny_imagenet,
    "tiny_imagenet_cpu": functools.partial(tiny_imagenet, cpu=True),
}


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
        try:
            for worker in workers:
                worker.join()
        except KeyboardInterrupt:  # the terminal sent it to the commands too, which save and end
            self.stop()
            for worker in workers:
                worker.join()
            raise
        return self.failed

    def stop(self) -> None:
        """Starts nothing more."""
        with self._changed:
            self._waiting = []
            self._changed.notify_all()

    def _work(self) -> None:
        while (step := self._next()) is not None:
            start = time.monotonic()
            try:
                succeeded = self._run(step)
            except OSError as error:  # no room for the log, or for one more process
                say(f"{step.name}: {error}")
                succeeded = False
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
        name = re.sub(r"[^\w.]+", "-", step.name.removeprefix("runs/"))
        with (self.logs / f"{name}.log").open("ab") as log:
            command = shlex.split(step.command.replace("python", shlex.quote(sys.executable), 1))
            return (
                subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=ROOT, check=False).returncode == 0
            )


def say(text: str) -> None:
    """A line with the time."""
    sys.stdout.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    """Parses the flags and runs; 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--jobs", type=int, default=4)
    flags, more = parser.parse_known_args(argv)
    if unknown := [flag for flag in more if not flag.startswith("--sweep.")]:
        parser.error(f"{unknown[0]}: no such flag")
    if flags.jobs < 1:
        parser.error(f"--jobs={flags.jobs}; expected 1 or more")
    try:  # hours before the first sweep would
        load_sweep(f"{ROOT}/configs/sweep_emoji.py", dict(flag[len("--sweep.") :].split("=", 1) for flag in more))
    except (UserError, ValueError) as error:
        parser.error(f"{' '.join(more)}: {error}")
    steps = {step.name: step for name in flags.experiments for step in EXPERIMENTS[name]()}  # shared ones once
    for step in [step for step in steps.values() if " --sweep=" in step.command]:
        steps[step.name] = dataclasses.replace(step, command=shlex.join([*shlex.split(step.command), *more]))
    logs = ROOT / "runs" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    failed = Runner([*steps.values()], logs, flags.jobs).run()
    for name in failed:
        say(f"{name} failed; {logs} has its log")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
