"""What a script costs whose calls hardly repeat: ``python -m tests.benchmarks.random_calls``.

2,000 calls of 14 ops. Rows and columns of each call are drawn from 11 values, and its tensors are
views of one of six kinds (with ``--mixed``, each tensor's is drawn: that is harder, and has no
bounds); the seed is fixed. Each result is compared with the original's. The figures,
for the modes ``background`` and ``sync`` with all other settings as they ship but the gate, which
is off in ``sync``: compiles started, and the share of calls that were hits. In the background the
compiles are counted when they are asked for, and the process ends without them.

    python -m tests.benchmarks.random_calls [--mode MODE ...] [--calls N] [--seed N] [--mixed]
        [--op OP ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

CALLS = 2000
SIZES = (1, 2, 3, 5, 8, 13, 16, 31, 64, 100, 128)
# mode -> most compiles, least share of hits
BARS: dict[str, tuple[int, float]] = {"background": (60, 0.0), "sync": (400, 0.7)}
RTOL = ATOL = 1e-5

aten = torch.ops.aten
Make = Callable[..., Any]

# Each is registered; arguments are rows, columns, and a function that gives a tensor of some sizes.
OPS: dict[str, Callable[[Callable[..., Tensor], int, int], tuple[Make, tuple[Any, ...]]]] = {
    "aten::mul.Tensor": lambda new, r, c: (torch.mul, (new(r, c), new(r, c))),
    "aten::add.Tensor": lambda new, r, c: (torch.add, (new(r, c), new(r, c))),
    "aten::sub.Tensor": lambda new, r, c: (torch.sub, (new(r, c), new(r, c))),
    "aten::maximum": lambda new, r, c: (torch.maximum, (new(r, c), new(r, c))),
    "aten::where.self": lambda new, r, c: (torch.where, (new(r, c) > 0, new(r, c), new(r, c))),
    "aten::tanh": lambda new, r, c: (torch.tanh, (new(r, c),)),
    "aten::silu": lambda new, r, c: (aten.silu, (new(r, c),)),
    "aten::sigmoid": lambda new, r, c: (torch.sigmoid, (new(r, c),)),
    "aten::exp": lambda new, r, c: (torch.exp, (new(r, c),)),
    "aten::neg": lambda new, r, c: (torch.neg, (new(r, c),)),
    "aten::sum.dim_IntList": lambda new, r, c: (torch.sum, (new(r, c), [1])),
    "aten::mean.dim": lambda new, r, c: (torch.mean, (new(r, c), [1])),
    "aten::_softmax": lambda new, r, c: (aten._softmax, (new(r, c), 1, False)),
    "aten::native_layer_norm": lambda new, r, c: (
        aten.native_layer_norm,
        (new(r, c), [c], new(1, c)[0], new(1, c)[0], 1e-5),
    ),
}
# Sizes -> a tensor of these, as a view of another.
VIEWS: tuple[Callable[[Make, int, int], Tensor], ...] = (
    lambda new, r, c: new(r, c),
    lambda new, r, c: new(c, r).t(),
    lambda new, r, c: new(r, c + 3)[:, :c],
    lambda new, r, c: new(r, 2 * c)[:, ::2],
    lambda new, r, c: new(r + 2, c)[2:],
    lambda new, r, c: new(1, c).expand(r, c),
)


@dataclass(frozen=True)
class Call:
    """One call: the op's name, its function and its arguments."""

    op: str
    function: Make
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.function(*self.arguments)


def calls(
    number: int = CALLS,
    seed: int = 0,
    *,
    ops: Sequence[str] = tuple(OPS),
    sizes: Sequence[int] = SIZES,
    is_mixed: bool = False,
) -> Iterator[Call]:
    """Give the calls of a run, one after another.

    Args:
        number: How many.
        seed: Of all that is drawn.
        ops: What is drawn from.
        sizes: Likewise.
        is_mixed: Whether tensors of one call may be views of several kinds.
    """
    drawn = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def new(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator)

    def viewed(rows: int, columns: int) -> Tensor:
        return (drawn.choice(VIEWS) if is_mixed else view)(new, rows, columns)

    for _ in range(number):
        op, view = drawn.choice(ops), drawn.choice(VIEWS)
        function, arguments = OPS[op](viewed, drawn.choice(sizes), drawn.choice(sizes))
        yield Call(op, function, arguments)


def results(value: Any) -> list[Tensor]:
    """Return the tensors of an op's result."""
    return list(value) if isinstance(value, tuple | list) else [value]


def agree(got: Any, want: Any) -> bool:
    """Return whether two results of an op are the same but for rounding, NaN for NaN."""
    return all(
        one.shape == other.shape
        and one.stride() == other.stride()
        and torch.allclose(one, other, rtol=RTOL, atol=ATOL, equal_nan=True)
        for one, other in zip(results(got), results(want), strict=True)
    )


def run(mode: str, made: Sequence[Call]) -> dict[str, Any]:
    """Return the figures of these calls in one mode, in this process, with an empty cache."""
    import aoti_eager
    from aoti_eager._compile_service import queue

    want = [call() for call in made]
    got, slowest_s = [], 0.0
    with (
        aoti_eager.config.scope(mode=mode, gate=mode != "sync"),
        mock.patch.object(
            queue.Background,
            "submit",
            autospec=True,
            side_effect=queue.Background.submit,
        ) as submit,
        aoti_eager.register(sorted({call.op for call in made})),
    ):
        begin = time.perf_counter()
        for call in made:
            start = time.perf_counter()
            got.append(call())
            slowest_s = max(slowest_s, time.perf_counter() - start)
        seconds = time.perf_counter() - begin
        # What compares them calls ops, too: it is left to the end.
        counts = sum(aoti_eager.stats().values(), aoti_eager.OpStats())
    return {
        "calls": counts.calls,
        "compiles": submit.call_count if mode == "background" else counts.compiles,
        "hits": counts.hits / counts.calls,
        "declined": dict(counts.declined),
        "failures": counts.failures,
        "mismatches": sum(not agree(*pair) for pair in zip(got, want, strict=True)),
        "seconds": seconds,
        "longest_call_s": slowest_s,
    }


def main() -> int:
    """Print the table, and write it as JSON where asked to; 1 if a figure is out of its bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=list(BARS), action="append")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixed", action="store_true", help="views of several kinds in a call")
    parser.add_argument("--op", choices=list(OPS), action="append", help="leave the others out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        made = list(calls(options.calls, options.seed, is_mixed=options.mixed))
        made = [call for call in made if call.op in (options.op or OPS)]
        print(json.dumps(run(options.mode[0], made)))
        return 0
    found: dict[str, Any] = {}
    missed = False
    print(f"{'mode':12} {'calls':>6} {'compiles':>9} {'hits':>6} {'wrong':>6} {'seconds':>8}")
    for mode in options.mode or BARS:
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, "-m", "tests.benchmarks.random_calls", "--here"]
            command += ["--mode", mode, "--calls", str(options.calls), "--seed", str(options.seed)]
            command += ["--mixed"] * options.mixed
            command += [word for op in options.op or () for word in ("--op", op)]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "AOTI_EAGER_CACHE_DIR": directory},
            )
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        one = found[mode] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{mode:12} {one['calls']:6} {one['compiles']:9} {one['hits']:6.1%} "
            f"{one['mismatches']:6} {one['seconds']:8.1f}"
        )
        compiles, hits = BARS[mode]
        if not options.mixed:
            missed |= one["compiles"] > compiles or one["hits"] < hits
        missed |= one["mismatches"] > 0
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if missed:
        print(f"wanted: {BARS} (most compiles, least hits), and no result that differs")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
