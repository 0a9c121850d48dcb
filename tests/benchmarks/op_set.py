"""The figures of the op set: ``python -m tests.benchmarks.op_set``.

Each op that may be in the set (``op_calls.candidates``) is called at each size and dtype, with the
gate on: its kernel is compiled, measured and kept or declined, in the mode ``sync``. Then the call
is timed as a script makes it, registered and not, in alternating rounds; the figures are medians.
Each figure is merged into the file as soon as it is there. The command goes on where it was
interrupted: what the file has of this processor, thread count, torch and note is not measured
again. ``--fresh`` measures all again. For the figures of a release, on a quiet machine:

    python -m tests.benchmarks.op_set --fresh
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import aoti_eager
from aoti_eager._base.torch_compat.dispatcher import OpOverload
from aoti_eager._enable.chosen import full_name
from aoti_eager._enable.op_set import FILE, Figure, OpSet, Run, merged, op_set_text, read_op_set
from aoti_eager._store.verdict import processor

from .op_calls import Call, call_of, candidates

SIZES = ((512, 512), (4, 512), (64, 1024, 64))
DTYPES = ("float32", "bfloat16")
# A kernel's calls number 2, 4, 8, ... are compared with the original.
WARM_CALLS, WARM_S = 200, 0.1
ROUND_S = 0.02
Clock = Callable[[], float]
BUSY = "the machine was busy: CPU time, few rounds"


def main() -> None:
    """Measure, and write the file after each figure."""
    options = _options()
    # On a busy machine, threads that wait for each other spin, which takes CPU time, too.
    threads = options.threads or (1 if options.busy else torch.get_num_threads())
    torch.set_num_threads(threads)
    clock = time.thread_time if options.busy else time.perf_counter
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    note = BUSY if options.busy else ""
    run = Run(processor(), threads, today, str(torch.__version__), note)
    before = _read(options.out)
    known = set() if options.fresh or before is None else _known(before, run)
    ends_at = time.monotonic() + options.limit_s
    config = aoti_eager.config
    config.mode, config.gate, config.native = "sync", True, "1"
    with _cache_dir(options.cache_dir) as directory, torch.no_grad():
        config.cache_dir = directory
        for op, dtype, size in _cases(options.ops):
            place = (full_name(op), dtype, _words(size))
            if place in known or time.monotonic() > ends_at:
                continue
            call = call_of(op, size, getattr(torch, dtype))
            if call is None:
                continue
            declined = _declined(op, call)
            aten_s, served_s = _times(op, call, options.rounds, clock)
            figure = Figure(place[0], 0, *place[1:], aten_s * 1e6, served_s * 1e6, declined)
            _write(options.out, merged(_read(options.out), run, [figure]))
            print(
                f"{place[0]:<50}{dtype:>9}{place[2]:>12}{figure.aten_us:>10.2f}"
                f"{figure.served_us:>10.2f}{figure.speed:>7.2f}  {declined or ''}",
                flush=True,
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FILE, help="the file to merge figures into")
    parser.add_argument("--ops", default="", help="only ops whose name this pattern matches")
    parser.add_argument("--rounds", type=int, default=15, help="rounds a figure")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument(
        "--busy", action="store_true", help="one thread and its CPU time, and a note of that"
    )
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="begin none later")
    parser.add_argument("--cache-dir", type=Path, help="keep the kernels here")
    return parser.parse_args()


def _cases(pattern: str) -> Iterator[tuple[OpOverload, str, tuple[int, ...]]]:
    """Give op, dtype and size of each case: first all ops at one size."""
    ops = [op for op in candidates() if re.search(pattern, full_name(op))]
    for dtype in DTYPES:
        for size in SIZES:
            for op in ops:
                yield op, dtype, size


def _times(op: OpOverload, call: Call, rounds: int, clock: Clock) -> tuple[float, float]:
    """Return the medians of the original's and the served call's seconds."""
    original, served = [], []
    for number in range(rounds):
        for registered in (True, False) if number % 2 else (False, True):
            if registered:
                with aoti_eager.register(op):
                    served.append(_seconds(call, clock))
            else:
                original.append(_seconds(call, clock))
    return statistics.median(original), statistics.median(served)


def _seconds(call: Call, clock: Clock) -> float:
    """Return the time of one call, when a kernel's first calls are compared no more."""
    begin, count = clock(), 0
    while count < WARM_CALLS and clock() - begin < WARM_S:
        call()
        count += 1
    calls = max(3, int(ROUND_S * count / max(clock() - begin, 1e-6)))
    begin = clock()
    for _ in range(calls):
        call()
    return (clock() - begin) / calls


def _declined(op: OpOverload, call: Call) -> str | None:
    """Return why the call's kernel does not serve; ``None`` if it serves."""
    with aoti_eager.register(op):
        call(), call()
        before = sum(aoti_eager.stats().values(), aoti_eager.OpStats())
        call()
        after = sum(aoti_eager.stats().values(), aoti_eager.OpStats())
    reasons = [r for r, n in after.declined.items() if n > before.declined.get(r, 0)]
    if reasons:
        return reasons[0]
    return None if after.hits > before.hits else "missed"


def _words(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _known(op_set: OpSet, run: Run) -> set[tuple[str, str, str]]:
    """Return op, dtype and size of what a run like this has measured."""
    mine = (run.processor, run.threads, run.torch, run.note)
    same = {
        number
        for number, one in enumerate(op_set.runs)
        if (one.processor, one.threads, one.torch, one.note) == mine
    }
    return {(one.op, one.dtype, one.size) for one in op_set.figures if one.run in same}


def _read(path: Path) -> OpSet | None:
    return read_op_set(path.read_text(encoding="utf-8")) if path.exists() else None


def _write(path: Path, op_set: OpSet) -> None:
    staged = path.with_suffix(".new")
    staged.write_text(op_set_text(op_set), encoding="utf-8")
    os.replace(staged, path)  # An interruption leaves the old file or the new one.


@contextlib.contextmanager
def _cache_dir(path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "cache"


if __name__ == "__main__":
    main()
