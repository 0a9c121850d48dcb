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
from .._base.cpu import Target
from .._base.deadline import Deadline
from .._store.work_directories import SCRATCH_VARIABLE, Scratch
from ..errors import CompileError

# What a worker can end without us: it puts what comes of it into the store itself.
_LINGERING = frozenset({"publish", "measure"})
# A script that has given SIGPIPE its default meaning must not end because a worker did.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class WorkerProcess:
    """A worker, started at once; ``ask`` gives it one request at a time.

    Args:
        target: The instruction set to compile for.
        nice: By how much its priority is lower than ours.
        root: The store in which it may write before it knows of a request.

    Attributes:
        lingers: Whether it was let go of, and ends by itself.

    Raises:
        CompileError: It cannot be started.
    """

    def __init__(self, target: Target, nice: int, root: Path) -> None:
        if getattr(sys, "frozen", False) or not sys.executable:
            # It would start the application once more, and that its workers.
            raise CompileError(
                "worker_died",
                "the compile worker cannot be started: this process has no Python interpreter to "
                "start, as in a frozen application; fill the cache beforehand",
                remember=False,
            )
        arguments = (os.getpid(), target.vector_bits, nice)
        self._scratch = Scratch(root)
        try:
            # No pipe: a worker that hangs before it reads would hold up who writes a long request.
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
                    env={**os.environ, **self._directories()},
                    umask=0o077,
                    pass_fds=self._scratch.descriptors,
                    # A group of its own: Ctrl-C in the terminal is for the script, not for us.
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
        self._works_alone = False  # What it was asked for, it can end without us.
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

    def _directories(self) -> dict[str, str]:
        """Return the variables that keep the worker and its compilers out of shared directories.

        The compiler's default lies below the system's temporary directory, under a name that
        anybody can foresee, and importing it needs one.
        """
        path = self._scratch.path
        if path is None:
            return {SCRATCH_VARIABLE: ""}
        return {
            SCRATCH_VARIABLE: str(path),
            "TMPDIR": str(path),
            "TORCHINDUCTOR_CACHE_DIR": str(path / "inductor"),
        }

    def _reap(self) -> None:
        """Wait for the worker's end, so that one which has ended by itself leaves nothing.

        No other thread takes the ended process: until this one does, its number, which is its
        group's, is nobody else's, and the group can be killed.
        """
        try:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            with self._lock:  # The script has waited for all children: the number may be another's.
                self._ended = True
        self._end_group(is_last=True)
        self._process.wait()
        self._scratch.close()
        self._close_pipes()

    def _end_group(self, *, is_last: bool) -> None:
        """Kill the worker with all that it has started, while the group is known to be its own."""
        with self._lock:
            if not self._ended and self._is_ours():
                # The whole group: the C++ compiler and the trial server too.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._ended = self._ended or is_last

    def _is_ours(self) -> bool:
        """Return whether nobody has taken the process, so that its number is no other's."""
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._ended = True
            return False
        return True

    def ask(self, request: dict[str, Any], deadline: Deadline) -> dict[str, Any] | None:
        """Return the answer, or ``None`` if the worker died or the deadline passed."""
        with self._lock:
            self._asking = True
        deadline.follow(self.pid)
        try:
            return self._ask(request, deadline)
        finally:
            with self._lock:
                self._asking = self._works_alone = False
            if not self.is_alive():
                self.kill()  # It closes the pipes now.

    def _ask(self, request: dict[str, Any], deadline: Deadline) -> dict[str, Any] | None:
        if not self._send(request, deadline):
            self.kill()
            return None
        with self._lock:
            self._works_alone = request.get("kind") in _LINGERING
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        buffer = b""
        while not buffer.endswith(b"\n") and len(buffer) < LONGEST_ANSWER:
            in_time = deadline.left() > 0
            # The socket has something to read when ``linger`` has closed it, or a dead worker.
            both: list[Any] = [pipe, self._requests]
            ready = wait(both, deadline.next_look()) if in_time else []
            if self.lingers:
                return None
            # A forked child of ours has the pipe's other end, too: it stays open when the worker is
            # dead.
            if in_time and not ready and self.is_alive():
                continue
            chunk = os.read(pipe, 1 << 16) if pipe in ready else b""
            if not chunk:
                self.kill()
                return None
            buffer += chunk
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
        """Let the worker end what it was asked for without us, and let go of it.

        It does nothing more, puts what comes of it into the store, and ends, after so many seconds
        at most. Who waits for its answer gets none.

        Returns:
            Whether it does; false where it has nothing to do that it could end by itself.
        """
        message = json.dumps({"kind": "linger", "until": time.monotonic() + seconds})
        with self._lock:
            if not self._works_alone or self._ended or not self.is_alive():
                return False
            try:
                # A worker that does not read must not hold up the script's end.
                if not select.select([], [self._requests], [], 0)[1]:
                    return False
                self._requests.send(message.encode() + b"\n", _NO_SIGNAL)
                self.lingers = True
                self._requests.shutdown(socket.SHUT_RDWR)  # Who waits for the answer wakes up.
            except (OSError, ValueError):
                self.lingers = False
                return False
            # It is not ours any more: subprocess would warn that it runs.
            self._process.returncode = 0
            return True

    def kill(self, *, even_if_it_lingers: bool = False) -> None:
        """End it with all that it has started, unless it was let go of."""
        if self.lingers:
            if even_if_it_lingers:
                self._end_group(is_last=False)
            return
        self._end_group(is_last=False)
        self._reaper.join()
        self._close_pipes()

    def _close_pipes(self) -> None:
        with self._lock:
            # Not under a thread that reads from it: the number may be another file's by then.
            if self._asking:
                return
            for pipe in (self._requests, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _send(self, message: dict[str, Any], deadline: Deadline) -> bool:
        data = json.dumps(message).encode() + b"\n"
        try:
            self._requests.settimeout(max(0.001, deadline.left()))
            self._requests.sendall(data, _NO_SIGNAL)
        except OSError:  # It is dead, hangs, or was closed when it was.
            return False
        return True
