"""Watch over a run: steps without a finite gradient, unreadable records, and stops that several processes agree on.

What a step has counted is read two steps later, when it is on the host anyway; every process then reads the same sums
at the same step, so all of them decide alike.
"""

import json
from collections import deque
from pathlib import Path

import jax
import numpy as np

from kaleido_jax.errors import user_error
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import Appended, keep_steps
from kaleido_jax.runtime.workdir import SKIPPED

LAG = 2  # steps
SMALLEST_SAMPLE = 1000  # records read before a share of them means anything


class Watch:
    """Counts of a run; `add` raises where they end it."""

    def __init__(
        self,
        workdir: Path,
        max_skipped_steps: int,
        max_bad_share: float,
        full_disk: str = "stop",
        resume_step: int | None = None,
    ) -> None:
        """Drops what skipped.jsonl has of later steps than the one from which the run resumes.

        The others are config.train.max_skipped_steps, config.data.max_bad_share and config.train.full_disk.
        """
        self._path, self._max_skipped, self._max_bad = workdir / SKIPPED, max_skipped_steps, max_bad_share
        if resume_step is not None and distributed.is_main():  # before any process has made a step that it could note
            keep_steps(self._path, resume_step)
        self._skipped = Appended(self._path, keep=full_disk == "continue")
        self._read, self._bad = 0, 0
        self._pending: deque[tuple[int, np.ndarray, dict[str, jax.Array]]] = deque()

    def add(self, step: int, batch: dict[str, np.ndarray], scalars: dict[str, jax.Array]) -> bool:
        """Takes a step's batch and device scalars, and looks at those of LAG steps before.

        Returns:
          Whether a process was asked to stop by then.

        Raises:
          FloatingPointError: too many steps in a row without a finite gradient.
          UserError: too large a share of the records cannot be read.
        """
        names = ("skipped_in_row", "replaced", "rows", "stop", "loss")
        kept = {key: scalars[key] for key in names if key in scalars}
        self._pending.append((step, batch["sample_id"], kept))
        return self._look() if len(self._pending) > LAG else False

    def finish(self) -> None:
        """Looks at the last steps; raises as `add`."""
        while self._pending:
            self._look()
        self._skipped.close()

    def _look(self) -> bool:
        step, samples, scalars = self._pending.popleft()
        scalars = jax.device_get(scalars)
        if in_row := int(scalars["skipped_in_row"]):
            self._note(step, samples, float(scalars["loss"]))
        if in_row >= self._max_skipped:
            raise FloatingPointError(
                f"{in_row} steps in a row without a finite loss, gradient or update, up to step {step} (their samples "
                f"are in {self._path.name}); lower config.train.learning_rate or config.train.clip_norm, or start from "
                "an earlier checkpoint"
            )
        self._read += int(scalars.get("rows", 0))
        self._bad += int(scalars.get("replaced", 0))
        if self._bad > self._max_bad * max(self._read, SMALLEST_SAMPLE):
            raise user_error(
                f"{self._bad} of {self._read} records that cannot be read",
                f"at most config.data.max_bad_share = {self._max_bad}",
                "make the damaged shards again with `annotate` (the log names the records)",
            )
        return bool(scalars.get("stop", 0))

    def _note(self, step: int, samples: np.ndarray, loss: float) -> None:
        line = {"step": step, "loss": repr(loss), "process": jax.process_index(), "sample_id": samples.tolist()}
        self._skipped.write(f"{json.dumps(line)}\n".encode())
        self._skipped.flush()
