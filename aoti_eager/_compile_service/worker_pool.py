"""The pool of compile workers, on the user's side of the pipe: from a key to a kernel library.

A worker is spawned on the first request and kept. Nothing of the compiler is imported into the
user's process, and nothing that the compiler does can end the user's process.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .._base.cpp_compiler import NO_COMPILER, compiler_on_path
from .._base.cpu import Target
from .._base.deadline import Deadline
from .._base.torch_compat.settings import INDUCTOR_CONFIG, inductor_settings
from .._keys.kernel_key import KernelKey
from .._native import library as native_library
from .._store.store import Store
from ..config import config
from ..errors import CompileError, ConfigError, StoreError
from . import share as core_share
from .replies import (
    Compiled,
    Measured,
    Published,
    failure,
)
from .worker_process import WorkerProcess

T = TypeVar("T")

# The first run of one small kernel takes milliseconds; a child that takes this long hangs.
TRIAL_TIMEOUT_S = 60.0
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

    def compile(
        self,
        key: KernelKey,
        work: Path,
        toolchain: Path,
        *,
        check: bool,
        timeout_s: float,
        function: dict[str, Any] | None = None,
        schema: str = "",
        gate: bool = False,
        dynamic: dict[str, Any] | None = None,
        is_native: bool = False,
    ) -> Compiled:
        """Compile ``key`` in a worker and return the library, somewhere in ``work``.

        Args:
            key: The call; its thread count is the one that the code may use.
            work: An empty directory of the store; everything temporary goes there.
            toolchain: Directory of what is kept between compiles (precompiled headers).
            check: Whether the trial run compares results.
            timeout_s: Seconds that the worker has before it is killed; waits for a core do not
                count.
            function: The user's function behind the op, as data; the op need not exist in the
                worker then.
            schema: That op's schema in words.
            gate: Whether the library is timed against the original, too.
            dynamic: ``_keys.dynamic_plan.Plan.to_json``, for a dynamic specialisation.
            is_native: Whether the C++ hit path serves the op: then only this path is timed.

        Raises:
            CompileError: No usable library, with the decline reason.
        """
        request = self._compile_request(key, toolchain, check, function, schema, is_native)
        request |= {"kind": "compile", "gate": gate, "work": str(work)}
        request |= _dynamic_request(dynamic)
        return self._answer(request, key.op, timeout_s, Compiled.read)

    def publish(
        self,
        key: KernelKey,
        place: Mapping[str, Any],
        toolchain: Path,
        *,
        check: bool,
        timeout_s: float,
        function: dict[str, Any] | None = None,
        schema: str = "",
        gate: bool = False,
        dynamic: dict[str, Any] | None = None,
        is_native: bool = False,
    ) -> Published | None:
        """Have a worker put the entry of ``key`` into the store; ``None`` if it has to wait.

        The worker has to wait while another process compiles this key, or a key that shares its
        lock.

        Args:
            key: As for ``compile``.
            place: The store's ``root``, and what an entry says of where it was made:
                ``environment`` (its components by name), ``target``, ``requires``.
            toolchain: As for ``compile``.
            check: As for ``compile``.
            timeout_s: As for ``compile``.
            function: As for ``compile``.
            schema: As for ``compile``.
            gate: As for ``compile``.
            dynamic: As for ``compile``.
            is_native: As for ``compile``.

        Raises:
            CompileError: No usable library, with the decline reason; the store remembers it.
        """
        request = self._compile_request(key, toolchain, check, function, schema, is_native)
        request |= {"kind": "publish", "gate": gate, "store": place}
        request |= _dynamic_request(dynamic)
        return self._answer(request, key.op, timeout_s, Published.read)

    def measure(
        self,
        key: KernelKey,
        library: Mapping[str, Any],
        toolchain: Path,
        *,
        check: bool,
        timeout_s: float,
        function: dict[str, Any] | None = None,
        schema: str = "",
        is_native: bool = False,
    ) -> Measured:
        """Have a worker run an existing library for the first time here, and return its times.

        Args:
            key: The call, with the thread count to measure with.
            library: The library's ``path``, ``sha256``, and ``outputs`` and ``calls_aten`` as an
                entry has them; the ``digest`` of the entry and the ``size`` class, under which a
                worker that outlives us keeps what it has found; and whether the library was
                ``compared`` here before.
            toolchain: Where the C++ hit path is looked for, if this process has not loaded it.
            check: As for ``compile``.
            timeout_s: As for ``compile``.
            function: As for ``compile``.
            schema: As for ``compile``.
            is_native: As for ``compile``.

        Raises:
            CompileError: The library must not be used, or there is no worker to try it.
        """
        request = self._request(key, toolchain, check, function, schema, is_native)
        request |= {"kind": "measure", "library": library, "numbers": library.get("numbers")}
        return self._answer(request, key.op, timeout_s, Measured.read)

    def make_parts(self, toolchain: Path, *, threads: int, timeout_s: float) -> bool:
        """Make what all libraries share, unless it exists; return whether it was made.

        Args:
            toolchain: As for ``compile``.
            threads: The thread count of the calls to come.
            timeout_s: As for ``compile``.

        Raises:
            CompileError: What libraries share cannot be made or kept.
        """
        request = {
            "kind": "parts",
            "toolchain": str(toolchain),
            "options": self._options(threads),
            "timeout_s": timeout_s,
        }
        what = "what kernel libraries share"
        return self._answer(request, what, timeout_s, lambda answer: bool(answer["was_made"]))

    def _compile_request(
        self,
        key: KernelKey,
        toolchain: Path,
        check: bool,
        function: dict[str, Any] | None,
        schema: str,
        is_native: bool,
    ) -> dict[str, Any]:
        if compiler_on_path() is None:
            raise CompileError("no_compiler", NO_COMPILER, remember=False)
        return {
            **self._request(key, toolchain, check, function, schema, is_native),
            "options": self._options(dict(key.context)["threads"]),
        }

    @staticmethod
    def _request(
        key: KernelKey,
        toolchain: Path,
        check: bool,
        function: dict[str, Any] | None,
        schema: str,
        is_native: bool,
    ) -> dict[str, Any]:
        native = native_library.loaded()
        return {
            "key": key.to_json(),
            "toolchain": str(toolchain),
            "threads": dict(key.context)["threads"],
            "native": None if native is None else [str(native[0]), native[1]],
            "is_native": is_native,
            "check": check,
            "trial_timeout_s": TRIAL_TIMEOUT_S,
            "function": function,
            "schema": schema,
        }

    def _answer(
        self,
        request: dict[str, Any],
        what: str,
        timeout_s: float,
        read: Callable[[dict[str, Any]], T],
    ) -> T:
        with self._lock:
            self._running += 1
        try:
            answer = self._asked(request, what, timeout_s)
        finally:
            with self._lock:
                self._running -= 1
                self._idle_again.notify_all()
        try:
            problem = failure(answer, what) if "reason" in answer else None
            if problem is None:
                return read(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # A worker of another version, say, that was installed over ours while the script runs.
            message = f"{what}: the compile worker gave an answer of another kind: {error!r}"
            raise CompileError("worker_died", message, remember=False) from error
        raise problem

    def _asked(self, request: dict[str, Any], what: str, timeout_s: float) -> dict[str, Any]:
        deadline = Deadline(timeout_s)
        root = Path(request["toolchain"]).parent
        for _ in range(2):
            if self.ended:
                break
            with self._worker(root) as worker:
                answer = worker.ask(request, deadline)
            if answer is not None:
                return answer
            if worker.lingers:
                break
            if "store" in request:  # The dead worker cannot remove what it was working on there.
                Store(root, lock_timeout_s=0.0).remove_work_of(worker.pid)
            if deadline.left() <= 0:
                raise CompileError(
                    "compile_timeout", f"{what}: no library after {timeout_s:g} s", remember=False
                )
        died = "Python is ending" if self.ended else "the compile worker died twice"
        raise CompileError("worker_died", f"{what}: {died}", remember=False)

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

    def _options(self, threads: int) -> dict[str, Any]:
        settings = inductor_settings()
        for name, value in settings.items():
            if not isinstance(value, str | int | float | bool | None):
                raise CompileError(
                    "setting_not_portable",
                    f"{INDUCTOR_CONFIG}.{name} is {value!r}, which cannot be sent to the "
                    "compile worker",
                    remember=False,
                )
        ours: dict[str, Any] = {
            "cpp.threads": threads,
            # Elements per thread; Inductor's 512 cost more to hand out than to compute.
            "cpp.min_chunk_size": 4096,
            # Otherwise each library has debug tables that take three megabytes and half a second.
            "aot_inductor.enable_line_tables": False,
        }
        if self._target.march != "native":
            ours["cpp.march"] = self._target.march
        return {**ours, **settings}

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
        """Return an idle worker that is alive, if any; dead workers do not cost a request a try."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None or worker.is_alive():
                return worker
            with self._lock:
                self._all.discard(worker)
            worker.kill()  # This closes its pipes.


def _linger_s() -> float:
    try:
        return float(config.linger_s)
    except ConfigError:  # ``register`` has already reported the wrong setting.
        return 0.0


def _dynamic_request(dynamic: dict[str, Any] | None) -> dict[str, Any]:
    return {} if dynamic is None else {"dynamic": dynamic, "numbers": dynamic["numbers"]}
