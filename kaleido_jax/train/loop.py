"""Training loop, top to bottom: mesh, model, state, step, restore, loop."""

import logging
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from clu import parameter_overview
from jax.sharding import Mesh
from orbax.checkpoint import CheckpointManager

from kaleido_jax.config.checks import check_devices, mesh_sizes
from kaleido_jax.config.schema import Config
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.models.kaleido import build_model, count_params
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.mesh import batch_sharding, make_mesh, put_batch, replicated
from kaleido_jax.runtime.xla_flags import warn_of_wrong_reductions
from kaleido_jax.train.caption_cache import ClassCaptions, class_captions, encode_once
from kaleido_jax.train.metrics import Averages, MetricWriter, Progress
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import State, create_state
from kaleido_jax.train.step import make_train_step

log = logging.getLogger(__name__)


def train(config: Config, workdir: Path, tokenizer: Tokenizer, batches: Iterator[dict[str, Any]]) -> State:
    """Trains to config.train.num_steps, from the newest whole checkpoint of the workdir if it has one.

    Args:
      config: the experiment.
      workdir: receives metrics.jsonl, events and checkpoints.
      tokenizer: gives the sizes of the token tables.
      batches: a Grain iterator of numpy batches (this process's rows); checkpoints hold its state.

    Returns:
      The final state.

    Raises:
      UserError: the sizes do not fit the devices (before anything compiles), or a checkpoint cannot be read or written.
      FloatingPointError: a loss is not finite; metrics.jsonl then holds the evidence.
      KeyboardInterrupt: stopped by a signal, after saving a checkpoint.
    """
    # ---------------------------------------------------------------- mesh and model
    check_devices(config, jax.device_count())
    warn_of_wrong_reductions(jax.default_backend())
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()))
    model = build_model(config, tokenizer.base_vocab_size)
    optimizer = make_optimizer(config.train)

    # ---------------------------------------------------------------- state, born sharded
    fresh = not checkpoints.steps_of(workdir)  # otherwise only shapes, which the checkpoint fills
    state, frozen, (state_shardings, frozen_shardings) = create_state(config, model, optimizer, mesh, fresh)
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    (workdir / "parameters.txt").write_text(overview)
    trainable, others = count_params(state.params), count_params(frozen)
    log.info("%.2fM trainable, %.2fM frozen parameters", trainable / 1e6, others / 1e6)

    captions = class_captions(config, tokenizer)
    if captions:
        frozen, frozen_shardings = encode_once(captions, model, frozen, mesh)

    # ---------------------------------------------------------------- step
    train_step = jax.jit(
        make_train_step(model, config, optimizer),
        in_shardings=(state_shardings, frozen_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )

    # ---------------------------------------------------------------- restore, then loop
    with checkpoints.open_manager(workdir, keep=config.train.keep_checkpoints) as manager:
        if not fresh:
            state, batches = checkpoints.restore(manager, state, batches)
            log.info("resumed from step %d", int(state.step))
        return _loop(config, workdir, manager, train_step, state, frozen, batches, captions, mesh)


def _loop(
    config: Config,
    workdir: Path,
    manager: CheckpointManager,
    train_step: jax.stages.Wrapped,
    state: State,
    frozen: dict,
    batches: Iterator[dict[str, Any]],
    captions: ClassCaptions | None,
    mesh: Mesh,
) -> State:
    """From the step of `state` to the last; the checkpoints are on disk when it returns."""
    first, last = int(state.step), config.train.num_steps
    writer, averages = MetricWriter(workdir, first), Averages()
    progress = Progress(last, first, config.train.batch_size)

    def report(step: int) -> None:
        scalars = averages.compute()
        scalars |= progress.report(step, scalars)
        writer.write_scalars(step, scalars)
        writer.flush()
        if bad := [key for key, value in scalars.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"{', '.join(bad)} not finite in the steps up to {step} (see metrics.jsonl); "
                "lower config.train.learning_rate or config.train.clip_norm and start from an earlier checkpoint"
            )

    due = None  # the step to report next
    with _StopSignal() as stop:
        for step in range(first + 1, last + 1):
            batch = next(batches)
            batch = put_batch(captions.add_rows(batch) if captions else batch, mesh)
            with jax.transfer_guard("disallow"):
                state, scalars = train_step(state, frozen, batch)
            if due is not None:  # one step late, so that fetching never leaves the device idle
                report(due)
            averages.add(scalars)
            progress.tick(step)
            stopping = stop.asked  # read once: a signal from here on ends the next step
            saving = step % config.train.checkpoint_every_steps == 0 or step == last or stopping
            due = step if step % config.train.log_every_steps == 0 else None
            if saving:  # after its report, so that no checkpoint has a loss that is not finite
                report(step)
                due = None
                checkpoints.save(manager, step, state, batches)
            if stopping:
                break
        progress.close()
        writer.close()
        checkpoints.wait(manager)  # here, where a second signal does not cut it short
    if int(state.step) < last:
        log.warning("stopped at step %d by a signal; the same command resumes from there", int(state.step))
        raise KeyboardInterrupt
    return state


class _StopSignal:
    """SIGTERM and Ctrl-C request a checkpoint and a clean end after the current step."""

    asked = False

    def __enter__(self) -> "_StopSignal":
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
