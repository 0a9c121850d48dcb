"""Ops of functions against eager and ``torch.compile``: ``python -m tests.benchmarks.custom_ops``.

Each function runs as it is, as an op of ours, and under ``torch.compile``, at a small and a large
size; forward alone, and forward and backward. Rounds of them alternate; a number is a ratio of
medians. Eager runs twice: by how much its two medians differ is the noise of a row. Prints a table
and, with ``--json FILE``, writes what was measured.

Last comes an op whose calls are declined (nothing is in its cache, and nothing is compiled), over
calling its function, which takes some 40 us; and the dispatcher's own part: an op of
``torch.library`` with the same function. A ratio of medians from alternating rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import Any

import torch
from torch import Tensor

import aoti_eager

from ..support import gradient_ops as functions

ROUND_NS, ROUNDS = 2_000_000, 21
MOST_DECLINED = 1.05  # over the function's own call
Step = Callable[[], Any]


def leaf(*sizes: int) -> Tensor:
    """Return a parameter or an activation."""
    return torch.randn(*sizes).requires_grad_()


def norms(rows: int, width: int) -> list[Any]:
    """Return the arguments of ``rms_norm``."""
    return [leaf(rows, width), leaf(width)]


def residual(rows: int, width: int) -> list[Any]:
    """Return the arguments of ``layer_norm_residual``."""
    return [leaf(rows, width), leaf(rows, width), leaf(width), leaf(width)]


def rotary(rows: int, width: int) -> list[Any]:
    """Return the arguments of ``rotary``: heads, positions, channels."""
    angles = torch.randn(rows, width // 2)
    return [leaf(4, rows, width), angles.cos(), angles.sin()]


def logits(rows: int, width: int) -> list[Any]:
    """Return the arguments of ``cross_entropy``."""
    return [leaf(rows, width), torch.randint(width, (rows,))]


def adamw(rows: int, width: int) -> list[Any]:
    """Return the arguments of ``adamw``: parameters, gradients, moments."""
    lists = [[torch.rand(rows, width) for _ in range(4)] for _ in range(4)]
    return [*lists, 1e-3, 0.9, 0.999, 1e-8, 0.01, 0.1, 0.001]


CASES: dict[str, tuple[Callable[..., Any], Callable[[int, int], list[Any]], tuple[str, ...]]] = {
    "rms_norm": (functions.rms_norm, norms, ()),
    "layer_norm+residual": (functions.layer_norm_residual, residual, ()),
    "swiglu": (functions.swiglu, lambda m, n: [leaf(m, n), leaf(m, n)], ()),
    "gelu_tanh": (functions.gelu_tanh, lambda m, n: [leaf(m, n)], ()),
    "rotary": (functions.rotary, rotary, ()),
    "cross_entropy": (functions.cross_entropy, logits, ()),
    "adamw": (functions.adamw, adamw, ("parameters", "averages", "squares")),
}
SIZES = {"small": (16, 64), "large": (1024, 1024)}


def forward(function: Callable[..., Any], arguments: list[Any]) -> Step:
    """Return a call, to be made where gradients are off."""
    return lambda: function(*arguments)


def training(function: Callable[..., Any], arguments: list[Any]) -> Step:
    """Return a call and its gradients."""
    wanted = [one for one in arguments if isinstance(one, Tensor) and one.requires_grad]
    gradient = torch.randn_like(function(*arguments))

    def step() -> None:
        torch.autograd.grad(function(*arguments), wanted, gradient)

    return step


def medians(steps: Sequence[Step], clock: Callable[[], int] = perf_counter_ns) -> list[float]:
    """Return microseconds of each step, from alternating rounds, by a clock of nanoseconds."""
    counts = []
    for step in steps:
        for _ in range(20):
            step()
        start = clock()
        for _ in range(5):
            step()
        counts.append(max(1, int(ROUND_NS / max(1, (clock() - start) / 5))))
    times: list[list[float]] = [[] for _ in steps]
    for number in range(ROUNDS):
        order = range(len(steps)) if number % 2 else reversed(range(len(steps)))
        for index in order:
            step, count = steps[index], counts[index]
            start = clock()
            for _ in range(count):
                step()
            times[index].append((clock() - start) / count / 1e3)
    return [statistics.median(one) for one in times]


def measured(name: str, size: str, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return what one function takes at one size."""
    function, make, mutates = CASES[name]
    op = aoti_eager.custom_op(f"bench::{function.__name__}_{size}", function, mutates_args=mutates)
    rows = []
    try:
        for kind in kinds:
            if kind == "training" and mutates:
                continue
            torch.manual_seed(0)
            arguments = make(*SIZES[size])
            torch.compiler.reset()
            compiled = torch.compile(function, dynamic=False)
            make_step = forward if kind == "forward" else training
            steps = [make_step(one, arguments) for one in (function, op, compiled, function)]
            with torch.set_grad_enabled(kind == "training"):
                eager, ours, compile_, again = medians(steps)
            rows.append(
                {
                    "function": name,
                    "size": size,
                    "kind": kind,
                    "eager_us": round(eager, 2),
                    "ours_us": round(ours, 2),
                    "compile_us": round(compile_, 2),
                    "over_eager": round(eager / ours, 3),
                    "over_compile": round(compile_ / ours, 3),
                    "eager_over_eager": round(again / eager, 3),
                }
            )
            print(row_text(rows[-1]), flush=True)
    finally:
        op.unregister()
    return rows


