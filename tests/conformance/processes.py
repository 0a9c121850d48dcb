"""Child processes that run units, and may crash or hang: that is a problem of their unit."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
MODULE = "tests.conformance.child"


@functools.cache
def entries() -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Return the dtypes of every entry by its name, and the versions; by a child.

    To import the databases changes global flags of torch, and takes seconds.
    """
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "entries"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    document = json.loads(done.stdout)
    return document["entries"], document["versions"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended without an answer.

    Attributes:
        how: ``crash: ...`` or ``hang: ...``, one line.
        stage: ``original`` while it ran an original with nothing registered, ``registered`` while
            it made the same call with everything registered, or what it did besides.
        label: The call's.
    """

    how: str
    stage: str
    label: str


class Child:
    """A process that runs one unit after the other.

    Args:
        phase: ``cold`` or ``warm``.
        cache_dir: The store.
        native: Value of the setting ``native``.
    """

    def __init__(self, phase: str, cache_dir: Path, native: str = "1") -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.units = 0
        self._read = b""
        # A fifth of every compile, and of what a hit costs, but nothing of what is computed.
        environment = {**os.environ, "AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, phase, str(cache_dir), native],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | Ended:
        """Return the child's answer, or how it ended without one.

        Args:
            request: As ``child.UnitRun`` takes it.
            timeout_s: Seconds without a word from the child, which speaks before every call.
        """
        assert self._process.stdin is not None
        self.units += 1
        stage, label = "start", ""
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return Ended(self._crash(), stage, label)
        while True:
            line = self._line(time.monotonic() + timeout_s)
            if line is None:
                self._kill()
                return Ended(f"hang: no end after {timeout_s:g} s", stage, label)
            if not line:
                return Ended(self._crash(), stage, label)
            document = json.loads(line)
            if "answer" in document:
                answer: dict[str, Any] = document["answer"]
                return answer
            stage, label = document["at"]

    def _line(self, deadline: float) -> bytes | None:
        """Return the next line, nothing at the end of the stream, ``None`` past the deadline."""
        assert self._process.stdout is not None
        number = self._process.stdout.fileno()
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not wait([number], left):
                return None
            chunk = os.read(number, 1 << 16)
            if not chunk:
                return b""
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        return line

    def kill(self) -> None:
        """End the child at once, from whatever thread; ``ask`` then returns."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the child; it ends its compile worker."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._kill()

    def _crash(self) -> str:
        status = self._process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip()[-1500:]
        self._kill()
        return f"crash: the child ended with {how}: {tail}"

    def _kill(self) -> None:
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):  # What was not sent cannot be flushed either.
                    stream.close()
