"""The queue of what is done beside the script, with jobs that are fakes: nothing is compiled."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import aoti_eager
from aoti_eager._compile_service import queue as queue_module
from aoti_eager._compile_service.queue import QUEUE_LIMIT, Background

from ..support import forked_python


class Job:
    """A job that is done when it may be, and notes it."""

    def __init__(
        self, calls: int = 0, done: list[Job] | None = None, delays: list[float] | None = None
    ) -> None:
        self.rank = (calls,)
        self.may_run = threading.Event()
        self.may_run.set()
        self.began = threading.Event()
        self.times: list[float] = []
        self._done = done if done is not None else []
        self._delays = delays or []

    def run(self) -> float | None:
        self.times.append(time.monotonic())
        self.began.set()
        assert self.may_run.wait(30.0)
        if self._delays:
            return self._delays.pop(0)
        self._done.append(self)
        return None


class Raises(Job):
    """One that breaks its promise."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def run(self) -> float | None:
        super().run()
        raise self._error


@pytest.fixture
def queue() -> Iterator[Background]:
    """A queue of the test's own; its threads are gone at the end."""
    made = Background()
    yield made
    made.end(lambda: None)
    assert not any(thread.is_alive() for thread in made._threads)


@pytest.fixture
def held(queue: Background) -> Iterator[Job]:
    """A job that keeps the only thread of the queue until its ``may_run`` is set."""
    job = Job()
    job.may_run.clear()
    assert queue.submit(job)
    assert job.began.wait(10.0)
    yield job
    job.may_run.set()


def test_no_thread_is_started_before_the_first_job(queue: Background) -> None:
    assert queue.wait(0.0)
    assert queue._threads == []


def test_the_most_called_job_comes_first_by_the_calls_of_that_moment(
    queue: Background, held: Job
) -> None:
    done: list[Job] = []
    jobs = [Job(calls, done) for calls in (1, 5, 3)]
    for job in jobs:
        assert queue.submit(job)
    # Called more often while it waits: it overtakes the others.
    jobs[0].rank = (9,)
    held.may_run.set()
    assert queue.wait(10.0)
    assert [job.rank for job in done] == [(9,), (5,), (3,)]


def test_there_are_as_many_threads_as_workers_at_most(queue: Background) -> None:
    jobs = [Job() for _ in range(4)]
    for job in jobs:
        job.may_run.clear()
    with aoti_eager.config.scope(workers=2):
        for job in jobs:
            assert queue.submit(job)
    for job in jobs[:2]:
        assert job.began.wait(10.0)
    assert len(queue._threads) == 2
    assert not any(job.began.is_set() for job in jobs[2:])
    for job in jobs:
        job.may_run.set()
    assert queue.wait(10.0)
    assert all(job.began.is_set() for job in jobs)


def test_one_job_at_a_time_needs_one_thread(queue: Background) -> None:
    with aoti_eager.config.scope(workers=4):
        for _ in range(3):
            assert queue.submit(Job())
            assert queue.wait(10.0)
    assert len(queue._threads) == 1


