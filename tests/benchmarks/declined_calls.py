"""What a call costs that is declined, or a hit, over the same call with nothing registered.

    python -m tests.benchmarks.declined_calls [--rounds 61] [--counted 5] [--cases PATTERN]
        [--json FILE]

Default settings, the C++ hit path, one thread, without gradients. A declined call finds nothing in
an empty cache (mode ``cache_only``): it is keyed, looked up, counted and passed on, as a call is
that waits for its kernel. ``disabled`` is a registration that is switched off, and ``hit`` is
``mul`` served by its kernel, without the gate.

Rounds of about 2 ms alternate, both sides in one process, by the CPU time of the thread; a figure
is the ratio of the medians. Instructions (``instructions.py``) are the least of a few calls, and
need no quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import aoti_eager

from . import instructions

MOST_DECLINED, MOST_HIT = 1.03, 0.85
ROUND_NS = 2_000_000
WARM_UP = 300

Call = Callable[[], Any]


def cases() -> dict[str, tuple[str, Call, str]]:
    """Return, by name: the op, a call of it, and what becomes of the call."""
    torch.manual_seed(0)
    x, y = torch.rand(8, 8), torch.rand(8, 8)
    wide, other = torch.randn(4, 512), torch.randn(4, 512)
    calls: dict[str, tuple[str, Call]] = {
        "mul 8x8": ("aten::mul.Tensor", lambda: torch.mul(x, y)),
        "cat 4x512": ("aten::cat", lambda: torch.cat([wide, other], 1)),
        "softmax 4x512": ("aten::_softmax", lambda: torch.softmax(wide, 1)),
        "gelu 4x512": ("aten::gelu", lambda: functional.gelu(wide)),
    }
    found = {f"{name}, declined": (*case, "declined") for name, case in calls.items()}
    op, call = calls["mul 8x8"]
    return found | {"mul 8x8, disabled": (op, call, "disabled"), "mul 8x8, hit": (op, call, "hit")}


@contextlib.contextmanager
def registered(op: str, call: Call, what: str) -> Iterator[None]:
    """Register the op; calls inside are what ``what`` says."""
    with aoti_eager.register(op) as registration:
        if what == "disabled":
            registration.disable()
        for _ in range(3):
            call()
        before = aoti_eager.stats()[op]
        yield
        after = aoti_eager.stats()[op]
        assert after.misses == before.misses, "a call was a miss"
        found = {"hit": after.hits > before.hits, "declined": after.declines > before.declines}
        assert found == {name: name == what for name in found}, (op, what, after)


def nanoseconds(call: Call, calls: int) -> float:
    """Return the thread's CPU time of one call."""
    span = range(calls)
    begin = time.thread_time_ns()
    for _ in span:
        call()
    return (time.thread_time_ns() - begin) / calls


def one_case(
    op: str, call: Call, what: str, rounds: int, count: Callable[[Call], int] | None, counted: int
) -> dict[str, Any]:
    """Return the figures of one case."""
    times: dict[str, list[float]] = {"original": [], "ours": []}
    steps: dict[str, int] = {}
    for _ in range(WARM_UP):  # What Python specialises.
        call()
    calls = max(20, int(ROUND_NS / nanoseconds(call, 200)))
    for number in range(rounds):
        for side in sorted(times, reverse=bool(number % 2)):
            with contextlib.ExitStack() as stack:
                if side == "ours":
                    stack.enter_context(registered(op, call, what))
                for _ in range(WARM_UP):  # Looks at a key's first hits, too.
                    call()
                times[side].append(nanoseconds(call, calls))
                if count is not None and side not in steps:
                    steps[side] = min(count(call) for _ in range(counted))
    medians = {side: statistics.median(found) for side, found in times.items()}
    found = {"ns": medians, "ratio": medians["ours"] / medians["original"]}
    if steps:
        found["instructions"] = steps
        found["more_instructions"] = steps["ours"] - steps["original"]
    return found


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--counted", type=int, default=5, help="calls of which steps are counted")
    parser.add_argument("--cases", default="", help="only those whose name this pattern matches")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    head = f"{'case':<26}{'original ns':>12}{'ours ns':>10}{'ratio':>8}{'at most':>9}"
    print(f"{head}{'original instr.':>17}{'ours instr.':>13}{'more':>7}")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        config = aoti_eager.config
        config.gate, config.dynamic, config.native = False, False, "1"
        library = instructions.build(Path(directory))
        count = instructions.counter(library) if options.counted else None
        with (
            config.scope(mode="sync", cache_dir=Path(directory) / "cache"),
            aoti_eager.register("aten::mul.Tensor"),
        ):
            pass  # The C++ path is loaded, for all that follow.
        for name, (op, call, what) in cases().items():
            if not re.search(options.cases, name):
                continue
            empty = Path(directory) / "empty"
            full = Path(directory) / "cache"
            mode, cache = ("sync", full) if what == "hit" else ("cache_only", empty)
            with config.scope(mode=mode, cache_dir=cache):
                one = figures[name] = one_case(
                    op, call, what, options.rounds, count, options.counted
                )
            most = MOST_HIT if what == "hit" else MOST_DECLINED
            one["at_most"] = most
            line = f"{name:<26}{one['ns']['original']:>12.1f}{one['ns']['ours']:>10.1f}"
            line += f"{one['ratio']:>8.3f}{most:>9.2f}"
            if "instructions" in one:
                steps = one["instructions"]
                line += f"{steps['original']:>17}{steps['ours']:>13}{one['more_instructions']:>7}"
            print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
