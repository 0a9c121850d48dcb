"""What tests see of compile workers from outside: processes by a mark, and how far one has come."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from aoti_eager._parent_watch import NAME

_VARIABLE = "AE_TEST_MARK"
T = TypeVar("T")


def until(look: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """Look again and again until something is seen, and return it.

    Raises:
        AssertionError: It was not, in time.
    """
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not after {seconds:g} s: {what}"
        time.sleep(0.002)
    return seen


@dataclass(frozen=True)
class Process:
    """One that runs, or is stopped."""

    pid: int
    parent: int
    command: str
    name: str = ""

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def runs(self) -> bool:
        """Return whether any of its threads runs: until then it cannot be waited for."""
        try:
            threads = os.listdir(f"/proc/{self.pid}/task")
        except OSError:
            return False  # It has just been taken by its parent.
        stats = [_text(Path(f"/proc/{self.pid}/task/{one}/stat")) for one in threads]
        return any(stat and stat.rpartition(")")[2].split()[0] not in "ZX" for stat in stats)

    def is_stopped(self) -> bool:
        """Return whether its main thread is stopped."""
        return _text(Path(f"/proc/{self.pid}/stat")).rpartition(")")[2].split()[:1] == ["T"]


def stopped(found: Process | None) -> Process | None:
    """Stop a process; return it if it does stop, and has not ended before.

    Where it is asked for again and again (``until``), a process that has ended is no harm: the next
    one is found.
    """
    if found is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        found.send(signal.SIGSTOP)
    return found if found.is_stopped() else None


class Marked:
    """The processes that are started while the mark is in the environment, and theirs.

    Attributes:
        variables: To be in the environment.
    """

    def __init__(self) -> None:
        self.variables = {_VARIABLE: uuid.uuid4().hex}

    def processes(self) -> list[Process]:
        """Return those that are alive; this one is not among them."""
        mark = f"{_VARIABLE}={self.variables[_VARIABLE]}".encode()
        return [found for path in Path("/proc").glob("[0-9]*") if (found := _process(path, mark))]

    def worker(self) -> Process | None:
        """Return the compile worker, if there is one; of several, any."""
        return next(self._named("aoti_eager._worker"), None)

    def server(self, module: str) -> Process | None:
        """Return the fork server of ``module`` that the worker has started."""
        worker = self.worker()
        servers = self._named(f"aoti_eager.{module}")
        return next((s for s in servers if worker and s.parent == worker.pid), None)

    def compiles(self) -> bool:
        """Return whether a C++ compiler runs."""
        return any("cc1plus" in p.command for p in self.processes())

    def kernel_compiler(self) -> Process | None:
        """Return the C++ compiler of a kernel; those of what kernels share are others."""
        compilers = (p for p in self.processes() if "cc1plus" in p.command)
        return next((p for p in compilers if "/library.cpp " in p.command), None)

    def _named(self, module: str) -> Iterator[Process]:
        found = (p for p in self.processes() if p.name != NAME)
        return (p for p in found if f"from {module} import" in p.command)


def _process(path: Path, mark: bytes) -> Process | None:
    try:
        if mark not in (path / "environ").read_bytes().split(b"\0"):  # empty for a zombie
            return None
        name, _, rest = (path / "stat").read_text().partition("(")[2].rpartition(")")
        stat = rest.split()
        command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None  # It has just ended.
    return None if stat[0] in "ZX" else Process(int(path.name), int(stat[1]), command, name)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def work(cache_dir: Path, name: str = "") -> list[Path]:
    """Return the work directories that hold any file, or one called ``name``.

    A worker that waits has an empty one of its own.
    """
    pattern = name or "*"
    return [
        directory
        for directory in (cache_dir / "tmp").glob("*")
        if any(path.is_file() for path in directory.rglob(pattern))
    ]
