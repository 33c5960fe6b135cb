"""Metrics of a run: metrics.jsonl, TensorBoard events and, if the config names a project, Weights & Biases, with the
same keys; and one progress line per interval.

The writer keeps clu.metric_writers' interface (write_scalars, flush, close); clu's own needs TensorFlow.
"""

import dataclasses
import importlib.util
import json
import logging
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.record_writer import register_writer_factory
from tqdm import tqdm

from kaleido_jax.config.schema import Config
from kaleido_jax.errors import user_error
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import Appended, keep_steps, step_of, write_atomically
from kaleido_jax.runtime.progress import clock
from kaleido_jax.runtime.workdir import METRICS, WANDB

log = logging.getLogger(__name__)


COUNTERS = ("skipped_steps", "skipped_in_row", "loss_scale")
_EVENTS = "kaleido_events"  # prefix of a path that tensorboardX opens with the class below


class _EventFiles:
    """Opens the files of events, which its own thread writes: an error there would end it, and then nobody empties the
    queue, on which training would wait."""

    def open(self, path: str) -> Appended:
        return Appended(Path(path.removeprefix(f"{_EVENTS}:")))

    def directory_check(self, path: str) -> None:
        """The folder is there."""


register_writer_factory(_EVENTS, _EventFiles())


class MetricWriter:
    """Appends scalars to WORKDIR/metrics.jsonl, to TensorBoard events, and to a run of Weights & Biases."""

    def __init__(self, workdir: Path, resume_step: int = 0, config: Config | None = None) -> None:
        """Drops the lines after the checkpoint that the run resumes from, since they will be written again.

        Args:
          workdir: of the run.
          resume_step: the checkpoint's step, 0 for a fresh run.
          config: names the project of Weights & Biases, if it gets the metrics too, and says what a full disk does.

        Raises:
          UserError: Weights & Biases refuses the run.
        """
        path = workdir / METRICS
        keep_steps(path, resume_step)
        self._file = Appended(path, keep=config is not None and config.train.full_disk == "continue")
        self._events = SummaryWriter(f"{_EVENTS}:{workdir}", purge_step=resume_step + 1)
        self._run = open_wandb(config, workdir) if config and config.train.wandb_project else None

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """One line with the time of writing, at once, and one event for each key.

        On a full disk they wait for room if config.train.full_disk says so.

        Raises:
          UserError: the line cannot be written.
        """
        line = json.dumps({"step": step, "unix_sec": round(time.time(), 3)} | scalars)
        self._file.write(f"{line}\n".encode())
        self._file.flush()
        for key, value in scalars.items():
            self._events.add_scalar(key, value, step)
        if self._run is not None:
            self._run.log({"step": step} | scalars)

    def flush(self) -> None:
        """Writes everything to disk; raises as `write_scalars`."""
        self._file.flush()
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._file.close()
        self._events.close()
        if self._run is not None:
            self._run.finish()


class NoWriter(MetricWriter):
    """Of a process that is not the main one: writes nothing."""

    def __init__(self) -> None:
        pass

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


# -------------------------------------------------------------------------------------- Weights & Biases
def check_wandb(config: Config) -> None:
    """Checks that the package is there if the config names a project; for the start, before anything compiles.

    Raises:
      UserError: it is not installed.
    """
    if config.train.wandb_project and importlib.util.find_spec("wandb") is None:
        found = f"config.train.wandb_project = {config.train.wandb_project!r} without the package wandb"
        do = "pip install 'kaleido_jax[wandb]', or set config.train.wandb_project to ''"
        raise user_error(found, "it installed", do)


def open_wandb(config: Config, workdir: Path) -> Any:
    """The run of Weights & Biases that belongs to a workdir, new or resumed.

    It is sent there, or kept in WORKDIR/wandb with WANDB_MODE=offline.

    Raises:
      UserError: nobody is logged in, or the project cannot be written.
    """
    import wandb

    stored = workdir / WANDB
    name = stored.read_text().strip() if stored.exists() else secrets.token_hex(4)
    try:
        run = wandb.init(
            project=config.train.wandb_project,
            id=name,
            name=config.name,
            dir=str(workdir),
            resume="allow",
            config=dataclasses.asdict(config),
        )
    except wandb.errors.Error as error:
        do = "`wandb login`, or set WANDB_MODE=offline or config.train.wandb_project to ''"
        raise user_error(f"wandb: {error}", f"access to the project {config.train.wandb_project}", do) from error
    # Not wandb's own count of steps, which must grow: a resumed run writes some of them again.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    write_atomically(stored, f"{name}\n".encode())
    return run


