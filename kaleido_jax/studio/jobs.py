"""Jobs of the studio: one bounded queue, one worker thread, the news of each job, and its end.

The worker calls `Work`; pages listen. A job keeps only the last news of each kind, so a slow or reconnecting page never
makes anything grow.
"""

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

from kaleido_jax.errors import UserError, user_error

log = logging.getLogger(__name__)

WAITING, WAITING_EACH = 24, 8  # jobs that may wait: of all sessions, of one
KEPT = 8  # finished jobs that are kept for each session
SESSIONS = 64  # the one that was quiet for longest is forgotten
ABANDONED_SEC = 20.0  # without a page that listens, after it had one
FINAL = ("done", "failed", "cancelled")

News = tuple[str, dict[str, Any]]  # kind, data


class OtherModel(UserError):
    """The page was loaded before the server came back with other weights; only a reload helps."""


class Cancelled(Exception):
    """The job was cancelled; raised in the worker at its next step."""


class Busy(Exception):
    """The queue is full; the text says so."""


class Job:
    """One request, its news and whether it is to go on. Methods may be called from any thread."""

    def __init__(self, session: str, request: Any, weights: str = "") -> None:
        """`weights` are those of the model that the page shows; "" of whichever is there."""
        self.id, self.session, self.request, self.weights = secrets.token_urlsafe(12), session, request, weights
        self._lock = threading.Lock()
        self._news: dict[str, tuple[int, dict[str, Any]]] = {}
        self._count = 0
        self._listeners: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._quiet_since: float | None = None
        self._cancelled = threading.Event()

    def tell(self, kind: str, **data: Any) -> None:
        """Replaces the news of this kind; after a final one nothing is told any more."""
        with self._lock:
            if any(final in self._news for final in FINAL):
                return
            self._count += 1
            self._news[kind] = self._count, data
            for event, loop in self._listeners.items():  # under the lock: a listener that has left may close its loop
                loop.call_soon_threadsafe(event.set)

    @property
    def is_over(self) -> bool:
        """Whether final news were told."""
        with self._lock:
            return any(kind in self._news for kind in FINAL)

    def cancel(self) -> None:
        """Ends a running job at its next step; one that waits is ended by `Jobs.cancel`."""
        self._cancelled.set()

    def check(self) -> None:
        """Raises Cancelled if the job is not to go on."""
        with self._lock:
            quiet = not self._listeners and self._quiet_since is not None
            abandoned = quiet and time.monotonic() - self._quiet_since > ABANDONED_SEC
        if abandoned or self._cancelled.is_set():
            raise Cancelled

    async def news(self) -> AsyncIterator[News]:
        """What is known, then what comes, until a final one; older news of a kind are skipped."""
        event, seen = asyncio.Event(), 0
        with self._lock:
            self._listeners[event] = asyncio.get_running_loop()
        try:
            while True:
                event.clear()
                with self._lock:
                    fresh = sorted((n, kind, data) for kind, (n, data) in self._news.items() if n > seen)
                for count, kind, data in fresh:
                    seen = count
                    yield kind, data
                    if kind in FINAL:
                        return
                await event.wait()
        finally:
            with self._lock:
                del self._listeners[event]
                self._quiet_since = time.monotonic()


class Jobs:
    """The queue, its worker thread, and the jobs of each session."""

    def __init__(self, work: Callable[[Job], dict[str, Any]], prepare: Callable[[], None] = lambda: None) -> None:
        """`work` gives the result of a job; it raises UserError for bad input, and calls job.check() often.

        `prepare` is called once in the worker before the first job.
        """
        self._work, self._prepare = work, prepare
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._waiting: OrderedDict[str, Job] = OrderedDict()
        self._sessions: OrderedDict[str, OrderedDict[str, Job]] = OrderedDict()

    def start(self) -> None:
        """Starts the worker, which ends with the process."""
        threading.Thread(target=self._run, name="studio", daemon=True).start()

    def add(self, session: str, request: Any, weights: str = "") -> Job:
        """A new job behind the others.

        Raises:
          Busy: too many wait.
        """
        job = Job(session, request, weights)
        with self._lock:
            own = sum(other.session == session for other in self._waiting.values())
            if len(self._waiting) >= WAITING or own >= WAITING_EACH:
                raise Busy(f"busy: {len(self._waiting)} requests wait already; try again when one is done")
            jobs = self._sessions.setdefault(session, OrderedDict())
            self._sessions.move_to_end(session)
            jobs[job.id] = job
            self._forget(jobs)
            self._waiting[job.id] = job
            job.tell("queued", position=len(self._waiting) - 1)
        self._queue.put(job)
        return job

    def get(self, session: str, job_id: str) -> Job | None:
        """A job of this session."""
        with self._lock:
            return self._sessions.get(session, {}).get(job_id)

    def cancel(self, job: Job) -> None:
        """Ends a job: at once if it waits, at its next step if it runs."""
        job.cancel()
        with self._lock:
            waits = self._waiting.pop(job.id, None) is not None
        if waits:
            job.tell("cancelled")
            self._tell_positions()

    def _forget(self, jobs: OrderedDict[str, Job]) -> None:
        over = [job_id for job_id, job in jobs.items() if job.is_over]
        for job_id in over[: max(len(over) - KEPT, 0)]:
            del jobs[job_id]
        for session in list(self._sessions)[: max(len(self._sessions) - SESSIONS, 0)]:
            for job in self._sessions.pop(session).values():
                job.cancel()

    def _run(self) -> None:
        try:
            self._prepare()
        except Exception:  # noqa: BLE001  requests are still answered, by what `work` makes of it
            log.exception("the studio could not start")
        while True:
            job = self._queue.get()
            with self._lock:
                waited = self._waiting.pop(job.id, None) is not None
            if waited:
                self._tell_positions()
                self._finish(job)

    def _tell_positions(self) -> None:
        with self._lock:  # also while telling, or another thread's older positions might be told last
            for position, job in enumerate(self._waiting.values()):
                job.tell("queued", position=position + 1)

    def _finish(self, job: Job) -> None:
        try:
            job.check()
            job.tell("done", **self._work(job))
        except Cancelled:
            job.tell("cancelled")
        except OtherModel as error:
            job.tell("failed", message=str(error), reload=True)
        except (UserError, FloatingPointError) as error:
            job.tell("failed", message=str(error))
        except Exception:  # noqa: BLE001  the worker must live; the reason is told and in the log
            log.exception("a request failed")
            job.tell("failed", message=str(user_error("an error inside", "a result", "see the terminal")))
