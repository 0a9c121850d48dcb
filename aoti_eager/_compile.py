"""Key -> kernel library, by worker processes; this side of the pipe.

A worker is spawned on the first compile and kept. Nothing of the compiler is imported into the
user's process, and nothing the compiler does can end it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ._child import child_command
from ._compat import inductor_settings
from ._environment import Target
from ._key import KernelKey
from .errors import CompileError

# The first run of one small kernel takes milliseconds; a child that takes longer hangs.
TRIAL_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled library, tried in another process; fields as in ``_lowering.Lowered``."""

    library: Path
    outputs: tuple[dict[str, Any], ...]
    calls_aten: bool
    parallel: bool
    compiler: str


def compiler_on_path() -> str | None:
    """Return the C++ compiler that Inductor would use, or ``None``.

    The same names in the same order as Inductor's default, without importing it.
    """
    named = os.environ.get("CXX")
    candidates = [named] if named else []
    candidates += ["clang++"] if sys.platform == "darwin" else ["g++", "clang++"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


class CompileService:
    """A pool of at most ``workers`` compile workers.

    Args:
        target: The instruction set to compile for.
        workers: Most worker processes at a time.

    Attributes:
        ended: Whether Python is ending: nothing is compiled any more.
    """

    def __init__(self, target: Target, *, workers: int) -> None:
        self._target = target
        self._limit = workers
        self._slots = threading.BoundedSemaphore(workers)
        self._idle: list[_WorkerProcess] = []
        self._all: set[_WorkerProcess] = set()
        self._lock = threading.Lock()
        self._running = 0
        self._idle_again = threading.Condition(self._lock)
        self.ended = False
        atexit.register(self._end)

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
    ) -> Compiled:
        """Compile ``key`` in a worker and return the library, somewhere in ``work``.

        Args:
            key: The call; its thread count is the one that the code may use.
            work: An empty directory of the store; everything temporary goes there.
            toolchain: Directory of what is kept between compiles (precompiled headers).
            check: Whether the trial run compares results.
            timeout_s: Seconds until the worker is killed.
            function: The user's function behind the op, as data; the op need not exist in the
                worker then.
            schema: That op's schema in words.

        Raises:
            CompileError: No usable library, with the decline reason.
        """
        with self._lock:
            self._running += 1
        try:
            if compiler_on_path() is None:
                raise CompileError("no_compiler", NO_COMPILER, remember=False)
            request = {
                "key": key.to_json(),
                "work": str(work),
                "headers": str(toolchain / "headers"),
                "options": self._options(key),
                "check": check,
                "trial_timeout_s": TRIAL_TIMEOUT_S,
                "function": function,
                "schema": schema,
            }
            return self._compile(key, request, timeout_s)
        finally:
            with self._lock:
                self._running -= 1
                self._idle_again.notify_all()

    def _compile(self, key: KernelKey, request: dict[str, Any], timeout_s: float) -> Compiled:
        deadline = time.monotonic() + timeout_s
        for attempt in (1, 2):
            if self.ended:
                raise CompileError("worker_died", f"{key.op}: Python is ending", remember=False)
            with self._worker() as worker:
                answer = worker.ask(request, deadline)
            if answer is not None:
                break
            if time.monotonic() >= deadline:
                raise CompileError(
                    "compile_timeout", f"{key.op}: no library after {timeout_s:g} s", remember=False
                )
            if attempt == 2 and not self.ended:
                raise CompileError(
                    "worker_died", f"{key.op}: the compile worker died twice", remember=False
                )
        if answer is None:
            raise CompileError("worker_died", f"{key.op}: Python is ending", remember=False)
        if "reason" in answer:
            raise CompileError(
                answer["reason"],
                f"{key.op}: {answer['message']}",
                log=answer["log"],
                remember=answer["remember"],
            )
        return Compiled(
            library=Path(answer["library"]),
            outputs=tuple(answer["outputs"]),
            calls_aten=answer["calls_aten"],
            parallel=answer["parallel"],
            compiler=answer["compiler"],
        )

    def close(self) -> None:
        """End all workers; what they were compiling is lost."""
        with self._lock:
            workers, self._idle = list(self._all), []
            self._all.clear()
        for worker in workers:
            worker.kill()

    def _end(self) -> None:
        """End the workers for good and wait a moment for the calls that were waiting for them.

        A daemon thread that is still on its way back through C++ when Python ends takes the
        process down with it.
        """
        self.ended = True
        self.close()
        with self._idle_again:
            waited = self._running > 0
            self._idle_again.wait_for(lambda: self._running == 0, timeout=_END_TIMEOUT_S)
        if waited:
            # They have left us, and are on their way through the kernel cache and the dispatcher.
            time.sleep(0.1)

    def forget(self) -> None:
        """Let go of the workers without ending them: after a fork they are the parent's."""
        self._idle = []
        self._all = set()
        self._lock = threading.Lock()
        self._idle_again = threading.Condition(self._lock)
        self._running = 0
        self._slots = threading.BoundedSemaphore(self._limit)

    def _options(self, key: KernelKey) -> dict[str, Any]:
        settings = inductor_settings()
        for name, value in settings.items():
            if not isinstance(value, str | int | float | bool | None):
                raise CompileError(
                    "setting_not_portable",
                    f"torch._inductor.config.{name} is {value!r}, which cannot be sent to the "
                    "compile worker",
                    remember=False,
                )
        threads = dict(key.context)["threads"]
        ours: dict[str, Any] = {
            "cpp.threads": threads,
            # Three megabytes and half a second of debug tables in each library otherwise.
            "aot_inductor.enable_line_tables": False,
        }
        if self._target.march != "native":
            ours["cpp.march"] = self._target.march
        return {**ours, **settings}

    @contextlib.contextmanager
    def _worker(self) -> Iterator[_WorkerProcess]:
        with self._slots:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                worker = _WorkerProcess(self._target)
                with self._lock:
                    self._all.add(worker)
            try:
                yield worker
            except BaseException:
                # Ctrl-C in the middle of an answer: the next request must not read the rest.
                worker.kill()
                raise
            finally:
                with self._lock:
                    if worker.is_alive():
                        self._idle.append(worker)
                    else:
                        self._all.discard(worker)
                        worker.kill()  # It is dead; this closes its pipes.