def scalars_at(workdir: Path, step: int) -> dict[str, float]:
    """What metrics.jsonl has of a step, of all its lines."""
    path = workdir / METRICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    found: dict[str, float] = {}
    for line in lines:
        found |= json.loads(line) if step_of(line) == step else {}
    return found


class Averages:
    """Means of device scalars over an interval, like clu.metrics.Average; nothing is fetched before `compute`.

    Steps that were skipped are left out, since their loss is not finite; of COUNTERS the last value counts.
    """

    def __init__(self) -> None:
        self._steps: list[dict] = []

    def add(self, scalars: dict) -> None:
        """Keeps one step's device scalars."""
        self._steps.append(scalars)

    def compute(self) -> dict[str, float]:
        """The means so far, then resets. One fetch for all: merging device scalars one by one took 0.5 s per report."""
        steps, self._steps = jax.device_get(self._steps), []
        if not steps:
            return {}
        counted = [step for step in steps if not step.get("skipped_in_row", 0)] or steps[-1:]
        count = np.float32(len(counted))
        # Summed in order, like clu's Average.
        means = {key: float(np.cumsum([s[key] for s in counted], dtype=np.float32)[-1] / count) for key in steps[0]}
        return means | {key: float(steps[-1][key]) for key in COUNTERS if key in steps[0]}


class Stopwatch:
    """Where the time of a run goes between two reports, and what was computed in it."""

    def __init__(self, peak_tflops: float | None = None) -> None:
        """`peak_tflops` is that of all devices together, 1e12 FLOP/s, if it is known."""
        self._spent: dict[str, float] = {}
        self._since, self._flops, self._peak = time.monotonic(), 0, peak_tflops

    def count(self, flops: int) -> None:
        """Adds a step's FLOPs."""
        self._flops += flops

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Times what runs inside."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + time.monotonic() - start

    def shares(self) -> dict[str, float]:
        """Shares of the time since the last call, such as {"time_data": 0.01, ...}, and "goodput", what is left.

        And "tflops", the 1e12 FLOP/s of the model (without what is recomputed) over all that time, and if the devices'
        peak is known, "utilization", its share of that (MFU).
        """
        now = time.monotonic()
        total, self._since = max(now - self._since, 1e-9), now
        spent, self._spent = self._spent, {}
        shares = {
            f"time_{what}": spent.get(what, 0.0) / total for what in ("data", "compile", "checkpoint", "evaluation")
        }
        rate, self._flops = self._flops / total / 1e12, 0
        peak = {} if self._peak is None else {"utilization": rate / self._peak}
        return shares | {"goodput": 1 - sum(shares.values()), "tflops": rate} | peak


class Progress:
    """A bar on a terminal, otherwise one log line per interval: step, loss parts, img/s, ETA."""

    def __init__(self, total_steps: int, first_step: int, batch_size: int, title: str = "train") -> None:
        self._total, self._batch, self._title = total_steps, batch_size, title
        self._last = (first_step, time.monotonic())
        terminal = sys.stderr.isatty() and distributed.is_main()
        self._bar = tqdm(total=total_steps, initial=first_step, desc=title, unit="step") if terminal else None

    def tick(self, step: int) -> None:
        """Moves the bar; cheap enough for every step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def leave_out(self, seconds: float) -> None:
        """Time in which nothing was trained, such as compiling, which the rates would take for that of all steps."""
        step, since = self._last
        self._last = (step, since + seconds)
        if self._bar is not None:
            self._bar.unpause()

    def report(self, step: int, scalars: dict[str, float]) -> dict[str, float]:
        """Shows the progress and returns the rates: img_per_sec, eta_sec."""
        then_step, then = self._last
        self._last = (step, time.monotonic())
        per_step = (self._last[1] - then) / max(step - then_step, 1)
        rates = {"img_per_sec": self._batch / per_step, "eta_sec": (self._total - step) * per_step}
        parts = " ".join(f"{k} {v:.4f}" for k, v in scalars.items() if k.startswith("loss"))
        if self._bar is not None:
            self._bar.set_postfix_str(f"{parts} {rates['img_per_sec']:.0f} img/s")
        else:
            speed = f"{rates['img_per_sec']:.1f} img/s, ETA {clock(rates['eta_sec'])}"
            log.info("%s %d/%d | %s | %s", self._title, step, self._total, parts, speed)
        return rates

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
