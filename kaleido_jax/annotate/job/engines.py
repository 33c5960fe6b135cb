"""Engines of the annotation job: this process, a pool of processes, or a Ray cluster. All run the same make_shard.

Models stay loaded: each worker opens the job once and then makes one shard after another.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from kaleido_jax.annotate.job.shards import Advance, Job, Place, Stopped, close_job, make_shard, open_job
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.signals import kept_from_children

RETRIES = 3  # how often Ray restarts a dead worker before the job gives up
_POLL_SEC = 1.0  # between updates of the progress
_GO_ON, _STOP, _END = 0, 1, 2  # what workers of a pool are told: stop after the batch in hand, end at once
_AGAIN = "start the job again, finished images are kept; with less memory a worker, lower annotate.num_workers"


Shards = Mapping[Place, Sequence[int]]  # indices of the examples of each
Made = tuple[Place, dict[str, Any]]
Asked = Callable[[], bool]


@runtime_checkable
class Engine(Protocol):
    """Makes shards; used as a context manager, so that its workers end with it."""

    def specification(self) -> str:
        """The job's hash, from a worker: only workers have the annotators loaded."""
        ...

    def make(self, shards: Shards, advance: Advance, asked: Asked) -> Iterator[Made]:
        """(shard, content of the .json beside it) as they finish, in any order.

        Raises:
          Stopped: `asked` says that the user wants to stop; batches in hand are finished before.
        """
        ...


# ------------------------------------------------------------------------------------------- this process
class InProcess:
    """One shard after another, in this process."""

    def __init__(self, job: Job) -> None:
        """Loads nothing yet."""
        self._job = job

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        close_job()

    def specification(self) -> str:
        """The job's hash."""
        return open_job(self._job).specification

    def make(self, shards: Shards, advance: Advance, asked: Asked) -> Iterator[Made]:
        """Shards in their order."""

        def step(done: int) -> None:
            advance(done)
            if asked():
                raise Stopped

        for place, indices in shards.items():
            yield place, make_shard(self._job, place, indices, step)


# --------------------------------------------------------------------------------------------- local pool
class LocalPool:
    """A pool of processes, spawned, since a forked JAX can hang."""

    def __init__(self, job: Job, num_workers: int) -> None:
        """Starts no process yet."""
        spawn = multiprocessing.get_context("spawn")
        self._count, self._told, self._stopped = spawn.Value("q", 0), spawn.Value("b", _GO_ON), False
        self._pool = ProcessPoolExecutor(
            num_workers, mp_context=spawn, initializer=_start_worker, initargs=(job, self._count, self._told)
        )

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error, shards in hand are left to their journals. Idle workers end by themselves.
        if kind is not None and not self._stopped:
            self._told.value = _END if issubclass(kind, KeyboardInterrupt) else _STOP
        self._pool.shutdown(wait=True, cancel_futures=True)

    def specification(self) -> str:
        """The job's hash, from one worker."""
        try:
            with kept_from_children(signal.SIGINT):  # the pool ends its workers by SIGTERM
                asked = self._pool.submit(_worker_specification)
            return asked.result()
        except BrokenProcessPool as error:
            raise _worker_died() from error

    def make(self, shards: Shards, advance: Advance, asked: Asked) -> Iterator[Made]:
        """Shards as they finish.

        Raises:
          Stopped: the user asked for it.
          UserError: a worker was killed, e.g. for its memory.
        """
        with kept_from_children(signal.SIGINT):
            waiting = {self._pool.submit(_worker_make, place, indices): place for place, indices in shards.items()}
        counted = 0
        while waiting:
            done, _ = wait(waiting, timeout=_POLL_SEC, return_when=FIRST_COMPLETED)
            counted = _advance_to(advance, counted, self._count.value)
            if asked() and self._told.value == _GO_ON:
                self._told.value = _STOP
                waiting = {future: place for future, place in waiting.items() if not future.cancel()}
            for future in done & waiting.keys():
                place = waiting.pop(future)
                try:
                    yield place, future.result()
                except Stopped:
                    continue
                except BrokenProcessPool as error:
                    raise (Stopped() if asked() else _worker_died()) from error
        if asked():
            self._stopped = True
            raise Stopped


_WORKER: dict[str, Any] = {}  # the job of this worker process, the counter it shares and what it is told


def _start_worker(job: Job, count: Any, told: Any) -> None:
    _WORKER.update(job=job, count=count, told=told)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    while _WORKER["told"].value != _END:
        time.sleep(_POLL_SEC / 4)
    os._exit(1)


def _end_with_parent() -> None:
    # A killed parent cannot end its pool, whose workers would then wait for work forever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _worker_specification() -> str:
    return open_job(_WORKER["job"]).specification


def _worker_make(place: Place, indices: Sequence[int]) -> dict[str, Any]:
    return make_shard(_WORKER["job"], place, indices, _count_images)


def _count_images(done: int) -> None:
    with _WORKER["count"].get_lock():
        _WORKER["count"].value += done
    if _WORKER["told"].value != _GO_ON:
        raise Stopped


