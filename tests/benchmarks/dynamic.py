"""Dynamic kernels against static ones: ``python -m tests.benchmarks.dynamic [--json FILE]``.

The same calls, served by a kernel of their own and by one for all sizes of the first dimension (and
with ``--all``, of all dimensions), in alternating rounds of one process. Prints a table of medians
and the geometric mean of dynamic over static, which is at most 1.15.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import aoti_eager

MOST = 1.15
ROUND_S = 1e-3
aten = torch.ops.aten
# Arguments whose first dimension is the rows.
ROWS = (
    *("self", "input", "condition", "other", "tensors", "out", "tensor1", "tensor2"),
    *("grad_output", "output"),
)
Call = Callable[[], Any]


def cases(rows: int, columns: int) -> dict[str, tuple[str, Call]]:
    """Return op and call of each case by name."""
    generator = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(rows, columns, generator=generator) for _ in range(3))
    row, mask = y[:1].clone(), x > 0
    weight, bias = y[0].clone(), y[1].clone()
    out = torch.empty_like(x)
    tanh, soft = torch.tanh(x), torch.softmax(x, 1)
    positive = x.abs() + 0.1
    return {
        "tanh": ("aten::tanh", lambda: torch.tanh(x)),
        "silu": ("aten::silu", lambda: aten.silu(x)),
        "sigmoid": ("aten::sigmoid", lambda: torch.sigmoid(x)),
        "exp": ("aten::exp", lambda: torch.exp(x)),
        "log": ("aten::log", lambda: torch.log(positive)),
        "relu": ("aten::relu", lambda: torch.relu(x)),
        "leaky_relu": ("aten::leaky_relu", lambda: aten.leaky_relu(x, 0.1)),
        "mul": ("aten::mul.Tensor", lambda: torch.mul(x, y)),
        "add, broadcast": ("aten::add.Tensor", lambda: torch.add(x, row)),
        "sub": ("aten::sub.Tensor", lambda: torch.sub(x, y)),
        "div": ("aten::div.Tensor", lambda: torch.div(x, positive)),
        "maximum": ("aten::maximum", lambda: torch.maximum(x, y)),
        "addcmul": ("aten::addcmul", lambda: torch.addcmul(x, y, z)),
        "where": ("aten::where.self", lambda: torch.where(mask, x, y)),
        "sum": ("aten::sum.dim_IntList", lambda: torch.sum(x, 1)),
        "mean": ("aten::mean.dim", lambda: torch.mean(x, 1)),
        "var_mean": ("aten::var_mean.correction", lambda: torch.var_mean(x, 1)),
        "logsumexp": ("aten::logsumexp", lambda: torch.logsumexp(x, 1)),
        "softmax": ("aten::_softmax", lambda: torch.softmax(x, 1)),
        "softmax backward": (
            "aten::_softmax_backward_data",
            lambda: aten._softmax_backward_data(y, soft, 1, x.dtype),
        ),
        "layer_norm": (
            "aten::native_layer_norm",
            lambda: aten.native_layer_norm(x, [columns], weight, bias, 1e-5),
        ),
        "cat": ("aten::cat", lambda: torch.cat([x, y], 1)),
        "tanh backward": ("aten::tanh_backward", lambda: aten.tanh_backward(y, tanh)),
        "mul, out": ("aten::mul.out", lambda: torch.mul(x, y, out=out)),
        "_foreach_mul": ("aten::_foreach_mul.List", lambda: torch._foreach_mul([x, y], [y, z])),
    }


def seconds(call: Call, calls: int) -> float:
    """Return the time of one call."""
    for _ in range(2):
        call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def is_dynamic(op: str) -> bool:
    """Return whether a dynamic specialisation is what the op has in the cache."""
    return any("s0" in entry.inputs for entry in aoti_eager.cache.list() if entry.op == op)


def measured(
    op: str, call: Call, directory: Path, rounds: int, every: bool
) -> dict[str, Any] | None:
    """Return the medians of the static and the dynamic kernel; ``None`` if it has not both."""
    sides = {
        "static": {"cache_dir": directory / "static", "dynamic": False},
        "dynamic": {"cache_dir": directory / "dynamic", "dynamic": True if every else "auto"},
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    with aoti_eager.register(op):
        for settings in sides.values():
            with aoti_eager.config.scope(**settings):
                call(), call()
                if settings["dynamic"] is not False and not is_dynamic(op):
                    return None
        calls = max(1, int(ROUND_S / seconds(call, 3)))
        for number in range(rounds):
            for side in sides if number % 2 else reversed(sides):
                with aoti_eager.config.scope(**sides[side]):
                    times[side].append(seconds(call, calls))
    static, dynamic = (statistics.median(times[side]) for side in ("static", "dynamic"))
    return {"static_us": static * 1e6, "dynamic_us": dynamic * 1e6, "ratio": dynamic / static}


def main() -> None:
    """Print the table, and write it as JSON where asked to.

    Status 1 if the mean is too high or an op has no dynamic kernel.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--all", action="store_true", help="all dimensions, not the first alone")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    namespace = parser.parse_args()
    found: dict[str, Any] = {}
    print(f"{'case':20} {'static us':>10} {'dynamic us':>10} {'ratio':>6}")
    with (
        tempfile.TemporaryDirectory() as made,
        aoti_eager.config.scope(mode="sync", gate=False, native="1"),
    ):
        directory = Path(made)
        toolchain = aoti_eager.config.cache_dir / "toolchain"
        for side in ("static", "dynamic"):
            (directory / side).mkdir(mode=0o700)
            if toolchain.exists():  # What is the same for all: headers, the C++ hit path.
                (directory / side / "toolchain").symlink_to(toolchain)
        for name, (op, call) in cases(namespace.rows, namespace.columns).items():
            if not namespace.all:
                for argument in ROWS:
                    mark_rows(op, argument)
            one = measured(op, call, directory, namespace.rounds, namespace.all)
            found[name] = one
            if one is None:
                print(f"{name:20} no dynamic kernel")
            else:
                print(
                    f"{name:20} {one['static_us']:10.2f} {one['dynamic_us']:10.2f} "
                    f"{one['ratio']:6.2f}"
                )
    ratios = [one["ratio"] for one in found.values() if one is not None]
    mean = math.exp(statistics.mean(math.log(ratio) for ratio in ratios))
    print(f"\n{len(ratios)} of {len(found)} cases, geometric mean {mean:.3f} (at most {MOST})")
    if namespace.json:
        namespace.json.write_text(json.dumps({"cases": found, "mean": mean}, indent=1) + "\n")
    sys.exit(mean > MOST or len(ratios) < len(found))


def mark_rows(op: str, argument: str) -> None:
    """Have the first dimension of an argument vary, if the op has such an argument."""
    try:
        aoti_eager.mark_dynamic(op, argument, 0)
    except aoti_eager.errors.RegistrationError:
        return


if __name__ == "__main__":
    main()
