"""One compile worker's process, from the user's side: a request and its answer through pipes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from .._base.child_process import LONGEST_ANSWER, child_command
from .._base.cpp_compiler import compiler_on_path
from .._base.cpu import Target
from .._base.deadline import Deadline
from .._base.handover import let_others_run
from .._store.work_directories import SCRATCH_VARIABLE, Scratch
from ..errors import CompileError
from .job_progress import progress_here
from .requests import Linger, Request
from .steps import StepReader

# A script that has given SIGPIPE its default meaning must not end because a worker did.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
# What asks for ``enable`` at a script's start.
_ENABLE = "AOTI_EAGER_ENABLE"


class WorkerProcess:
    """A worker, started at once; ``ask`` gives it one request at a time.

    Args:
        target: The instruction set to compile for.
        nice: By how much the worker's priority is lower than ours.
        root: The store in which the worker may write before it knows of a request.

    Attributes:
        compiler: The C++ compiler that the worker finds: the one at its start.
        lingers: Whether the worker was released, and ends by itself.

    Raises:
        CompileError: The worker cannot be started.
    """

    def __init__(self, target: Target, nice: int, root: Path) -> None:
        if getattr(sys, "frozen", False) or not sys.executable:
            # The command would start the application once more, which would start its workers.
            raise CompileError(
                "worker_died",
                "the compile worker cannot be started: this process has no Python interpreter to "
                "start, as in a frozen application; fill the cache beforehand",
                remember=False,
            )
        arguments = (os.getpid(), target.vector_bits, nice)
        self.compiler = compiler_on_path()
        self._scratch = Scratch(root)
        let_others_run()
        try:
            # Not a pipe: a worker that hangs before it reads would block the writer of a long
            # request.
            self._requests, theirs = socket.socketpair()
            with theirs, contextlib.ExitStack() as undo:
                undo.enter_context(self._requests)
                self._process = subprocess.Popen(
                    [
                        *child_command("aoti_eager._compile_worker.main", "main"),
                        *map(str, arguments),
                    ],
                    stdin=theirs.fileno(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    # A worker is no script: a hook of the user's may ask for ``enable``.
                    env={
                        **{name: one for name, one in os.environ.items() if name != _ENABLE},
                        **_directories(self._scratch.path),
                    },
                    umask=0o077,
                    pass_fds=self._scratch.descriptors,
                    # A group of its own: Ctrl-C in the terminal is for the script alone.
                    start_new_session=True,
                )
                undo.pop_all()
        except OSError as error:
            self._scratch.close()
            raise CompileError(
                "worker_died", f"the compile worker cannot be started: {error}", remember=False
            ) from error
        self._lock = threading.Lock()
        self._asking = False
        self._works_alone = False  # Whether it can finish its request without us.
        self.lingers = False
        self._ended = False
        self._reaper = threading.Thread(target=self._reap, name="aoti_eager-reaper", daemon=True)
        try:
            self._reaper.start()
        except RuntimeError as error:  # The system gives no more threads.
            self._end_group(is_last=True)
            self._process.wait()
            self._scratch.close()
            self._close_pipes()
            message = f"the compile worker cannot be watched: {error}"
            raise CompileError("worker_died", message) from error

    def _reap(self) -> None:
        """Wait for the worker's end, so that a worker that ends by itself leaves nothing behind.

        No other thread reaps the process. Until this thread does, nobody else gets the process's
        number, which is also its group's number, and the group can be killed.
        """
        try:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            with self._lock:  # The script has reaped all children: the number may be another's.
                self._ended = True
        self._end_group(is_last=True)
        self._process.wait()
        self._scratch.close()
        self._close_pipes()

    def _end_group(self, *, is_last: bool) -> None:
        """Kill the worker and all that it has started, if the group is known to be its own."""
        with self._lock:
            if not self._ended and self._is_ours():
                # The whole group: the C++ compiler and the trial server too.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._ended = self._ended or is_last

    def _is_ours(self) -> bool:
        """Return whether nobody has reaped the process, so that its number is no other's."""
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._ended = True
            return False
        return True

    def ask(self, request: Request, deadline: Deadline) -> dict[str, Any] | None:
        """Return the answer, or ``None`` if the worker died or the deadline passed.

        The steps that the worker tells of go to ``job_progress.progress_here()``.
        """
        with self._lock:
            self._asking = True
        deadline.follow(self.pid)
        let_others_run()
        try:
            return self._ask(request, deadline)
        finally:
            with self._lock:
                self._asking = self._works_alone = False
            if not self.is_alive():
                self.kill()  # This closes the pipes.

    def _ask(self, request: Request, deadline: Deadline) -> dict[str, Any] | None:
        if not self._send(request.to_json(), deadline):
            self.kill()
            return None
        with self._lock:
            self._works_alone = request.works_alone
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        progress = progress_here()
        steps = StepReader(None if progress is None else progress.tell)
        buffer = b""
        while not buffer.endswith(b"\n") and len(buffer) < LONGEST_ANSWER:
            in_time = deadline.left() > 0
            # The socket is readable when ``linger`` or a worker's death has closed it.
            both: list[Any] = [pipe, self._requests]
            ready = wait(both, deadline.next_look()) if in_time else []
            if self.lingers:
                return None
            # A forked child of ours has the pipe's other end, too, so the pipe stays open when the
            # worker is dead.
            if in_time and not ready and self.is_alive():
                continue
            chunk = os.read(pipe, 1 << 16) if pipe in ready else b""
            if not chunk:
                self.kill()
                return None
            buffer = steps.rest(buffer + chunk)
        try:
            answer = json.loads(buffer)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            self.kill()
            return None
        return answer

    @property
    def pid(self) -> int:
        """Return the process's number, also when it is dead."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the process runs."""
        if self._process.returncode is not None:
            return False
        try:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._process.pid, options) is None
        except ChildProcessError:
            return False

    def linger(self, seconds: float) -> bool:
        """Let the worker finish its request without us, and release it.

        The worker does nothing more, puts the result into the store, and ends, after ``seconds`` at
        most. A thread that waits for the worker's answer gets none.

        Returns:
            Whether the worker does so; false if it has no request that it can finish by itself.
        """
        message = json.dumps(Linger(time.monotonic() + seconds).to_json())
        with self._lock:
            if not self._works_alone or self._ended or not self.is_alive():
                return False
            try:
                # A worker that does not read must not hold up the script's end.
                if not select.select([], [self._requests], [], 0)[1]:
                    return False
                self._requests.send(message.encode() + b"\n", _NO_SIGNAL)
                self.lingers = True
                self._requests.shutdown(socket.SHUT_RDWR)  # Wakes a thread that waits for a reply.
            except (OSError, ValueError):
                self.lingers = False
                return False
            # Released, so not ours to reap: otherwise subprocess would warn that it runs.
            self._process.returncode = 0
            return True

    def kill(self, *, even_if_it_lingers: bool = False) -> None:
        """Kill the worker and all that it has started, unless it lingers."""
        if self.lingers:
            if even_if_it_lingers:
                self._end_group(is_last=False)
            return
        self._end_group(is_last=False)
        self._reaper.join()
        self._close_pipes()

    def _close_pipes(self) -> None:
        with self._lock:
            # Not while a thread reads from a pipe: its number could become another file's.
            if self._asking:
                return
            for pipe in (self._requests, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _send(self, message: dict[str, Any], deadline: Deadline) -> bool:
        data = json.dumps(message).encode() + b"\n"
        let_others_run()
        try:
            self._requests.settimeout(max(0.001, deadline.left()))
            self._requests.sendall(data, _NO_SIGNAL)
        except OSError:  # The worker is dead or hangs, or the socket was closed after its death.
            return False
        return True


def _directories(path: Path | None) -> dict[str, str]:
    """Return the variables that keep the worker and its compilers out of shared directories.

    The compiler's default directory lies below the system's temporary directory, under a name
    that anybody can foresee, and importing the compiler needs such a directory.
    """
    if path is None:
        return {SCRATCH_VARIABLE: ""}
    return {
        SCRATCH_VARIABLE: str(path),
        "TMPDIR": str(path),
        "TORCHINDUCTOR_CACHE_DIR": str(path / "inductor"),
    }
