"""A process that has imported what is needed and run nothing, and forks a child for each request.

What a child does may end it (generated code can write past its buffers or abort): that is an
answer, too. Fork, not spawn: importing torch takes a second, and a process that has not yet run an
op has no threads that a fork could lose.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ._child import child_command

Answer = dict[str, Any]
Handler = Callable[[Mapping[str, Any]], Answer]


class ForkServer:
    """The parent's side: the server's process, started again whenever it died.

    Args:
        module: Our module with a function ``serve``, which calls the one below.
        environment: Variables of the server on top of this process's.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._environment = environment or {}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """Start the server, if it is not there, and return its process; it imports meanwhile."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = subprocess.Popen(
                child_command(f"aoti_eager.{self._module}", "serve"),
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
            process.communicate()

    def run(self, request: Mapping[str, Any]) -> Answer:
        """Return what the handler returned, or the ``reason`` and ``message`` of its child's end.

        Args:
            request: For the handler; ``timeout_s`` are the seconds until the child is killed.
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


def serve(handler: Handler) -> None:
    """Answer requests on standard input until it ends; one JSON document a line each way."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a library prints must not be taken for an answer.
    for line in sys.stdin:
        answers.write(json.dumps(_in_child(json.loads(line), handler)) + "\n")
        answers.flush()


def _in_child(request: Mapping[str, Any], handler: Handler) -> Answer:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            document = json.dumps(handler(request)).encode()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(document)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    answer = _read_until(read, time.monotonic() + request["timeout_s"])
    os.close(read)
    if answer is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answer is None:
        message = f"no end after {request['timeout_s']:g} s"
        return {"reason": "crashed", "message": message, "remember": False}
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        # Killed from outside (out of memory, say): another time it may pass.
        remember = os.WTERMSIG(status) not in (signal.SIGKILL, signal.SIGTERM)
        message = f"the process ended with {name}"
        return {"reason": "crashed", "message": message, "remember": remember}
    if not answer:
        # An error of its own: no memory, say.
        message = f"the process ended with status {status}"
        return {"reason": "crashed", "message": message, "remember": False}
    result: Answer = json.loads(answer)
    return result


def _read_until(pipe: int, deadline: float) -> bytes | None:
    chunks: list[bytes] = []
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
