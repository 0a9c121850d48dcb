"""What is won, and that nothing is lost: ``python -m tests.benchmarks.gate [--json FILE]``.

Calls of the ops that ``run`` registers by default, in two sizes and two dtypes, and of ops that are
known for calls that lose, with the gate on: each is compiled, measured
and kept or declined, in the mode ``sync`` from an empty cache. Then each is timed as a script makes
it, registered and not, in alternating rounds; the figure is the ratio of the medians. A case that
comes out slow is measured again, twice at most, and the best of its ratios counts: one of seventy
is always beside another process's work. Each case below 0.97 is printed with its cause: what became
of the call, and what the gate has measured.

    python -m tests.benchmarks.gate [--rounds N] [--cases PATTERN] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import aoti_eager
from aoti_eager import cache

LEAST, LEAST_MEAN = 0.97, 1.8
ROUND_S = 2e-3
MOST_TRIES = 3

Call = Callable[[], Any]
aten = torch.ops.aten


def default_ops(x: Tensor) -> dict[str, tuple[str, Call]]:
    """Return, by name, op and call on ``x``, (rows, columns), of what ``run`` registers."""
    y = x.flip(0).contiguous()
    columns = x.shape[1:]
    weight, bias = x[0].clone(), x[-1].clone()
    _, mean, rstd = aten.native_layer_norm(x, columns, weight, bias, 1e-5)
    image = x.reshape(x.shape[0], 8, -1)
    tanh, soft, log_soft = torch.tanh(x), torch.softmax(x, 1), torch.log_softmax(x, 1)
    norm = functional.layer_norm
    backward = aten.native_layer_norm_backward
    return {
        "layer_norm": ("aten::native_layer_norm", lambda: norm(x, columns, weight, bias)),
        "layer_norm backward": (
            "aten::native_layer_norm_backward",
            lambda: backward(y, x, columns, mean, rstd, weight, bias, [True, True, True]),
        ),
        "group_norm": (
            "aten::native_group_norm",
            lambda: functional.group_norm(image, 4, weight[:8], bias[:8]),
        ),
        "var_mean": ("aten::var_mean.correction", lambda: torch.var_mean(x, 1)),
        "pow": ("aten::pow.Tensor_Scalar", lambda: torch.pow(x, 2)),
        "gelu backward": ("aten::gelu_backward", lambda: aten.gelu_backward(y, x)),
        "silu": ("aten::silu", lambda: functional.silu(x)),
        "silu backward": ("aten::silu_backward", lambda: aten.silu_backward(y, x)),
        "tanh": ("aten::tanh", lambda: torch.tanh(x)),
        "tanh backward": ("aten::tanh_backward", lambda: aten.tanh_backward(y, tanh)),
        "softmax": ("aten::_softmax", lambda: torch.softmax(x, 1)),
        "softmax backward": (
            "aten::_softmax_backward_data",
            lambda: aten._softmax_backward_data(y, soft, 1, x.dtype),
        ),
        "log_softmax": ("aten::_log_softmax", lambda: torch.log_softmax(x, 1)),
        "log_softmax backward": (
            "aten::_log_softmax_backward_data",
            lambda: aten._log_softmax_backward_data(y, log_soft, 1, x.dtype),
        ),
        "logsumexp": ("aten::logsumexp", lambda: torch.logsumexp(x, 1)),
        "huber_loss": ("aten::huber_loss", lambda: functional.huber_loss(x, y)),
    }


def other_ops(x: Tensor) -> dict[str, tuple[str, Call]]:
    """Return the same of ops of which some calls are known to lose."""
    y, z = x.flip(0).contiguous(), x.roll(1, 1)
    return {
        "gelu": ("aten::gelu", lambda: functional.gelu(x)),
        "gelu tanh": ("aten::gelu", lambda: functional.gelu(x, approximate="tanh")),
        "mish": ("aten::mish", lambda: functional.mish(x)),
        "addcmul": ("aten::addcmul", lambda: torch.addcmul(x, y, z)),
        "amax": ("aten::amax", lambda: torch.amax(x, 1)),
        "cat": ("aten::cat", lambda: torch.cat([x, y], 1)),
        "mul": ("aten::mul.Tensor", lambda: torch.mul(x, y)),
        "std": ("aten::std.correction", lambda: torch.std(x, 1)),
        "elu": ("aten::elu", lambda: functional.elu(x)),
    }


def cases() -> Iterator[tuple[str, str, Call]]:
    """Give name, op and call of each case."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((4, 512), (512, 512)):
            x = torch.randn(shape, generator=generator).to(dtype)
            kind = f"{str(dtype).removeprefix('torch.')} {shape[0]}x{shape[1]}"
            ops = default_ops(x)
            if dtype is torch.float32:
                ops |= other_ops(x)
            for name, (op, call) in ops.items():
                yield f"{name}, {kind}", op, call


