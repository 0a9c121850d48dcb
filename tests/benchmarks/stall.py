"""What a call waits for in the mode ``background``: ``python -m tests.benchmarks.stall``.

A loop over ``mul``, ``layer_norm``, ``silu`` and ``tanh`` on (4..64, 256) float32, from an empty
cache. Each call is made twice, by the original and as a script makes it, one after the other, so
that both meet the same machine. The loop ends when every key has been decided on and has come into
use, and a while after that. The figure is the longest call as a script makes it, beyond the longest
one of the original: the median of several tries, each in a process of its own.

``--large`` does the same with calls on (4096, 4096), which take milliseconds and are compared and
timed outside of this process.

    python -m tests.benchmarks.stall [--tries N] [--large] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import aoti_eager
from aoti_eager._native.passthrough import passthrough
from aoti_eager._registration import registry

AT_MOST_MS = 1.0
OPS = ("aten::mul.Tensor", "aten::native_layer_norm", "aten::silu", "aten::tanh")
# What is seen after the last decision, and the longest that a try may take.
TAIL_S, LONGEST_S = 2.0, 180.0

Call = Callable[[], Any]


def calls(large: bool) -> list[Call]:
    """Return the calls of one turn of the loop."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4096, 4096)] if large else [(rows, 256) for rows in (4, 8, 16, 32, 64)]
    made: list[Call] = []
    for shape in shapes:
        x, weight = (torch.randn(s, generator=generator) for s in (shape, shape[1:]))
        made += [
            lambda x=x: torch.mul(x, x),
            lambda x=x, w=weight: functional.layer_norm(x, x.shape[1:], w, w),
            lambda x=x: functional.silu(x),
            lambda x=x: torch.tanh(x),
        ]
    return made


def undecided() -> int:
    """Return how many keys wait for a worker or for a call to compare."""
    return sum(cache.table.compiling for cache in registry.caches())


def one_try(large: bool) -> dict[str, Any]:
    """Return the longest calls of one loop, in milliseconds, and what became of the keys."""
    clock = time.perf_counter
    loop = calls(large)
    for call in loop * 3:
        call()  # What torch does once is done by both.
    registration = aoti_eager.register(OPS)
    longest = {"original": 0.0, "served": 0.0}
    over, turns = 0, 0
    start, decided = clock(), None
    while clock() - start < LONGEST_S:
        for call in loop:
            with passthrough():
                begin = clock()
                call()
                original = clock() - begin
            begin = clock()
            call()
            served = clock() - begin
            longest["original"] = max(longest["original"], original)
            longest["served"] = max(longest["served"], served)
            over += served > 1e-3
        turns += 1
        if decided is None and not undecided():
            decided = clock() - start
        if decided is not None and clock() - start > decided + TAIL_S:
            break
    stats = sum(aoti_eager.stats().values(), aoti_eager.OpStats())
    kernels = sum(len(cache.table.kernels) for cache in registry.caches())
    registration.unregister()
    return {
        "longest_ms": {side: seconds * 1e3 for side, seconds in longest.items()},
        "beyond_ms": (longest["served"] - longest["original"]) * 1e3,
        "served_over_1_ms": over,
        "turns": turns,
        "decided_after_s": decided,
        "kernels_in_use": kernels,
        "keys": len(loop),
        "compiles": stats.compiles,
        "hits": stats.hits,
        "declined": dict(stats.declined),
    }


def tries(number: int, large: bool) -> list[dict[str, Any]]:
    """Return ``number`` tries, each in a process of its own with an empty cache."""
    done = []
    for _ in range(number):
        with tempfile.TemporaryDirectory() as directory:
            environment = {**os.environ, "AOTI_EAGER_CACHE_DIR": f"{directory}/cache"}
            environment.pop("AOTI_EAGER_MODE", None)  # the default
            environment["AOTI_EAGER_NATIVE"] = "1"  # from the first call on
            command = [sys.executable, "-m", "tests.benchmarks.stall", "--one"]
            command += ["--large"] if large else []
            output = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
        done.append(json.loads(output.splitlines()[-1]))
        print(_row(done[-1]), flush=True)
    return done


_HEADER = (
    f"{'original ms':>12}{'served ms':>11}{'beyond ms':>11}{'turns':>8}{'decided s':>11}"
    f"{'in use':>8}{'compiles':>10}{'hits':>8}"
)


def _row(one: dict[str, Any]) -> str:
    longest, decided = one["longest_ms"], one["decided_after_s"]
    return (
        f"{longest['original']:>12.2f}{longest['served']:>11.2f}{one['beyond_ms']:>11.2f}"
        f"{one['turns']:>8}{decided if decided is None else round(decided, 1)!s:>11}"
        f"{one['kernels_in_use']:>4} of {one['keys']}{one['compiles']:>8}{one['hits']:>8}"
    )


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="calls that take milliseconds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    namespace = parser.parse_args()
    if namespace.one:
        print(json.dumps(one_try(namespace.large)))
        return
    print(_HEADER)
    done = tries(namespace.tries, namespace.large)
    beyond = statistics.median(one["beyond_ms"] for one in done)
    print(f"\nlongest call beyond the original's longest, median: {beyond:.2f} ms", end="")
    print("" if namespace.large else f", at most {AT_MOST_MS:g}")
    if namespace.json:
        figures = {"beyond_ms": beyond, "tries": done}
        namespace.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