def test_a_full_queue_refuses_and_says_so_when_half_of_it_is_done(
    queue: Background, held: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr(queue_module, "_room_observers", [lambda: left.append(len(queue._queue))])
    jobs = [Job() for _ in range(QUEUE_LIMIT)]
    assert all(queue.submit(job) for job in jobs)
    late = Job()
    assert not queue.submit(late)
    held.may_run.set()
    assert queue.wait(30.0)
    assert left == [QUEUE_LIMIT // 2]  # once, and with room for as many again
    assert not late.began.is_set()
    assert queue.submit(late)
    assert queue.wait(10.0)
    assert late.began.is_set()


def test_the_limit_is_what_the_docs_say() -> None:
    assert QUEUE_LIMIT == 256


def test_nobody_is_told_of_room_where_nothing_was_refused(
    queue: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[None] = []
    monkeypatch.setattr(queue_module, "_room_observers", [lambda: told.append(None)])
    for _ in range(3):
        assert queue.submit(Job())
        assert queue.wait(10.0)
    assert told == []


def test_wait_gives_up_in_time_and_says_so(queue: Background, held: Job) -> None:
    start = time.monotonic()
    assert not queue.wait(0.05)
    assert time.monotonic() - start < 5.0
    held.may_run.set()
    assert queue.wait(10.0)


def test_wait_is_for_what_waits_too_and_for_jobs_that_come_back(
    queue: Background, held: Job
) -> None:
    done: list[Job] = []
    assert queue.submit(Job(1, done, delays=[0.02, 0.02]))
    held.may_run.set()
    assert queue.wait(10.0)
    assert len(done) == 1


def test_wait_is_for_errands(queue: Background) -> None:
    may_end, ended = threading.Event(), threading.Event()

    def background_write() -> None:
        assert may_end.wait(10.0)
        ended.set()

    assert queue.run_background_write(background_write)
    assert not queue.wait(0.05)
    may_end.set()
    assert queue.wait(10.0)
    assert ended.is_set()


def test_a_job_comes_back_after_its_delay_and_others_go_first(queue: Background) -> None:
    done: list[Job] = []
    later, soon = Job(9, done, delays=[0.2]), Job(0, done)
    assert queue.submit(later)
    assert later.began.wait(10.0)
    assert queue.submit(soon)
    assert queue.wait(10.0)
    assert done == [soon, later]
    assert later.times[1] - later.times[0] >= 0.2
    assert len(later.times) == 2


def test_the_end_begins_nothing_more_and_stops_what_runs(queue: Background, held: Job) -> None:
    waiting = Job()
    assert queue.submit(waiting)
    stopped: list[None] = []

    def stop() -> None:
        stopped.append(None)
        held.may_run.set()  # The worker that it waits for is killed.

    queue.end(stop)
    assert stopped == [None]
    assert queue._queue == {}
    assert not any(thread.is_alive() for thread in queue._threads)
    assert not waiting.began.is_set()
    assert not queue.submit(Job())
    assert queue.wait(0.0)


def test_a_job_that_wants_to_come_back_at_the_end_does_not(queue: Background) -> None:
    job = Job(delays=[0.0, 0.0, 0.0])
    job.may_run.clear()
    assert queue.submit(job)
    assert job.began.wait(10.0)
    queue.end(job.may_run.set)
    assert len(job.times) == 1
    assert queue._queue == {}


def test_the_end_does_not_wait_for_good(
    queue: Background, held: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "_END_TIMEOUT_S", 0.05)
    start = time.monotonic()
    queue.end(lambda: None)
    assert time.monotonic() - start < 5.0
    held.may_run.set()
    for thread in queue._threads:
        thread.join(10.0)


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)], ids=["error", "exit"])
def test_a_job_that_raises_ends_no_other(
    error: BaseException, queue: Background, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[Job] = []
    assert queue.submit(Raises(error))
    assert queue.submit(Job(0, done))
    assert queue.wait(10.0)
    assert queue.submit(Job(0, done))
    assert queue.wait(10.0)
    assert len(done) == 2
    assert len(queue._threads) == 1
    assert "a job failed" in caplog.text


def test_errands_are_done_in_order_and_one_that_raises_ends_no_other(
    queue: Background, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []

    def broken() -> None:
        raise ValueError("broken")

    assert queue.run_background_write(broken)
    for number in range(5):
        assert queue.run_background_write(lambda number=number: done.append(number))  # type: ignore[misc]
    assert queue.wait(10.0)
    assert done == [0, 1, 2, 3, 4]
    assert "a background write failed" in caplog.text


def test_an_observer_of_room_that_raises_ends_no_job(
    queue: Background, held: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ValueError("broken")

    monkeypatch.setattr(queue_module, "_room_observers", [broken])
    monkeypatch.setattr(queue_module, "QUEUE_LIMIT", 2)
    assert queue.submit(Job())
    assert queue.submit(Job())
    assert not queue.submit(Job())
    held.may_run.set()
    assert queue.wait(10.0)


@pytest.mark.parametrize("delays", [[], [0.0]])
def test_who_waits_finds_those_told_of_room(
    delays: list[float], queue: Background, held: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go, told = threading.Event(), threading.Event(), list[None]()

    def observer() -> None:
        inside.set()
        assert go.wait(30.0)
        told.append(None)

    monkeypatch.setattr(queue_module, "_room_observers", [observer])
    monkeypatch.setattr(queue_module, "QUEUE_LIMIT", 1)
    assert queue.submit(Job(delays=delays))
    assert not queue.submit(Job())
    held.may_run.set()
    assert inside.wait(30.0)
    assert not queue.wait(0.1)
    go.set()
    assert queue.wait(30.0)
    assert told == [None]


def test_where_no_thread_can_be_started_the_job_is_refused(
    queue: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert not queue.submit(Job())
        assert queue.wait(0.0)
    assert queue.submit(Job())
    assert queue.wait(10.0)


def test_a_second_thread_that_cannot_be_started_costs_no_job(
    queue: Background, held: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[Job] = []
    with monkeypatch.context() as patched, aoti_eager.config.scope(workers=2):
        patched.setattr(threading.Thread, "start", start)
        assert queue.submit(Job(0, done))
    held.may_run.set()
    assert queue.wait(10.0)
    assert len(done) == 1


def test_many_threads_may_submit_at_once(queue: Background) -> None:
    done: list[Job] = []
    barrier = threading.Barrier(8)

    def submit(_: int) -> list[bool]:
        barrier.wait()
        return [queue.submit(Job(i % 3, done)) for i in range(20)]

    with aoti_eager.config.scope(workers=3), ThreadPoolExecutor(8) as threads:
        taken = [one for some in threads.map(submit, range(8)) for one in some]
    assert queue.wait(30.0)
    assert all(taken)
    assert len(done) == 160


def in_child(work: Callable[[], bool]) -> int:
    """Return the exit status of a forked child: 0 if ``work`` returned true in it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_queue_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = Background()
    monkeypatch.setattr(queue_module, "background", parents)
    held = Job()
    held.may_run.clear()
    assert parents.submit(held)
    assert held.began.wait(10.0)

    def work() -> bool:
        job = Job()
        ours = queue_module.background
        fresh = ours is not parents and ours.wait(0.0)
        return bool(fresh and ours.submit(job) and ours.wait(10.0) and job.began.is_set())

    try:
        with parents._condition:  # A thread of the parent may hold it at that moment.
            assert in_child(work) == 0
        assert queue_module.background is parents
    finally:
        held.may_run.set()
        assert parents.wait(10.0)
        parents.end(lambda: None)


def run(script: str) -> Any:
    """Run a script to its end."""
    return forked_python.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )


def test_waiting_while_python_ends_does_not_hang() -> None:
    """By then the thread of errands is gone, and whoever counted on it would wait for good."""
    done = run("""
import atexit
import torch  # First imported while Python ends, it complains by itself.
from aoti_eager._compile_service import queue
import aoti_eager
atexit.register(lambda: print(aoti_eager.wait()))
queue.background.run_background_write(lambda: print("done"))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\nTrue\n", "")