class _WorkerProcess:
    def __init__(self, target: Target) -> None:
        try:
            self._process = subprocess.Popen(
                child_command("aoti_eager._worker", "main"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # A group of its own: Ctrl-C in the terminal is for the script, not for us.
                start_new_session=True,
            )
        except OSError as error:
            raise CompileError(
                "worker_died", f"the compile worker cannot be started: {error}", remember=False
            ) from error
        self._lock = threading.Lock()
        self._asking = False
        self._send({"vector_bits": target.vector_bits})

    def ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any] | None:
        """Return the answer, or ``None`` if the worker died or the deadline passed."""
        with self._lock:
            self._asking = True
        try:
            return self._ask(request, deadline)
        finally:
            with self._lock:
                self._asking = False
            if not self.is_alive():
                self.kill()  # It closes the pipes now.

    def _ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any] | None:
        if not self._send(request):
            self.kill()
            return None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        buffer = b""
        while not buffer.endswith(b"\n"):
            left = deadline - time.monotonic()
            ready = wait([pipe], left) if left > 0 else []
            chunk = os.read(pipe, 1 << 16) if ready else b""
            if not chunk:
                self.kill()
                return None
            buffer += chunk
        try:
            answer: dict[str, Any] = json.loads(buffer)
        except ValueError:
            self.kill()
            return None
        return answer

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        # The whole group: the C++ compiler and the trial server too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        with self._lock:
            # Not under a thread that reads from it: the number may be another file's by then.
            if not self._asking:
                self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _send(self, message: dict[str, Any]) -> bool:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # It is dead, or was closed when it was.
            return False
        return True


NO_COMPILER = (
    "no C++ compiler: kernels that are not in the cache cannot be compiled, and originals run; "
    "install g++ or clang++ (Debian: apt-get install g++; conda: conda install cxx-compiler), or "
    "set CXX to one"
)
