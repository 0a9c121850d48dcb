"""The pool of compile workers, on the user's side of the pipe: from a key to a kernel library.

A worker is spawned on the first request and kept. Nothing of the compiler is imported into the
user's process, and nothing that the compiler does can end the user's process.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from .._base.cpp_compiler import NO_COMPILER, compiler_on_path
from .._base.cpu import Target
from .._base.deadline import Deadline
from .._base.handover import let_others_run
from .._store.store import Store
from ..config import config
from ..errors import CompileError, ConfigError, StoreError
from . import share as core_share
from .code_options import code_options
from .job_progress import progress_here
from .messages import MessageError
from .replies import Busy, Compiled, Failure, Measured, PartsMade, Published, read_reply
from .requests import EntryRequest, LibraryRequest, PartsRequest, Request, TimesRequest
from .worker_process import WorkerProcess

C = TypeVar("C", LibraryRequest, EntryRequest)
R = TypeVar("R", bound=Compiled | Published | Busy | Measured | PartsMade)

_END_TIMEOUT_S = 2.0


class CompileService:
    """A pool of at most ``workers`` compile workers.

    Args:
        target: The instruction set to compile for.
        workers: Most worker processes at a time.
        nice: By how much the workers' priority is lower than ours.
        ends_at_exit: Whether the workers end when Python does; else somebody calls ``end``.

    Attributes:
        ended: Whether Python is ending: nothing is compiled any more.
    """

    def __init__(
        self, target: Target, *, workers: int, nice: int = 0, ends_at_exit: bool = True
    ) -> None:
        self._target = target
        self._limit = workers
        self._nice = nice
        self._slots = threading.BoundedSemaphore(workers)
        self._idle: list[WorkerProcess] = []
        self._all: set[WorkerProcess] = set()
        self._lock = threading.Lock()
        self._running = 0
        self._idle_again = threading.Condition(self._lock)
        self.ended = False
        if ends_at_exit:
            atexit.register(self.end)

    def compile(self, request: LibraryRequest) -> Compiled:
        """Return a library that a worker has compiled, somewhere in the request's directory.

        Raises:
            CompileError: No usable library, with the decline reason.
        """
        return self._reply(_completed(request, self._target), Compiled)

    def publish(self, request: EntryRequest) -> Published | None:
        """Have a worker put an entry into the store; ``None`` if the worker has to wait.

        The worker has to wait while another process compiles this key, or a key that shares its
        lock.

        Raises:
            CompileError: No usable library, with the decline reason; the store remembers it.
        """
        kinds: tuple[type[Published | Busy], ...] = (Published, Busy)
        reply = self._reply(_completed(request, self._target), *kinds)
        return reply if isinstance(reply, Published) else None

    def measure(self, request: TimesRequest) -> Measured:
        """Have a worker run an existing library for the first time here, and return its times.

        Raises:
            CompileError: The library must not be used, or there is no worker to try it.
        """
        return self._reply(request, Measured)

    def make_parts(self, request: PartsRequest) -> bool:
        """Make what all libraries share, unless it exists; return whether it was made.

        Raises:
            CompileError: What libraries share cannot be made or kept.
        """
        options = code_options(self._target, request.threads)
        return self._reply(request.with_options(options), PartsMade).was_made

    def _reply(self, request: Request, *kinds: type[R]) -> R:
        """Return a worker's reply, of one of these kinds."""
        with self._lock:
            self._running += 1
        try:
            answer = self._asked(request)
        finally:
            with self._lock:
                self._running -= 1
                self._idle_again.notify_all()
        let_others_run()
        try:
            reply = read_reply(answer)
            if isinstance(reply, kinds):
                return reply
            if not isinstance(reply, Failure):
                raise MessageError(f"it is the reply {reply.kind!r}")
        except MessageError as error:
            # A worker of another version, say, that was installed over ours while the script runs.
            message = f"{request.what}: the compile worker gave an answer of another kind: {error}"
            raise CompileError("worker_died", message, remember=False) from error
        raise reply.error(request.what)

    def _asked(self, request: Request) -> dict[str, Any]:
        deadline = Deadline(request.timeout_s)
        progress = progress_here()
        for _ in range(2):
            if self.ended:
                break
            if progress is not None:
                progress.tell(None)
            with self._worker(request.root) as worker:
                try:
                    answer = worker.ask(request, deadline)
                except BaseException:  # Ctrl-C, of which the worker dies.
                    worker.kill()
                    _remove_work(request, worker)
                    raise
            if answer is not None:
                return answer
            if worker.lingers:
                break
            _remove_work(request, worker)
            if deadline.left() <= 0:
                raise CompileError(
                    "compile_timeout",
                    f"{request.what}: no library after {request.timeout_s:g} s",
                    remember=False,
                )
        died = "Python is ending" if self.ended else "the compile worker died twice"
        raise CompileError("worker_died", f"{request.what}: {died}", remember=False)

    def close(self) -> None:
        """End all workers; what they were compiling is lost."""
        with self._lock:
            workers, self._idle = list(self._all), []
            self._all.clear()
        for worker in workers:
            worker.kill()

    def end(self) -> None:
        """End the workers for good and wait a moment for the calls that were waiting for them.

        A worker that no call waits for finishes its kernel, for ``linger_s`` seconds at most.

        The wait is needed: a daemon thread that is still on its way back through C++ when Python
        ends takes the process down with it.
        """
        self.ended = True
        with self._lock:
            workers, self._idle = list(self._all), []
            self._all.clear()
        try:
            for worker in workers:
                if not (self._nice and _linger_s() and worker.linger(_linger_s())):
                    worker.kill()
            with self._idle_again:
                waited = self._running > 0
                self._idle_again.wait_for(lambda: self._running == 0, timeout=_END_TIMEOUT_S)
            if waited:
                # The calls have left this service, and are still on their way through the kernel
                # cache and the dispatcher.
                time.sleep(0.1)
        except KeyboardInterrupt:  # Maybe the second one: the user wants an end at once.
            for worker in workers:
                worker.kill(even_if_it_lingers=True)
            raise

    def forget(self) -> None:
        """Drop the workers without ending them: after a fork they are the parent's."""
        self._idle = []
        self._all = set()
        self._lock = threading.Lock()
        self._idle_again = threading.Condition(self._lock)
        self._running = 0
        self._slots = threading.BoundedSemaphore(self._limit)

    @contextlib.contextmanager
    def _worker(self, root: Path) -> Iterator[WorkerProcess]:
        with self._slots:
            worker = self._idle_worker()
            if worker is None:
                with contextlib.suppress(StoreError):  # A worker that needs the store reports it.
                    Store(root, lock_timeout_s=0.0).create()
                worker = WorkerProcess(self._target, self._nice, root)
                with self._lock:
                    self._all.add(worker)
                    if self.ended:  # After ``end``, nobody else would end this worker.
                        worker.kill()
            if self._nice:
                core_share.share.begin(worker.pid)
            let_others_run()
            try:
                yield worker
            except BaseException:
                # Ctrl-C in the middle of an answer: the next request must not read the rest.
                worker.kill()
                raise
            finally:
                if self._nice:
                    core_share.share.end(worker.pid)
                with self._lock:
                    if worker.is_alive():
                        self._idle.append(worker)
                    else:
                        self._all.discard(worker)
                        worker.kill()  # The worker is dead; this closes its pipes.

    def _idle_worker(self) -> WorkerProcess | None:
        """Return an idle worker that is alive and finds the present compiler, if there is one.

        Other idle workers end: dead workers do not cost a request a try.
        """
        compiler = compiler_on_path()
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None or (worker.is_alive() and worker.compiler == compiler):
                return worker
            with self._lock:
                self._all.discard(worker)
            worker.kill()  # This closes its pipes.


def _remove_work(request: Request, worker: WorkerProcess) -> None:
    """Remove what a dead worker was working on in the store, and cannot remove itself."""
    if isinstance(request, EntryRequest):
        Store(request.root, lock_timeout_s=0.0).remove_work_of(worker.pid)


def _completed(request: C, target: Target) -> C:
    """Return the request with the settings that its code is compiled with.

    Raises:
        CompileError: This machine has no compiler, or a setting cannot be sent.
    """
    if compiler_on_path() is None:
        raise CompileError("no_compiler", NO_COMPILER, remember=False)
    return request.with_options(code_options(target, request.threads))


def _linger_s() -> float:
    try:
        return float(config.linger_s)
    except ConfigError:  # ``register`` has already reported the wrong setting.
        return 0.0
