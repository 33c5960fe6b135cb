"""Training, top to bottom: mesh, model, shard, step, restore, loop."""

import logging
import math
import signal
from pathlib import Path

import jax
from clu import parameter_overview

from kaleido_jax.config.checks import check_devices, mesh_sizes
from kaleido_jax.config.schema import Config
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.models.kaleido import build_model, count_params
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.mesh import batch_sharding, make_mesh, put_batch, replicated
from kaleido_jax.runtime.xla_flags import warn_of_wrong_reductions
from kaleido_jax.train.caption_cache import class_captions, encode_once
from kaleido_jax.train.metrics import Averages, MetricWriter, Progress
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import State, create_state
from kaleido_jax.train.step import make_train_step

log = logging.getLogger(__name__)


def train(config: Config, workdir: Path, tokenizer: Tokenizer, batches) -> State:
    """Trains to config.train.num_steps, from the latest checkpoint of the workdir if it has one.

    Args:
      config: the experiment.
      workdir: receives metrics.jsonl, events and checkpoints.
      tokenizer: for the sizes of the token tables.
      batches: a Grain iterator of numpy batches (this process's rows); its state is in the checkpoints.

    Returns:
      The final state.

    Raises:
      UserError: sizes that do not fit the devices, before anything compiles.
      FloatingPointError: a loss is not finite; metrics.jsonl then holds the evidence.
    """
    # ---------------------------------------------------------------- mesh and model
    check_devices(config, jax.device_count())
    warn_of_wrong_reductions(jax.default_backend())
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()))
    model = build_model(config, tokenizer.base_vocab_size)
    optimizer = make_optimizer(config.train)

    # ---------------------------------------------------------------- state, born sharded
    manager = checkpoints.open_manager(workdir, keep=config.train.keep_checkpoints)
    fresh = manager.latest_step() is None
    state, frozen, (state_shardings, frozen_shardings) = create_state(config, model, optimizer, mesh, pretrained=fresh)
    (workdir / "parameters.txt").write_text(
        parameter_overview.get_parameter_overview(state.params, include_stats=False)
    )
    log.info("%.2fM trainable, %.2fM frozen parameters", count_params(state.params) / 1e6, count_params(frozen) / 1e6)

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

    # ---------------------------------------------------------------- restore
    restored = checkpoints.restore(manager, checkpoints.abstract(state, state_shardings), batches)
    if restored is not None:
        state, batches = restored
        log.info("resumed from step %d", int(state.step))
    first, last = int(state.step), config.train.num_steps

    # ---------------------------------------------------------------- loop
    writer = MetricWriter(workdir, first)
    progress = Progress(last, first, config.train.batch_size)
    averages, due = Averages(), None

    def report(step):
        scalars = averages.compute()
        scalars |= progress.report(step, scalars)
        writer.write_scalars(step, scalars)
        writer.flush()
        _check_finite(step, scalars)

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
            due = step if step % config.train.log_every_steps == 0 or step == last or stop.asked else None
            if step % config.train.checkpoint_every_steps == 0 or step == last or stop.asked:
                checkpoints.save(manager, step, state, batches)
            if stop.asked:
                break
        if due is not None:
            report(due)
        progress.close()
        writer.close()
        manager.wait_until_finished()
        manager.close()
    if stop.asked and int(state.step) < last:
        log.warning("stopped at step %d as asked; the same command goes on from here", int(state.step))
        raise KeyboardInterrupt
    return state


def finished(workdir: Path, config: Config) -> bool:
    """Whether the workdir already holds the last checkpoint of this config."""
    if not (workdir / "checkpoints").is_dir():
        return False
    with checkpoints.open_manager(workdir) as manager:
        return (manager.latest_step() or 0) >= config.train.num_steps


def _check_finite(step, scalars):
    bad = [key for key, value in scalars.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"{', '.join(bad)} not finite in the steps up to {step} (see metrics.jsonl); "
            "lower config.train.learning_rate or config.train.clip_norm and start from an earlier checkpoint"
        )


class _StopSignal:
    """SIGTERM and Ctrl-C ask for a checkpoint and a clean end after the step in hand."""

    asked = False

    def __enter__(self):
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, *_):
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
