"""Parts of the laboratory's work: run by processes that may die, recorded, resumed.

A part's result is one line of ``results.jsonl``, appended when the part ends. A part is run anew
only if no line has it with the versions of this moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from .kernels import Versions
from .unchanged import holds

ROOT = Path(__file__).resolve().parents[2]

# An exhaustive part takes minutes; one that takes longer than this hangs.
PART_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Part:
    """What is compared at once by one process.

    Attributes:
        op: The functional overload, ``aten::mul.Tensor``.
        dtype: Of the tensors, ``float32``; mixed ones joined by ``,``.
        target: The instruction set, ``x86-64-v4``.
        family: The name of the family that runs it; see ``families.py``.
        variant: Which further arguments; empty for none.
        span: Which share of the values; ``all`` for one part.
        coverage: What the values are, in a word: ``exhaustive``, ``structured``, ...
    """

    op: str
    dtype: str
    target: str
    family: str
    variant: str = ""
    span: str = "all"
    coverage: str = "structured"

    def to_json(self) -> dict[str, str]:
        """Return the part as JSON values."""
        return asdict(self)

    @property
    def name(self) -> str:
        """Return the part in one line."""
        parts = (self.op, self.variant, self.dtype, self.family, self.span, self.coverage)
        return " ".join(part for part in (*parts, self.target) if part)


Result = dict[str, Any]


class Results:
    """The results of a directory.

    Args:
        directory: Where ``results.jsonl`` lies.
        versions: Results that do not hold under them are passed over.
    """

    def __init__(self, directory: Path, versions: Versions) -> None:
        self._file = directory / "results.jsonl"
        self._versions = versions
        self._lock = threading.Lock()

    def all(self) -> list[Result]:
        """Return the last result of each part, in the order of their names."""
        found: dict[str, Result] = {}
        with contextlib.suppress(FileNotFoundError), open(self._file, encoding="utf-8") as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):  # A process died while it wrote.
                    result = json.loads(line)
                    if holds(result, self._versions.to_json()):
                        found[Part(**result["part"]).name] = result
        return [found[name] for name in sorted(found)]

    def append(self, part: Part, seconds: float, answer: Result) -> Result:
        """Return the result that was written, by one write: two writers' lines do not mix."""
        result = {
            "part": part.to_json(),
            "versions": self._versions.to_json(),
            "seconds": round(seconds, 3),
            **answer,
        }
        # A line of its own also behind one that was cut off.
        line = ("\n" + json.dumps(result, sort_keys=True) + "\n").encode()
        with self._lock:
            file = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        return result


def run_parts(
    parts: Iterable[Part],
    directory: Path,
    target: str,
    versions: Versions,
    *,
    jobs: int = 2,
    timeout_s: float = PART_TIMEOUT_S,
    log: Callable[[str], None] = lambda line: None,
    command: Sequence[str] = (sys.executable, "-m", "tests.numerics.child"),
) -> list[Result]:
    """Run the parts that have no result yet and return the results of all of them.

    Args:
        parts: What to run, in this order.
        directory: Of results and kernels.
        target: The instruction set.
        versions: Of this moment.
        jobs: Processes at a time, each with a compile worker.
        timeout_s: Seconds for one part; past it, its process is killed.
        log: Gets a line as each part ends.
        command: The child's program; it is given the directory and the target.
    """
    directory.mkdir(parents=True, exist_ok=True)
    results = Results(directory, versions)
    done = {Part(**result["part"]).name for result in results.all()}
    wanted = list(parts)
    waiting: queue.SimpleQueue[Part] = queue.SimpleQueue()
    left = [part for part in wanted if part.name not in done]
    for part in left:
        waiting.put(part)
    log(f"{len(wanted)} parts, {len(wanted) - len(left)} of them done before")

    def work() -> None:
        child: Child | None = None
        while True:
            try:
                part = waiting.get_nowait()
            except queue.Empty:
                break
            started = time.monotonic()
            answer: Result = {}
            # Who was killed from outside is tried once more: that says nothing about the part.
            for _ in range(2):
                child = child or Child([*command, str(directory), target])
                answer = child.ask(part.to_json(), timeout_s)
                if answer["outcome"] in ("crashed", "hung"):
                    child = None
                if not answer.pop("was_killed", False):
                    break
            result = results.append(part, time.monotonic() - started, answer)
            log(f"{result['seconds']:8.1f} s  {part.name}: {answer['outcome']} {said(answer)}")
        if child is not None:
            child.close()

    threads = [threading.Thread(target=work) for _ in range(min(jobs, max(1, len(left))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {part.name for part in wanted}
    return [result for result in results.all() if Part(**result["part"]).name in names]


def said(answer: Result) -> str:
    """Return what a result says in a few words."""
    if answer["outcome"] != "done":
        return str(answer.get("reason", ""))[:150]
    from .rule import faults

    return "; ".join(faults(answer["measures"])) or "ok"


class Child:
    """A process that runs one part after the other; see ``child.py``.

    Args:
        command: Its program with arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _kill()
        self.process = subprocess.Popen(
            list(command),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any], timeout_s: float) -> Result:
        """Return the child's answer, or how it ended without one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return self._ended()
        deadline = time.monotonic() + timeout_s
        buffer = b""
        while not buffer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not wait([self.process.stdout], left):
                self._kill()
                return {"outcome": "hung", "reason": f"no end after {timeout_s:g} s"}
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                return self._ended()
            buffer += chunk
        answer: Result = json.loads(buffer)
        return answer

    def close(self) -> None:
        """End the child; it ends its compile worker."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self._kill()

    def _ended(self) -> Result:
        status = self.process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip()[-1500:]
        self._kill()
        return {
            "outcome": "crashed",
            "reason": f"the process ended with {how}: {tail}",
            "was_killed": status == -signal.SIGKILL,
        }

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):  # What was not sent cannot be flushed either.
                    stream.close()
