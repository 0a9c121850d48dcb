"""Run entries of PyTorch's own operator database with every overload they reach registered.

``python -m tests.opdb`` draws 60 entries of ``op_db`` with a fixed seed. Each is run on its first
two float32 samples, cold and then warm in fresh processes over the same cache directory, and every
call is compared with the originals: values, dtypes, sizes, strides, aliasing, mutation, version
counters, the random stream, and exceptions word for word. The children (``tests/opdb_child.py``)
may crash or hang: that is a problem of their entry, and the next one gets a fresh child.

It prints one line an entry, then totals and every problem, and exits with status 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SEED = 0
ENTRIES = 60
PHASES = ("cold", "warm")
# The results of these are uninitialised memory: everything but their values is compared.
UNINITIALISED = frozenset(
    {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
)
# Decided by this call, this moment or this process, so a later process has no entry to find.
NOT_STORED = frozenset(
    {
        "out_resized",
        "specialisation_cap",
        "store_unwritable",
        "no_compiler",
        "compile_timeout",
        "worker_died",
        "library_unloadable",
        "setting_not_portable",
        "op_not_in_worker",
        "run_failed",
        "tracing",
    }
)


@dataclass
class Run:
    """What one child said about one entry in one phase.

    Attributes:
        registered: Qualified names of the overloads that were registered.
        served: ``op key`` of every table entry that has a kernel.
        declined: Reason by ``op key`` of every table entry that is declined, and by ``op`` of
            every op that always is.
        calls: Hits, misses, declines, compiles and failures, summed over the overloads.
        problems: One line for each difference from the originals.
        seconds: Wall clock.
    """

    registered: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    declined: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def draw(count: int, seed: int = SEED) -> list[str]:
    """Return the full names of ``count`` entries; a smaller draw is the beginning of a larger."""
    names = _names()
    return random.Random(seed).sample(names, len(names))[:count]


@functools.cache
def _names() -> tuple[str, ...]:
    # By a child: to import op_db changes global flags of torch, and takes seconds.
    done = subprocess.run(
        [sys.executable, "-m", "tests.opdb_child", "names"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return tuple(json.loads(done.stdout))


def run(
    names: list[str], cache_dir: Path, *, jobs: int = 2, timeout_s: float = 600.0, log: bool = False
) -> dict[str, dict[str, Run]]:
    """Return what happened to each entry, by name and phase: all of cold first, then all of warm.

    Args:
        names: Full names of entries of ``op_db``.
        cache_dir: The store that all children share.
        jobs: Children at a time, each with one compile worker.
        timeout_s: Seconds for one entry in one phase; past it the child is killed.
        log: Whether to print each entry as it ends.
    """
    runs: dict[str, dict[str, Run]] = {name: {} for name in names}
    for phase in PHASES:
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in names:
            waiting.put(name)
        threads = [
            threading.Thread(
                target=_run_queue, args=(waiting, runs, phase, cache_dir, timeout_s, log)
            )
            for _ in range(min(jobs, len(names)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for phases in runs.values():
        phases["warm"].problems += _not_warm(phases["cold"], phases["warm"])
    return runs


def _run_queue(
    waiting: queue.SimpleQueue[str],
    runs: dict[str, dict[str, Run]],
    phase: str,
    cache_dir: Path,
    timeout_s: float,
    log: bool,
) -> None:
    child: _Child | None = None
    while True:
        try:
            name = waiting.get_nowait()
        except queue.Empty:
            break
        if child is None:
            child = _Child(phase, cache_dir)
        started = time.monotonic()
        answer = child.ask(name, timeout_s)
        if isinstance(answer, str):
            runs[name][phase] = Run(problems=[answer], seconds=time.monotonic() - started)
            child = None
        else:
            runs[name][phase] = Run(**answer, seconds=time.monotonic() - started)
        if log:
            print(_line(name, phase, runs[name][phase]), flush=True)
    if child is not None:
        child.close()


class _Child:
    """A process that runs one entry after the other; see ``tests/opdb_child.py``."""

    def __init__(self, phase: str, cache_dir: Path) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.opdb_child", phase, str(cache_dir)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def ask(self, name: str, timeout_s: float) -> dict[str, Any] | str:
        """Return the child's answer, or how it ended without one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(name.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return self._ended()
        deadline = time.monotonic() + timeout_s
        buffer = b""
        while not buffer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not wait([self._process.stdout], left):
                self._kill()
                return f"hang: no end after {timeout_s:g} s"
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                return self._ended()
            buffer += chunk
        answer: dict[str, Any] = json.loads(buffer)
        return answer

    def close(self) -> None:
        """End the child; it ends its compile worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._kill()

    def _ended(self) -> str:
        status = self._process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip()[-1500:]
        self._kill()
        return f"crash: the child ended with {how}: {tail}"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):  # What was not sent cannot be flushed either.
                    stream.close()


def _not_warm(cold: Run, warm: Run) -> list[str]:
    """Return one line for each call that a later process did not find in the cache."""
    found = [f"{warm.calls['compiles']} compiles"] if warm.calls.get("compiles") else []
    for key in cold.served:
        if key in warm.declined:
            found.append(f"{key}: served cold, {warm.declined[key]} warm")
    for key, reason in warm.declined.items():
        if reason == "not_in_cache" and key not in cold.served:
            was = cold.declined.get(key, "unseen")
            if was not in NOT_STORED:
                found.append(f"{key}: {was} cold, {reason} warm")
    return [f"warm: {problem}" for problem in found]


def problems(runs: dict[str, dict[str, Run]]) -> list[str]:
    """Return every problem of every entry as one line."""
    return [
        f"{name} ({phase}): {problem}"
        for name, phases in runs.items()
        for phase, one in phases.items()
        for problem in one.problems
    ]


def table(runs: dict[str, dict[str, Run]]) -> str:
    """Return one line for each entry and the totals: keys served and declined, calls, problems."""
    lines = [_line(name, phase, one) for name, p in runs.items() for phase, one in p.items()]
    for phase in PHASES:
        every = [phases[phase] for phases in runs.values()]
        keys = {key for one in every for key in one.served}
        declined = Counter(
            reason for _, reason in {p for one in every for p in one.declined.items()}
        )
        calls: Counter[str] = Counter()
        for one in every:
            calls.update(one.calls)
        overloads = {op for one in every for op in one.registered}
        found = sum(len(one.problems) for one in every)
        by_reason = ", ".join(f"{reason} {count}" for reason, count in declined.most_common())
        lines += [
            "",
            f"{phase}: {len(runs)} entries, {len(overloads)} overloads, {found} problems",
            f"  keys: {len(keys)} served, {declined.total()} declined: {by_reason}",
            "  calls: " + ", ".join(f"{calls[name]} {name}" for name in sorted(calls)),
        ]
    left_out = sorted(UNINITIALISED & runs.keys())
    if left_out:
        lines.append(f"values not compared, they are uninitialised memory: {', '.join(left_out)}")
    return "\n".join(lines)


def _line(name: str, phase: str, one: Run) -> str:
    reasons = ", ".join(f"{r} {n}" for r, n in Counter(one.declined.values()).most_common())
    return (
        f"{name:40.40} {phase} overloads {len(one.registered):3} served {len(one.served):3} "
        f"hits {one.calls.get('hits', 0):3} compiles {one.calls.get('compiles', 0):3} "
        f"problems {len(one.problems):2} {one.seconds:6.1f} s  declined: {reasons or '-'}"
    )


def main() -> int:
    """Return the exit status: 1 if there is any problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.opdb", description=__doc__)
    parser.add_argument("--entries", type=int, default=ENTRIES, metavar="N")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these entries instead of a draw")
    parser.add_argument("--cache-dir", type=Path, help="default: a new temporary directory")
    parser.add_argument("--jobs", type=int, default=2, help="children, with a compile worker each")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="for an entry in a phase")
    parser.add_argument("--json", type=Path, help="write everything that was found to this file")
    options = parser.parse_args()
    names = options.only or draw(options.entries, options.seed)
    with tempfile.TemporaryDirectory() as fresh:
        runs = run(
            names,
            options.cache_dir or Path(fresh),
            jobs=options.jobs,
            timeout_s=options.timeout_s,
            log=True,
        )
    print("\n" + table(runs))
    found = problems(runs)
    print("\n".join(["", f"{len(found)} problems", *found]))
    if options.json:
        document = {n: {p: asdict(one) for p, one in phases.items()} for n, phases in runs.items()}
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