def _worker_died() -> UserError:
    return user_error("a worker process was killed", "all of them alive to the end", _AGAIN)


# ---------------------------------------------------------------------------------------------------- Ray
class RayWorker:
    """The actor: one job with its models, on any machine that Ray chooses."""

    def __init__(self, job: Job) -> None:
        """Runs again after a restart."""
        self._job, self._done, self._stopping = job, 0, False

    def specification(self) -> str:
        """The job's hash."""
        return open_job(self._job).specification

    def make(self, place: Place, indices: Sequence[int]) -> dict[str, Any] | None:
        """One shard; None if it was stopped."""
        try:
            return make_shard(self._job, place, indices, self._advance)
        except Stopped:
            return None

    def stop(self) -> None:
        """Ends make() after the batch in hand."""
        self._stopping = True

    def images_done(self) -> int:
        """Since the actor's start; answered while make() runs."""
        return self._done

    def process_id(self) -> int:
        """Of the actor on its machine."""
        return os.getpid()

    def _advance(self, done: int) -> None:
        self._done += done
        if self._stopping:
            raise Stopped


class RayCluster:
    """Actors on a Ray cluster; dead ones are restarted and make their shard again.

    The job's folder, the data and the weights must be at the same paths on every machine, and the package installed.
    """

    def __init__(self, job: Job, *, address: str | None, num_workers: int, num_cpus: float, num_gpus: float) -> None:
        """Connects, and requests the workers.

        Args:
          job: what to make.
          address: of the cluster, e.g. "auto" or "ray://head:10001"; None starts a local one.
          num_workers: actors; at least one is started.
          num_cpus: that each holds.
          num_gpus: that each holds; may be a fraction.

        Raises:
          UserError: ray is not installed, or there is no cluster at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise user_error("annotate.engine = 'ray' without ray", "the package", "pip install 'ray>=2.50'") from error
        self._ray, self._ours = ray, not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
            except (ConnectionError, ValueError, RuntimeError) as error:
                found = f"no Ray cluster at {address!r} ({' '.join(str(error).split())})"
                raise user_error(found, "its address", "set annotate.ray_address") from error
        worker = ray.remote(RayWorker).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=RETRIES, max_task_retries=RETRIES, max_concurrency=2
        )
        self._job = ray.put(job)  # kept as long as an actor may be restarted with it
        self._actors = [worker.remote(self._job) for _ in range(max(1, num_workers))]

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()

    @property
    def actors(self) -> list[Any]:
        """Handles of the actors."""
        return list(self._actors)

    def specification(self) -> str:
        """The job's hash, from one actor."""
        return self._get(self._actors[0].specification.remote())

    def make(self, shards: Shards, advance: Advance, asked: Asked) -> Iterator[Made]:
        """Shards as they finish; each actor makes one at a time.

        Raises:
          Stopped: the user asked for it.
          UserError: an actor died more than RETRIES times.
        """
        todo, idle, running = list(shards.items())[::-1], list(self._actors), {}
        finished_images = counted = 0
        stopping = False
        while running or (todo and not stopping):
            while todo and idle and not stopping:
                actor, (place, indices) = idle.pop(), todo.pop()
                running[actor.make.remote(place, indices)] = (actor, place)
            done, _ = self._ray.wait(list(running), num_returns=1, timeout=_POLL_SEC)
            for reference in done:
                actor, place = running.pop(reference)
                idle.append(actor)
                notes = self._get(reference)
                if notes is not None:
                    finished_images += len(shards[place])
                    yield place, notes
            counted = _advance_to(advance, counted, max(finished_images, self._images_done()))
            if asked() and not stopping:
                stopping = True
                for actor in self._actors:
                    actor.stop.remote()
        if stopping:
            raise Stopped

    def _images_done(self) -> int:
        # An actor that is restarting answers later: it counts with its next shard.
        asked = [actor.images_done.remote() for actor in self._actors]
        ready, _ = self._ray.wait(asked, num_returns=len(asked), timeout=_POLL_SEC)
        try:
            return sum(self._ray.get(ready))
        except self._ray.exceptions.RayActorError:
            return 0

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayActorError as error:
            found = f"a Ray worker that died {RETRIES + 1} times"
            raise user_error(found, "one that finishes a shard", "see Ray's log, then start again") from error


def _advance_to(advance: Advance, counted: int, count: int) -> int:
    if count > counted:
        advance(count - counted)
    return max(count, counted)


def open_engine(
    job: Job, *, engine: str, num_workers: int, ray_address: str | None, worker_cpus: float, worker_gpus: float
) -> InProcess | LocalPool | RayCluster:
    """The engine that a config names: "local" (0 workers: this process) or "ray"."""
    if engine == "ray":
        return RayCluster(job, address=ray_address, num_workers=num_workers, num_cpus=worker_cpus, num_gpus=worker_gpus)
    return LocalPool(job, num_workers) if num_workers else InProcess(job)