def forty_microseconds(x: Tensor, weight: Tensor) -> Tensor:
    """Return something that takes some 40 us, of functions of torch's."""
    for _ in range(4):
        x = torch.tanh(torch.mul(x, weight)) + torch.sigmoid(x)
    return x


def declined() -> dict[str, Any]:
    """Return what a declined call takes over the function's."""
    x, weight = torch.randn(16, 64), torch.randn(64)
    op = aoti_eager.custom_op("bench::declined", forty_microseconds)
    plain = torch.library.Library("bench_plain", "DEF")
    plain.define("forty(Tensor x, Tensor weight) -> Tensor")
    plain.impl("forty", forty_microseconds, "CPU")
    bare = torch.ops.bench_plain.forty.default
    try:
        # The C++ path is loaded by now; an empty cache has no kernel.
        with (
            tempfile.TemporaryDirectory() as empty,
            aoti_eager.config.scope(mode="cache_only", cache_dir=Path(empty)),
            torch.no_grad(),
        ):
            steps = [forward(one, [x, weight]) for one in (forty_microseconds, op, bare)]
            eager, ours, dispatched = medians(steps, thread_time_ns)  # One thread: they are small.
            found = aoti_eager.stats()["bench::declined"]
            assert found.declines > 0
            assert found.hits == found.misses == 0
    finally:
        op.unregister()
        plain._destroy()
    return {
        "function_us": round(eager, 2),
        "declined_us": round(ours, 2),
        "over_function": round(ours / eager, 3),
        "dispatched_over_function": round(dispatched / eager, 3),
    }


def row_text(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    numbers = [row[f"{one}_us"] for one in ("eager", "ours", "compile")]
    return (
        f"{row['function']:22}{row['size']:7}{row['kind']:10}"
        + "".join(f"{one:12.2f}" for one in numbers)
        + f"{row['over_eager']:9.2f}x{row['over_compile']:9.2f}x{row['eager_over_eager']:9.2f}x"
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return geometric means and the worst case."""
    found: dict[str, Any] = {}
    for kind in ("forward", "training"):
        of_kind = [row for row in rows if row["kind"] == kind]
        small = [row for row in of_kind if row["size"] == "small"]
        if of_kind:
            found[kind] = {
                "over_eager": mean(of_kind, "over_eager"),
                "over_eager_small": mean(small, "over_eager"),
                "over_compile_small": mean(small, "over_compile"),
                "worst_over_eager": min(row["over_eager"] for row in of_kind),
            }
    return found


def mean(rows: list[dict[str, Any]], name: str) -> float:
    """Return a geometric mean."""
    return round(statistics.geometric_mean([row[name] for row in rows]), 3) if rows else 0.0


def main() -> None:
    """Print the table and the means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--functions", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--kinds", nargs="+", default=["forward", "training"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    aoti_eager.config.mode = "sync"
    print(
        f"{'function':22}{'size':7}{'kind':10}{'eager us':>12}{'ours us':>12}{'compile us':>12}"
        f"{'eager/':>10}{'compile/':>10}{'(noise)':>10}"
    )
    rows = [
        row
        for name in options.functions
        for size in options.sizes
        for row in measured(name, size, options.kinds)
    ]
    result = {
        "threads": torch.get_num_threads(),
        "means": summary(rows),
        "rows": rows,
        "declined": declined(),
    }
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1))
    print(json.dumps(result["means"]))
    print("declined", json.dumps(result["declined"]), f"(at most {MOST_DECLINED})")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
