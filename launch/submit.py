"""One run, or one for each of several seeds, as SLURM jobs through submitit (pip install "submitit>=1.5").

    python launch/submit.py --nodes=4 --partition=gpu --config=imagenet_combined --workdir=/shared/runs/imagenet \\
        --config.mesh.fsdp=8
    python launch/submit.py --seeds=0,1,2 --config=emoji_combined --workdir=/shared/runs/emoji   # runs/emoji-0, ...

Everything that is not an option here goes to `python -m kaleido_jax.main`. A job that was stopped by a signal after
saving (exit code 75) is put into the queue again and resumes. --executor=local runs here instead, and --dry_run prints.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

TEMPORARY_FAILURE = 75  # os.EX_TEMPFAIL: stopped by a signal after saving


class Run:
    """One process of the run, as submitit pickles and calls it in each task."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv

    def __call__(self) -> None:
        """Runs the command and passes signals on to it.

        Raises:
          RuntimeError: it ended with an exit code that is neither 0 nor 75, or with 75 as the job was cancelled.
        """
        # submitit asks by this signal before the time limit; its handler requeues, but does not wait for a save.
        asks = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
        requeue = signal.getsignal(asks)
        child = subprocess.Popen([sys.executable, "-u", "-m", "kaleido_jax.main", *self.argv])
        for number in {asks, signal.SIGTERM}:
            signal.signal(number, lambda *_: child.send_signal(signal.SIGTERM))
        code = child.wait()
        signal.signal(asks, requeue)
        if code == TEMPORARY_FAILURE and is_ending():
            raise RuntimeError("kaleido_jax has saved and is not requeued, since SLURM is ending the job")
        if code == TEMPORARY_FAILURE:
            signal.raise_signal(asks)
        elif code:
            raise RuntimeError(f"kaleido_jax ended with exit code {code}")

    def checkpoint(self) -> "object":
        """What submitit runs when the job starts again: the same, which resumes from its workdir."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def is_ending() -> bool:
    """Whether SLURM itself ends this job, as after scancel, and would take it back into the queue if asked to.

    A job that saved after its time limit goes on.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or not shutil.which("squeue"):
        return False
    asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%T %r"]
    state = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return state.startswith("COMPLETING") and "TimeLimit" not in state


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and the command line of kaleido_jax."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--executor", choices=("slurm", "local"), default="slurm")
    parser.add_argument("--logs", default="runs/submitit", help="folder of submitit's logs and pickles")
    parser.add_argument("--name", default="kaleido")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="of each node; its one task takes them all")
    parser.add_argument("--cpus", type=int, default=32, help="of each node")
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--seeds", help="e.g. 0,1,2: one job for each, with its own --workdir")
    parser.add_argument("--dry_run", action="store_true")
    return parser.parse_known_args(argv)


def commands(seeds: str | None, argv: list[str]) -> list[list[str]]:
    """The command line of each job; exits with one line where --seeds cannot be."""
    if seeds is None:
        return [argv]
    found, names = [], [seed.strip() for seed in seeds.split(",")]
    wrong = ""
    if not all(name.isdecimal() for name in names) or len({*names}) < len(names):
        wrong = f"--seeds={seeds}; expected whole numbers, each once, such as 0,1,2; correct it"
    elif not any(word.startswith("--workdir=") for word in argv):
        wrong = "--seeds without --workdir; expected --workdir=DIR, of which each seed gets its own; name it"
    if wrong:
        sys.stderr.write(f"error: {wrong}\n")
        sys.exit(2)
    for seed in names:
        own = [f"{word.rstrip('/')}-{seed}" if word.startswith("--workdir=") else word for word in argv]
        found.append([*own, f"--config.seed={seed}"])
    return found


def parameters(options: argparse.Namespace) -> dict[str, object]:
    """What submitit's executor is told."""
    told: dict[str, object] = {"name": options.name, "timeout_min": round(options.hours * 60)}
    if options.executor == "slurm":
        told |= {
            "nodes": options.nodes,
            "tasks_per_node": 1,
            "gpus_per_node": options.gpus,
            "cpus_per_task": options.cpus,
            "slurm_signal_delay_s": 120,  # to save in
            "slurm_additional_parameters": {"requeue": True},
        }
        given = {"slurm_partition": options.partition, "slurm_account": options.account}
        told |= {name: value for name, value in given.items() if value}
    return told


def main(argv: list[str]) -> None:
    """Submits the jobs and prints their numbers; with --executor=local waits for them."""
    options, rest = parse(argv)
    runs, told = commands(options.seeds, rest), parameters(options)
    if options.dry_run:
        sys.stdout.write(
            json.dumps({"executor": options.executor, "parameters": told, "commands": runs}, indent=2) + "\n"
        )
        return
    import submitit

    # A training needs as many time limits as it takes; each is a save and a place in the queue.
    countdown = {"slurm_max_num_timeout": 1000} if options.executor == "slurm" else {"local_max_num_timeout": 1000}
    executor = submitit.AutoExecutor(folder=Path(options.logs), cluster=options.executor, **countdown)
    executor.update_parameters(**told)
    jobs = [executor.submit(Run(run)) for run in runs]
    for job, run in zip(jobs, runs, strict=True):
        sys.stdout.write(f"{job.job_id}: {' '.join(run)}; log: {job.paths.stdout}\n")
    if options.executor == "local":
        for job in jobs:
            job.result()


if __name__ == "__main__":
    main(sys.argv[1:])
