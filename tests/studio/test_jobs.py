"""The queue: its bounds, sessions, cancelling and news."""

import asyncio
import threading
import time

import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.studio import jobs
from kaleido_jax.studio.jobs import Busy, Jobs, OtherModel


def news_of(job):
    async def all_news():
        return [kind async for kind, _ in job.news()]

    return asyncio.run(all_news())


@pytest.fixture
def gate():
    return threading.Event()


@pytest.fixture
def queue(gate):
    def work(job):
        while not gate.wait(0.01):
            job.check()
        if isinstance(job.request, Exception):
            raise job.request
        job.tell("progress", step=1)
        return {"answer": job.request}

    made = Jobs(work)
    made.start()
    return made


def test_a_result_and_errors_end_a_job(queue, gate):
    gate.set()
    assert news_of(queue.add("s", 1))[-1] == "done"
    assert news_of(refused := queue.add("s", UserError("no")))[-1] == "failed"
    assert refused._news["failed"][1] == {"message": "no"}
    assert news_of(other := queue.add("s", OtherModel("reload")))[-1] == "failed"
    assert other._news["failed"][1] == {"message": "reload", "reload": True}
    failed = queue.add("s", ZeroDivisionError("a secret"))
    assert news_of(failed)[-1] == "failed" and "secret" not in str(failed._news)
    assert news_of(queue.add("s", 2))[-1] == "done"  # the worker lives on
    again = news_of(failed)
    assert again[-1] == "failed"  # a page that comes back gets the end again


def test_both_bounds_of_the_queue(queue, gate):
    first = queue.add("a", 0)
    while "queued" not in first._news or queue._waiting:
        time.sleep(0.01)
    for _ in range(jobs.WAITING_EACH):
        queue.add("a", 0)
    with pytest.raises(Busy, match="busy"):
        queue.add("a", 0)
    count = jobs.WAITING_EACH
    for session in map(str, range(100)):
        try:
            queue.add(session, 0)
            count += 1
        except Busy:
            break
    assert count == jobs.WAITING
    gate.set()
    assert news_of(first)[-1] == "done"


def test_a_cancelled_job_ends_whether_it_waits_or_runs(queue, gate):
    running, waiting, other = queue.add("a", 0), queue.add("a", 1), queue.add("a", 2)
    while running.id in queue._waiting:
        time.sleep(0.01)
    queue.cancel(waiting)
    assert news_of(waiting)[-1] == "cancelled" and not running.is_over  # at once, though the other still runs
    assert other._news["queued"][1] == {"position": 1}
    queue.cancel(running)
    assert news_of(running)[-1] == "cancelled"
    gate.set()
    assert news_of(other)[-1] == "done"


def test_the_last_position_that_is_told_is_the_newest(monkeypatch):
    tell = jobs.Job.tell

    def slowly(self, kind, **data):
        if threading.current_thread().name == "studio" and kind == "queued":
            time.sleep(0.2)  # as on a busy machine
        tell(self, kind, **data)

    monkeypatch.setattr(jobs.Job, "tell", slowly)
    told = threading.Event()
    made = Jobs(lambda job: {"in_time": told.wait(60)})
    running, waiting, other = (made.add("a", i) for i in range(3))
    made.start()
    while running.id in made._waiting:
        time.sleep(0.001)
    made.cancel(waiting)
    told.set()  # before, the other job would begin without a position
    assert news_of(other)[-1] == "done" and other._news["queued"][1] == {"position": 1}


def test_a_job_that_nobody_listens_to_any_more_ends(queue, monkeypatch):
    monkeypatch.setattr(jobs, "ABANDONED_SEC", 0.05)
    job = queue.add("a", 0)

    async def look_away():
        listening = job.news()
        await anext(listening)
        await listening.aclose()

    asyncio.run(look_away())
    deadline = time.monotonic() + 60
    while not job.is_over and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "cancelled" in job._news


def test_sessions_are_apart_and_bounded(queue, gate):
    gate.set()
    job = queue.add("a", 0)
    assert queue.get("a", job.id) is job and queue.get("b", job.id) is None
    news_of(job)
    for _ in range(3 * jobs.KEPT):
        news_of(queue.add("a", 0))
    assert len(queue._sessions["a"]) <= jobs.KEPT + 1
    for i in range(2 * jobs.SESSIONS):
        news_of(queue.add(f"s{i}", 0))
    assert len(queue._sessions) <= jobs.SESSIONS


def test_a_start_that_fails_leaves_requests_answered():
    def fail():
        raise ZeroDivisionError

    made = Jobs(lambda job: {}, prepare=fail)
    made.start()
    assert news_of(made.add("s", 0))[-1] == "done"
