"""A server process that has imported its modules and run no op, and forks a child per request.

Generated code may end the child (it can write past its buffers or abort): that end is a reply, too.
The server forks and does not spawn: importing torch takes a second, and a process that has not yet
run an op has no threads that a fork could lose. For the same reason the worker forks the server
itself where it can (``ForkServer.fork``).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from .._base import gc_pause
from .._base.child_process import child_command
from .._base.deadline import Deadline
from .._base.determinism import FATAL_SIGNALS, is_passing_text

# Of a child's standard error, so many bytes are read, and so many characters go into a message.
_TAIL_BYTES, _WORDS = 4096, 1000

Answer = dict[str, Any]
Handler = Callable[[Mapping[str, Any]], Answer]


class ForkServer:
    """The parent's side: the server's process, started again whenever it died.

    Args:
        module: The compile worker's module whose function ``serve`` calls ``serve`` of this module.
        environment: Variables of the server on top of this process's.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._environment = environment or {}
        self._process: subprocess.Popen[str] | ForkedServer | None = None

    def fork(self) -> None:
        """Start the server as a fork of this process: torch is not imported once more.

        Only a process that has run no op and started no thread may call this. The server is started
        as a program of its own, when there is something to do, where the system lacks what the fork
        needs, or where the server needs an environment of its own.
        """
        if sys.platform == "linux" and not self._environment:
            with contextlib.suppress(OSError):  # The system allows no further process.
                self._process = ForkedServer(self._module)

    def start(self) -> subprocess.Popen[str] | ForkedServer:
        """Start the server if none runs, and return its process, which may still be importing."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = subprocess.Popen(
                child_command(f"aoti_eager._compile_worker.{self._module}", "serve"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **self._environment},
                text=True,
            )
        return process

    def close(self) -> None:
        """End the server; the next ``run`` starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            _wait(process)

    def run(self, request: Mapping[str, Any]) -> Answer:
        """Return what the handler returned, or the ``reason`` and ``message`` of its child's end.

        Args:
            request: For the handler. The child is killed after ``timeout_s`` seconds; seconds in
                which it waits for a core do not count.
        """
        problem = "it ended without an answer"
        try:
            process = self.start()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError as error:
            line, problem = "", str(error)
        try:
            answer: Answer = json.loads(line)
        except ValueError:
            self.close()
            message = f"the trial process died: {problem}"
            return {"reason": "crashed", "message": message, "remember": False}
        return answer


class ForkedServer:
    """A server that is a fork of this process, with the part of ``Popen`` that its user needs.

    Args:
        module: As for ``ForkServer``.

    Attributes:
        pid: The server's process number.
        stdin: The pipe to its standard input.
        stdout: The pipe from its standard output.
    """

    def __init__(self, module: str) -> None:
        (requests, asking), (answering, answers) = os.pipe(), os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            for descriptor in (requests, asking, answering, answers):
                os.close(descriptor)
            raise
        if self.pid == 0:
            try:
                _become_server(requests, answers)
                name = f"{__package__}.{module}"
                with gc_pause.paused():
                    serve_requests = importlib.import_module(name).serve
                serve_requests()
            finally:
                os._exit(0)
        os.close(requests)
        os.close(answers)
        self.stdin = os.fdopen(asking, "w", encoding="utf-8")
        self.stdout = os.fdopen(answering, encoding="utf-8")
        self._has_ended = False

    def poll(self) -> int | None:
        """Return a number if the server has ended, and ``None`` while it runs."""
        if not self._has_ended:
            self._has_ended = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        return 0 if self._has_ended else None

    def kill(self) -> None:
        """Kill the server if it runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for the server's end."""
        if not self._has_ended:
            os.waitpid(self.pid, 0)
            self._has_ended = True


