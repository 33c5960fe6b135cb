"""Training loop, top to bottom: mesh, model, state, step, restore, loop."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from orbax.checkpoint import AsyncCheckpointer, CheckpointManager

from kaleido_jax.config.checks import check_devices, mesh_sizes
from kaleido_jax.config.schema import Config
from kaleido_jax.config.stored import open_workdir
from kaleido_jax.data.loader import BatchIterator
from kaleido_jax.errors import Terminated, user_error
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.models.flops import flops_at
from kaleido_jax.models.kaleido import build_model, count_params
from kaleido_jax.runtime import checkpoints, distributed
from kaleido_jax.runtime.accelerators import accelerator
from kaleido_jax.runtime.compile_times import compiling
from kaleido_jax.runtime.mesh import batch_sharding, make_mesh, put_batch, replicated
from kaleido_jax.runtime.signals import StopSignal
from kaleido_jax.runtime.xla_flags import warn_of_wrong_reductions
from kaleido_jax.train.caption_cache import ClassCaptions, class_captions, encode_once
from kaleido_jax.train.guard import Watch
from kaleido_jax.train.metrics import Averages, MetricWriter, NoWriter, Progress, Stopwatch
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import State, create_state
from kaleido_jax.train.step import make_train_step
from kaleido_jax.train.watching import Looks

log = logging.getLogger(__name__)

_RESUMES = "the same command resumes from there"
_FINISHED = "training is finished, and the same command goes on with what follows it"
_END_SEC = 3600  # from the first process whose last checkpoint is on disk to the last


def train(config: Config, workdir: Path, tokenizer: Tokenizer, batches: BatchIterator) -> State:
    """Trains to config.train.num_steps, from the newest whole checkpoint of the workdir if it has one.

    Args:
      config: the experiment.
      workdir: receives config.json after the first step, metrics.jsonl, events, checkpoints, ema_snapshots and
        skipped.jsonl.
      tokenizer: gives the sizes of the token tables.
      batches: numpy batches (this process's rows); checkpoints hold the place of the next one.

    Returns:
      The final state.

    Raises:
      UserError: the sizes do not fit the devices (before anything compiles), a checkpoint cannot be read or written, or
        too many records cannot be read.
      FloatingPointError: config.train.max_skipped_steps in a row had no finite gradient; skipped.jsonl names their
        samples.
      KeyboardInterrupt: stopped after saving; Terminated by SIGTERM, Aborted by a second Ctrl-C, without saving.
    """
    with StopSignal() as stop, contextlib.closing(batches):
        # ------------------------------------------------------------ mesh and model
        check_devices(config, jax.device_count())
        warn_of_wrong_reductions(jax.default_backend())
        mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)
        model = build_model(config, tokenizer.base_vocab_size)
        optimizer = make_optimizer(config.train)

        # ------------------------------------------------------------ state, born sharded
        # Otherwise only shapes, which the checkpoint fills.
        fresh = distributed.tell("fresh", lambda: not checkpoints.steps_of(workdir), distributed.START_SEC)
        state, frozen, (state_shardings, frozen_shardings) = create_state(config, model, optimizer, mesh, fresh)
        overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
        if distributed.is_main():
            (workdir / "parameters.txt").write_text(overview)
        trainable, others = count_params(state.params), count_params(frozen)
        log.info("%.2fM trainable, %.2fM frozen parameters", trainable / 1e6, others / 1e6)

        captions = class_captions(config, tokenizer)
        if captions:
            frozen, frozen_shardings = encode_once(captions, model, frozen, mesh)

        # ------------------------------------------------------------ step
        train_step = jax.jit(
            make_train_step(model, config, optimizer, mesh),
            in_shardings=(state_shardings, frozen_shardings, batch_sharding(mesh)),
            out_shardings=(state_shardings, replicated(mesh)),
            donate_argnums=0,
        )

        # ------------------------------------------------------------ restore, then loop
        settings = checkpoints.Settings(config.train.keep_checkpoints, config.train.keep_every_steps)
        snapshots = checkpoints.open_snapshots(workdir) if config.train.ema_profiles else contextlib.nullcontext()
        with checkpoints.open_manager(workdir, settings) as manager, snapshots as writer:
            if not fresh:
                state = checkpoints.restore(manager, state, batches)
                log.info("resumed from step %d", int(state.step))
            looks = Looks(config, workdir, model, captions, mesh) if config.eval.every_steps else None
            fixed = train_step, frozen, captions, mesh, tokenizer.base_vocab_size, looks
            return _Run(config, workdir, manager, writer, *fixed)(state, batches, stop)


class _Run:
    """The loop and what does not change in it."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        manager: CheckpointManager,
        snapshots: AsyncCheckpointer | None,
        train_step: jax.stages.Wrapped,
        frozen: dict,
        captions: ClassCaptions | None,
        mesh: Mesh,
        base_vocab_size: int,
        looks: Looks | None,
    ) -> None:
        self.config, self.train, self.workdir, self.manager = config, config.train, workdir, manager
        self.step, self.frozen, self.captions, self.mesh = train_step, frozen, captions, mesh
        self.base_vocab_size, self.looks, self.snapshots = base_vocab_size, looks, snapshots
        self.alone, self.profiling = jax.process_count() == 1, False
        self.ending, self.lost = False, None  # while the last checkpoint is written; why it was not
        self.averages = Averages()
        self.shapes: dict[tuple, int] = {}  # of batches whose step is compiled -> its FLOPs
        self.flops = 0  # of the step that was dispatched last
        known = accelerator(jax.devices()[0].device_kind)
        self.stopwatch = Stopwatch(known and jax.device_count() * known.tflops)

    def __call__(self, state: State, batches: BatchIterator, stop: StopSignal) -> State:
        """From the step of `state` to the last; the checkpoints are on disk when it returns."""
        first, last = int(state.step), self.train.num_steps
        limits = self.train.max_skipped_steps, self.config.data.max_bad_share
        self.watch = Watch(self.workdir, *limits, self.train.full_disk, first)
        self.writer = MetricWriter(self.workdir, first, self.config) if distributed.is_main() else NoWriter()
        self.progress = Progress(last, first, self.train.batch_size)
        due = None  # the step to report next
        for step in range(first + 1, last + 1):
            if self.alone and stop.asked and step == first + 1:
                break  # while it was restored: what is on disk is the newest
            if step == first + 1:
                self._make_up_look(first, state)
            self._profile(step)
            batch = self._next_batch(batches, stop)
            state, scalars = self._dispatch(state, batch)
            if step == first + 1 and distributed.is_main():
                open_workdir(self.config, self.workdir)  # only now: a step that cannot run must not claim it
            if due is not None:  # one step late, so that fetching never leaves the device idle
                self._report(due)
            self.averages.add(scalars)
            self.stopwatch.count(self.flops)  # after the report of the step before
            agreed = self.watch.add(step, batch, scalars)
            self.progress.tick(step)
            # Read once: a signal from here on ends the next step. Several processes stop when all know of it.
            stopping = stop.asked if self.alone else agreed
            saving = step % self.train.checkpoint_every_steps == 0 or step == last or stopping
            due = step if step % self.train.log_every_steps == 0 else None
            self._take_snapshot(step, state)
            if saving:
                self._report(step)
                due = None
                self._save(step, state, batches, last=step == last or stopping)
            if stopping and step < last:  # without a look, which may take minutes: the resumed run makes up for it
                break
            if stopping:
                self._wait()  # before the last look, in which somebody may press again
            self._look(step, state)
        self.watch.finish()
        self.progress.close()
        self.writer.close()
        self._end_profile()
        self._wait()  # here, where a second signal does not cut it short
        batches.close()  # takes seconds, in which a signal may come too
        error = _stop_of_all(stop)
        self._check_last(int(state.step))
        if error:
            log.warning(
                "stopped at step %d by a signal; %s", int(state.step), _RESUMES if int(state.step) < last else _FINISHED
            )
            raise error
        return state

    def _next_batch(self, batches: BatchIterator, stop: StopSignal) -> dict[str, np.ndarray]:
        with self.stopwatch("data"):
            batch = next(batches)
            batch = self.captions.add_rows(batch) if self.captions else batch
        if not self.alone:  # a sum over all rows tells every process whether one of them was asked to stop
            batch["stop"] = np.full(len(batch["image"]), stop.asked, np.float32)
        return batch

    def _dispatch(self, state: State, batch: dict[str, np.ndarray]) -> tuple[State, dict[str, jax.Array]]:
        placed = put_batch(batch, self.mesh)
        shape = tuple(value.shape for value in batch.values())
        if shape not in self.shapes:
            self._compile(state, placed)
            self.shapes[shape] = flops_at(self.config, self.base_vocab_size, *_lengths(placed)).model
        self.flops = self.shapes[shape]
        with jax.transfer_guard("disallow"):
            state, scalars = self.step(state, self.frozen, placed)
        if not self.alone and jax.default_backend() == "cpu":  # where collectives of two steps may wait for each other
            jax.block_until_ready(scalars)
        return state, scalars

    def _compile(self, state: State, placed: dict[str, jax.Array]) -> None:
        start = time.monotonic()
        what = f"the training step for {' and '.join(map(str, _lengths(placed)))} tokens"
        shapes = {name: value.shape for name, value in placed.items()}
        made_of = self.config.model, self.config.diffusion, self.config.train, self.mesh.shape, shapes
        with self.stopwatch("compile"), compiling(what, *made_of):
            distributed.compile_together(self.step, state, self.frozen, placed)
        self.progress.leave_out(time.monotonic() - start)

    def _report(self, step: int) -> None:
        scalars = {key: value for key, value in self.averages.compute().items() if key not in ("rows", "stop")}
        scalars |= self.progress.report(step, scalars) | self.stopwatch.shares()
        self.writer.write_scalars(step, scalars)
        self.writer.flush()

    def _look(self, step: int, state: State) -> None:
        if self.looks is not None and step % self.config.eval.every_steps == 0:
            with self.stopwatch("evaluation"):
                self.writer.write_scalars(step, self.looks(step, state.ema, self.frozen))
            self.writer.flush()

    def _make_up_look(self, step: int, state: State) -> None:
        """At the step from which a run resumes, if the one before saved it and ended before its look."""
        if self.looks is None or not step or step % self.config.eval.every_steps:
            return
        if distributed.tell("look", lambda: self.looks.lacks(step), distributed.START_SEC):
            self._look(step, state)

    def _save(self, step: int, state: State, batches: BatchIterator, *, last: bool) -> None:
        with self.stopwatch("checkpoint"):
            self._wait()
            self.ending = last
            with self._on_full_disk():
                checkpoints.save(self.manager, step, state, batches)

    def _take_snapshot(self, step: int, state: State) -> None:
        """Before the checkpoint of the same step, so that a run which resumes there lacks none."""
        every = self.train.ema_snapshot_every_steps or self.train.checkpoint_every_steps
        if self.snapshots is None or (step % every and step < self.train.num_steps):
            return
        with self.stopwatch("checkpoint"):
            self._wait()
            with self._on_full_disk():
                checkpoints.save_snapshot(self.snapshots, self.workdir, step, state.profiles)

    def _wait(self) -> None:
        with self._on_full_disk():
            checkpoints.wait(self.manager)
        if self.snapshots is not None:
            with self._on_full_disk():
                checkpoints.wait_for_snapshot(self.snapshots, self.workdir)

    @contextlib.contextmanager
    def _on_full_disk(self) -> Iterator[None]:
        try:
            yield
        except checkpoints.NotWritten as error:
            if self.train.full_disk == "stop" or not error.full_disk:
                raise
            if self.ending:  # told at the end, when the metrics are written
                self.lost = error
            else:
                log.warning("%s; training goes on as config.train.full_disk says", error)

    def _check_last(self, step: int) -> None:
        """Checks that the checkpoint of the last step was written: whatever full_disk says, nothing makes up for it.

        Raises:
          UserError: it was not, in one of the processes.
        """
        if distributed.agree("the last checkpoint", self.lost is None, _END_SEC):
            return
        why = checkpoints.reason(self.lost.__cause__) if self.lost else "another process lacks room for it"
        held = max(checkpoints.steps_of(self.workdir), default=0)
        goes_on = f"goes on from step {held}, the newest on disk" if held else "starts anew, since none is on disk"
        raise user_error(
            f"the checkpoint of step {step}, the last, is not written ({why})",
            "free space",
            f"provide it; the same command then {goes_on}",
        )

    def _profile(self, step: int) -> None:
        """Starts and ends the profile of config.train.profile_steps."""
        if not self.train.profile_steps:
            return
        begin, count = self.train.profile_steps
        if step == begin:
            jax.profiler.start_trace(self.workdir / "profile")
            self.profiling = True
        elif step == begin + count:
            self._end_profile()

    def _end_profile(self) -> None:
        if self.profiling:
            jax.profiler.stop_trace()
            self.profiling = False
            log.info("profile: %s", self.workdir / "profile")


def _stop_of_all(stop: StopSignal) -> KeyboardInterrupt | None:
    """What ends all processes alike, whichever of them got a signal; None without any."""
    asked = not distributed.agree("no stop", not stop.asked, _END_SEC)
    terminated = not distributed.agree("no SIGTERM", not stop.terminated, _END_SEC)
    return Terminated() if terminated else KeyboardInterrupt() if asked else None


def _lengths(batch: dict[str, jax.Array]) -> tuple[int, int]:
    """Bucket lengths of captions and latents; 0 without any."""
    latents = batch["decoder_input_tokens"].shape[1] if "decoder_input_tokens" in batch else 0
    return batch["encoder_input_tokens"].shape[1], latents
