"""The compiles of a warm-up that an executor runs: submitted, and received one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future
from queue import SimpleQueue
from typing import Any, Protocol

from .workload import Call

# Called with the number of compiles that have ended, and the number of all compiles.
Progress = Callable[[int, int], None]


class Receiver(Protocol):
    """Who wants the compiles: a warm-up."""

    progress: Progress

    def task(self, call: Call) -> str:
        """Return the compile of ``call``, for the executor."""

    def take(self, call: Call, answer: object) -> None:
        """Take what the compile of ``call`` has returned."""

    def fail(self, call: Call, reason: str, message: str) -> None:
        """Count ``call`` as failed."""


class ExecutorCompiles:
    """The compiles that an executor was given."""

    def __init__(self, executor: Executor, compile_: Callable[..., object]) -> None:
        self._executor = executor
        self._compile = compile_
        self._calls: dict[Future[Any], Call] = {}
        self._done: SimpleQueue[Future[Any]] = SimpleQueue()

    def unfinished(self) -> list[Future[Any]]:
        """Return the futures that have no result yet."""
        return [future for future in self._calls if not future.done()]

    def run(self, receiver: Receiver, pending: Sequence[Call]) -> None:
        """Have all of ``pending`` compiled; ``receiver`` takes each as soon as it is there."""
        progress = receiver.progress
        total = len(pending)
        progress(0, total)
        try:
            for call in pending:
                self._submit(receiver, call)
            progress(total - len(self._calls), total)
            while self._calls:
                self._take(receiver, self._done.get())
                progress(total - len(self._calls), total)
        except BaseException:
            for future in self._calls:
                future.cancel()
            raise

    def _submit(self, receiver: Receiver, call: Call) -> None:
        try:
            future = self._executor.submit(self._compile, receiver.task(call))
        except RuntimeError as error:  # Shut down or broken: it takes no more.
            receiver.fail(call, "executor", f"{call.key.op}: the executor: {error}")
            return
        self._calls[future] = call
        # Not as_completed: it needs more than a future's public interface.
        future.add_done_callback(self._done.put)

    def _take(self, receiver: Receiver, future: Future[Any]) -> None:
        call = self._calls[future]
        try:
            answer = future.result()
        except CancelledError:
            receiver.fail(call, "executor", f"{call.key.op}: the executor cancelled it")
        except Exception as error:  # noqa: BLE001 - a lost worker is each executor's own exception
            message = f"{call.key.op}: the executor: {type(error).__name__}: {error}"
            receiver.fail(call, "executor", message)
        else:
            receiver.take(call, answer)
        del self._calls[future]