def _become_server(requests: int, answers: int) -> None:
    """Give a fork the descriptors and signals of a program that was just started.

    The worker's other descriptors are closed: its watcher and its script see the worker's end by
    the end of pipes, and locks of its directories last as long as a descriptor of theirs.
    """
    os.dup2(requests, 0)
    os.dup2(answers, 1)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # The directory's own.
                os.close(int(name))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _wait(process: subprocess.Popen[str] | ForkedServer) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # What is not written yet has no reader.
                pipe.close()
    process.wait()


def serve(handler: Handler) -> None:
    """Answer requests until standard input ends: one JSON document per line, each way."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # A library's output must not be read as a reply.
    for line in sys.stdin:
        answers.write(json.dumps(_in_child(json.loads(line), handler)) + "\n")
        answers.flush()


def _in_child(request: Mapping[str, Any], handler: Handler) -> Answer:
    answer = _once_in_child(request, handler)
    if answer.get("signal") == "SIGBUS":
        # A truncated file or a full disk raises SIGBUS once. Wrong code raises it again.
        answer = _once_in_child(request, handler)
        if answer.get("signal") == "SIGBUS":
            answer["remember"] = not is_passing_text(answer["message"])
    return answer


def _once_in_child(request: Mapping[str, Any], handler: Handler) -> Answer:
    (read, write), (complaints, said) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for descriptor in (read, complaints):
                os.close(descriptor)
            os.dup2(said, 2)
            os.close(said)
            # Python's own handler would turn the signal into a Python error.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            document = json.dumps(handler(request)).encode()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(document)
            status = 0
        except BaseException:  # noqa: BLE001 - the parent reads the error, and this child ends
            os.write(2, traceback.format_exc().encode(errors="replace")[-_TAIL_BYTES:])
        finally:
            os._exit(status)
    os.close(write)
    os.close(said)
    tail = _Tail(complaints)
    deadline = Deadline(request["timeout_s"])
    deadline.follow(child)
    answer = _read_until(read, tail, deadline)
    os.close(read)
    if answer is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    complained = tail.close()
    if answer is None:
        return _crashed(f"no end after {request['timeout_s']:g} s", complained)
    if os.WIFSIGNALED(status):
        name = _signal_name(os.WTERMSIG(status))
        ended = _crashed(f"the process ended with {name}", complained)
        # Code that aborts because it got no memory may get it another time.
        is_own = name in FATAL_SIGNALS and not is_passing_text(complained)
        return {**ended, "signal": name, "remember": is_own}
    if not answer:
        # The child had an error of its own, such as no memory.
        exit_code = os.waitstatus_to_exitcode(status)
        return _crashed(f"the process ended with status {exit_code}", complained)
    result: Answer = json.loads(answer)
    if result.get("remember") and is_passing_text(complained):
        # The library's error is general; the actual cause is on standard error.
        result["remember"] = False
    return result


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"  # Of the real-time signals, only the first and the last have names.


def _crashed(message: str, complained: str) -> Answer:
    words = complained.strip()[-_WORDS:]
    message = f"{message}: {words}" if words else message
    return {"reason": "crashed", "message": message, "log": complained, "remember": False}


class _Tail:
    """The last bytes that a child writes to its standard error, read from a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self._text = b""
        os.set_blocking(pipe, False)

    def read(self) -> bool:
        """Read the available bytes; return whether more may come."""
        try:
            chunk = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return True
        self._text = (self._text + chunk)[-_TAIL_BYTES:]
        return bool(chunk)

    def close(self) -> str:
        """Return the text, after the child has ended; processes that still write are ignored."""
        for _ in range(16):  # A pipe holds no more than so many chunks.
            if not (select.select([self.pipe], [], [], 0)[0] and self.read()):
                break
        os.close(self.pipe)
        return self._text.decode(errors="replace")


def _read_until(pipe: int, tail: _Tail, deadline: Deadline) -> bytes | None:
    chunks: list[bytes] = []
    pipes = [pipe, tail.pipe]
    while deadline.left() > 0:
        ready, _, _ = select.select(pipes, [], [], deadline.next_look())
        if tail.pipe in ready and not tail.read():
            pipes = [pipe]
        if pipe in ready:
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
    return None
