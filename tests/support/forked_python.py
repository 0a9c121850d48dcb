"""Pythons for tests that start many: forked from one that has imported torch, which takes a second.

``run`` and ``popen`` take what ``subprocess`` takes. A child is as a new process is for what a
script does: nothing of ours is imported, and variables, directory, umask, arguments, standard
files, warning filters, exit status and ``atexit`` are its own. A child is not for tests about the
start of a process: what a fresh interpreter imports, its options, process groups, limits, who its
parent is. Those use ``subprocess``.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import compiled_once

SERVER = Path(__file__).with_name("torch_server.py")
# What Python, its libraries and torch read when they start, and what tests read of a process in
# /proc: a child that has other values of these is started, not forked.
_AT_START = (
    *("AE_TEST_MARK",),
    *("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "TORCH", "PYTORCH", "ATEN_", "OMP_"),
    *("GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "CUDA_"),
)
# Options of ``subprocess.Popen`` that a child has by what the server is sent.
_FORKED = {"stdin", "stdout", "stderr", "text", "env", "cwd", "start_new_session"}
REMEMBER_VARIABLE = "AE_TEST_COMPILED"


class Server:
    """The Python that forks; started with the first child, and ended with this process."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)  # of the run, before a test changes any
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._owner = 0

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Return whether a process with these variables starts as the server has."""
        return _at_start(environment) == _at_start(self._environment)

    def fork(self, request: dict[str, Any], standard: tuple[int, int, int]) -> tuple[int, int]:
        """Return a child's process number, and the pipe that tells its end."""
        if self._owner != os.getpid():  # none yet, or a parent's
            self._start()
        assert self._requests is not None
        read, write = os.pipe()
        # A file, as a message has a limit.
        document = os.memfd_create("request")
        try:
            with open(document, "w", encoding="utf-8", closefd=False) as file:
                json.dump(request, file)
            os.lseek(document, 0, os.SEEK_SET)
            socket.send_fds(self._requests, [b"r"], [document, write, *standard])
        finally:
            os.close(write)
            os.close(document)
        return _number(read), read

    def end(self) -> None:
        """End the server; children that still run go on."""
        if self._requests is not None and self._process is not None and self._owner == os.getpid():
            self._requests.close()
            self._process.communicate(timeout=60)
        self._requests = self._process = None

    def _start(self) -> None:
        self._owner = os.getpid()
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(SERVER), str(theirs.fileno())],
                # As most children have them: pipes.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                # A signal to the group of the tests is not for it.
                start_new_session=True,
                env=self._environment,
                cwd="/",
            )
        atexit.register(self.end)


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that count while a process starts.

    Inductor reads its own later: the server has not imported Inductor, which sets one itself.
    """
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_AT_START) and not name.startswith("TORCHINDUCTOR_")
    }


server = Server()


class _Forked(subprocess.Popen[Any]):
    """A child of the server's; of ``subprocess.Popen``, only what starts it and waits for it."""

    def __init__(self, command: list[str], main: dict[str, Any], **options: Any) -> None:
        self._main = main
        self._end: int | None = None
        super().__init__(command, **options)

    def _execute_child(self, *given: Any) -> None:
        signature = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
        options = signature.bind(self, *given).arguments
        pipes = (options["p2cread"], options["c2pwrite"], options["errwrite"])
        # Minus one is what this process has itself.
        standard = tuple(number if pipe == -1 else pipe for number, pipe in enumerate(pipes))
        environment = dict(os.environ if options["env"] is None else options["env"])
        kept = environment.get(REMEMBER_VARIABLE)
        request = {
            **self._main,
            "command": options["args"],
            "env": environment,
            "cwd": os.path.abspath(options["cwd"] or os.getcwd()),
            "start_new_session": options["start_new_session"],
            "umask": _umask(),
            "remember": kept and [compiled_once.__file__, kept],
        }
        try:
            self.pid, self._end = server.fork(request, standard)  # type: ignore[arg-type]
        finally:
            names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(options[name] for name in names))  # type: ignore[attr-defined]
        self._child_created = True

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._end is not None and _is_ready(self._end, 0):
            self._take()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            assert self._end is not None
            if not _is_ready(self._end, timeout):
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._take()
        assert self.returncode is not None
        return self.returncode

    def _take(self) -> None:
        assert self._end is not None
        self.returncode = os.waitstatus_to_exitcode(_number(self._end))
        os.close(self._end)
        self._end = None


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def _is_ready(pipe: int, timeout: float | None) -> bool:
    return bool(select.select([pipe], [], [], timeout)[0])


def _number(pipe: int) -> int:
    text = b""
    while not text.endswith(b"\n"):
        one = os.read(pipe, 1)
        if not one:
            raise RuntimeError("the server of forked Pythons has died")
        text += one
    return int(text)


def _main(command: list[str]) -> dict[str, Any] | None:
    """Return what a child's ``__main__`` is, or ``None`` for a command that is not to be forked."""
    if not command or command[0] != sys.executable:
        return None
    rest, shown = command[1:], []
    while rest[:1] == ["-W"]:
        shown.append(rest[1])
        rest = rest[2:]
    first, *arguments = rest
    main = {"warnings": shown}
    if first == "-c":
        code, *arguments = arguments
        return {**main, "main": ["code", code], "argv": ["-c", *arguments]}
    if first == "-m":
        module, *arguments = arguments
        return {**main, "main": ["module", module], "argv": ["-m", *arguments]}
    if first.startswith("-"):  # The interpreter's other options are about its start.
        return None
    return {**main, "main": ["script", first], "argv": [first, *arguments]}


def popen(command: list[Any], **options: Any) -> subprocess.Popen[Any]:
    """Return a Python that runs ``command``: forked where that is as good as started."""
    command = [os.fspath(one) for one in command]
    main = _main(command)
    environment = options.get("env") or os.environ
    if main is None or options.keys() - _FORKED or not server.serves(environment):
        return subprocess.Popen(command, **options)
    return _Forked(command, main, **options)


def run(
    command: list[Any],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run ``command`` to its end, as ``subprocess.run`` does; see ``popen``."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with popen(command, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
