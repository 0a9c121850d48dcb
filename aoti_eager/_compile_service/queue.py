"""Work beside the script: jobs by priority on threads that only wait, and background writes.

A CPU-bound Python thread delays the caller by the interpreter's switch interval. So a job is a
request to another process, with the little work that its reply needs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from .._base.handover import beside_script, let_others_run
from .._base.warn_once import log
from ..config import config

# Most jobs that wait. A script with more jobs makes each call with other arguments, and none of the
# jobs is worth a compile.
QUEUE_LIMIT = 256
_END_TIMEOUT_S = 3.0


class Job(Protocol):
    """A request to another process."""

    @property
    def rank(self) -> tuple[int, ...]:
        """Return the job's priority: the job that waits with the highest rank comes first."""

    def run(self) -> float | None:
        """Do the job; return ``None``, or the seconds to wait until another try is worth it.

        Never raises.
        """


class Background:
    """The queue and its threads, which start with the first job; one in each process."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._queue: dict[Job, float] = {}  # job -> not before this time
        self._running: set[Job] = set()
        self._threads: list[threading.Thread] = []
        self._writer: ThreadPoolExecutor | None = None
        self._ending = False
        self._refused = False

    @property
    def has_room(self) -> bool:
        """Return whether a job would be queued now; if not, ``on_room`` tells of room later."""
        with self._condition:
            room = not self._ending and len(self._queue) < QUEUE_LIMIT
            self._refused = self._refused or not room
        return room

    def submit(self, job: Job) -> bool:
        """Queue ``job``; return false, and do nothing, if the queue is full or Python ends."""
        with self._condition:
            if not self.has_room:
                return False
            self._queue[job] = 0.0
            # Wake all: a single thread that is woken might be one that waits for an empty queue.
            self._condition.notify_all()
            wanted = min(config.workers, len(self._queue) + len(self._running))
            if len(self._threads) >= wanted:
                return True
            thread = threading.Thread(target=self._serve, name="aoti_eager-compile", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # The system has no thread for us, or Python ends.
                log.info("no thread for a compile: %s", error)
                if self._threads:
                    return True
                del self._queue[job]
                self._refused = True
                return False
            self._threads.append(thread)
            return True

    def run_background_write(self, background_write: Callable[[], None]) -> bool:
        """Run a background write on another thread, in order; return whether it will be done.

        Writes are done before Python ends. False if Python is ending already: then the write is
        not done.
        """
        with self._condition:
            if self._writer is None:
                self._writer = ThreadPoolExecutor(1, "aoti_eager-write")
            try:
                self._writer.submit(_logged, background_write)
            except RuntimeError:  # Python is ending.
                log.info("not done: %s", background_write)
                return False
            return True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all jobs and writes are done; return whether they are."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._condition:
            idle = self._condition.wait_for(
                lambda: self._ending or not (self._queue or self._running), timeout_s
            )
            writer = self._writer
        if writer is not None and idle:
            done = threading.Event()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            # If Python is ending, it has already waited for all writes.
            idle = not self.run_background_write(done.set) or done.wait(left)
        return idle

    def end(self, stop: Callable[[], None]) -> None:
        """Begin nothing more, ``stop`` what runs, and wait a moment for the threads."""
        with self._condition:
            self._ending = True
            self._queue.clear()
            self._condition.notify_all()
        stop()
        deadline = time.monotonic() + _END_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self) -> None:
        with beside_script():
            self._serve_jobs()

    def _serve_jobs(self) -> None:
        while (job := self._next()) is not None:
            delay = None
            try:
                delay = job.run()
            except BaseException:  # noqa: BLE001 - without this thread all others wait for good
                log.exception("a job failed")
            with self._condition:
                left = len(self._queue) + (delay is not None)
                room = self._refused and left <= QUEUE_LIMIT // 2
                self._refused = self._refused and not room
            if room:
                tell_of_room()
            with self._condition:
                # Only now: otherwise a thread that waits for an empty queue would not see that
                # refused keys are queued again.
                self._running.discard(job)
                if delay is not None and not self._ending:
                    self._queue[job] = time.monotonic() + delay
                self._condition.notify_all()

    def _next(self) -> Job | None:
        while True:
            now = time.monotonic()
            with self._condition:
                waiting = list(self._queue.items())
            # Ranked outside of the lock, because calls that miss take the lock, too.
            best = max((j for j, at in waiting if at <= now), key=_rank, default=None)
            let_others_run()
            with self._condition:
                if self._ending:
                    return None
                if best is not None:
                    if self._queue.pop(best, None) is not None:
                        self._running.add(best)
                        return best
                elif len(self._queue) == len(waiting):
                    at = min((at for _, at in waiting), default=None)
                    self._condition.wait(None if at is None else max(0.0, at - now))


def _rank(job: Job) -> tuple[int, ...]:
    let_others_run()
    try:
        return job.rank
    except Exception:  # noqa: BLE001 - without its thread all other jobs wait for good
        log.exception("what a job is worth cannot be said")
        return ()


def _logged(background_write: Callable[[], None]) -> None:
    try:
        with beside_script():
            background_write()
    except Exception:  # noqa: BLE001 - nobody asks what became of it
        log.exception("a background write failed")


background = Background()
# Called at the end of each ``wait`` of users: what rests looks at its state in the next call.
after_wait: list[Callable[[], None]] = []
_room_observers: list[Callable[[], None]] = []


def on_room(observer: Callable[[], None]) -> None:
    """Call ``observer`` when the queue takes jobs again after it has refused some."""
    _room_observers.append(observer)


def tell_of_room() -> None:
    """Have keys queue again that were refused because the queue was full."""
    for observer in _room_observers:
        _logged(observer)


def _after_fork() -> None:
    global background
    background = Background()  # The threads are the parent's.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