def seconds(call: Call, calls: int) -> float:
    """Return the time of one call."""
    for _ in range(3):
        call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def measured(op: str, call: Call, rounds: int) -> tuple[float, float]:
    """Return the medians of the original's and the served call's seconds."""
    original, served = [], []
    calls = max(1, min(1000, int(ROUND_S / seconds(call, 5))))
    for number in range(rounds):
        for registered in (True, False) if number % 2 else (False, True):
            if registered:
                with aoti_eager.register(op):
                    served.append(seconds(call, calls))
            else:
                original.append(seconds(call, calls))
    return statistics.median(original), statistics.median(served)


def one_case(op: str, call: Call, rounds: int) -> dict[str, Any]:
    """Return the figures of one case."""
    known = {entry.digest for entry in cache.list()}
    with aoti_eager.register(op):
        call(), call()
        stats = sum(aoti_eager.stats().values(), aoti_eager.OpStats())
        call()
        after = sum(aoti_eager.stats().values(), aoti_eager.OpStats())
    reasons = [r for r, n in after.declined.items() if n > stats.declined.get(r, 0)]
    found = []
    for _ in range(MOST_TRIES):
        found.append(measured(op, call, rounds))
        if found[-1][0] / found[-1][1] >= LEAST:
            break
    original, served = max(found, key=lambda pair: pair[0] / pair[1])
    return {
        "original_us": original * 1e6,
        "served_us": served * 1e6,
        "speedup": original / served,
        "tries": len(found),
        "declined": reasons[0] if reasons else None,
        "gate": gate_times(known),
    }


def gate_times(known: set[str]) -> str | None:
    """Return what the gate has measured of entries with other digests, in words."""
    found = []
    for entry in cache.list():
        if entry.digest not in known:
            verdicts = [one.verdict for one in cache.inspect(entry.digest)]
            times = {} if verdicts[0] is None else verdicts[0].times
            found += [
                f"kernel {taken.kernel_us:.2f}, original {taken.original_us:.2f}, "
                f"declined {taken.passed_us:.2f} us (+- {100 * taken.spread:.0f} %)"
                for path, taken in times.items()
                if path.startswith("native")
            ]
    return "; ".join(found) or None


def cause(one: dict[str, Any]) -> str:
    """Return why a case is slower than the original, as far as its figures say."""
    measured = one["gate"] or "nothing that lasts"
    if one["declined"]:
        more = one["served_us"] - one["original_us"]
        return f"declined as {one['declined']}, {more:.2f} us to the original; {measured}"
    return f"served by a kernel that is slower here than where the gate measured it: {measured}"


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", default="", help="only those whose name this pattern matches")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    namespace = parser.parse_args()
    print(f"{'case':<40}{'original us':>12}{'served us':>11}{'speedup':>9}  declined")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        config = aoti_eager.config
        config.mode, config.gate, config.native = "sync", True, "1"
        config.cache_dir = Path(directory) / "cache"
        for name, op, call in cases():
            if re.search(namespace.cases, name):
                one = found[name] = one_case(op, call, namespace.rounds)
                print(
                    f"{name:<40}{one['original_us']:>12.2f}{one['served_us']:>11.2f}"
                    f"{one['speedup']:>9.2f}  {one['declined'] or ''}",
                    flush=True,
                )
    speedups = [one["speedup"] for one in found.values()]
    mean = math.exp(statistics.fmean(map(math.log, speedups)))
    slow = {name: cause(one) for name, one in found.items() if one["speedup"] < LEAST}
    print(f"\n{len(found)} cases, geometric mean {mean:.2f} (at least {LEAST_MEAN})")
    print(f"slowest {min(speedups):.3f} (at least {LEAST}); below it: {len(slow) or 'none'}")
    for name, why in slow.items():
        print(f"  {name}: {found[name]['speedup']:.3f}, {why}")
    if namespace.json:
        figures = {"cases": found, "geometric_mean": mean, "slowest": min(speedups), "slow": slow}
        namespace.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
