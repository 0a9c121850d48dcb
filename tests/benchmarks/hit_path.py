"""What a hit costs: ``python -m tests.benchmarks.hit_path [--json FILE]``.

Medians of alternating rounds in one process, in microseconds a call and as a ratio to ATen's own
``mul`` on 8x8 float32. ATen is measured with nothing registered, so each round registers and
unregisters; nothing else runs in the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import timeit
from collections.abc import Callable
from pathlib import Path

import torch

import aoti_eager

CALLS = 5000
ROUNDS = 15


def microseconds(call: Callable[[], object]) -> float:
    """Return the time of one call, in microseconds, over ``CALLS`` of them."""
    return timeit.timeit(call, number=CALLS) / CALLS * 1e6


def measure() -> dict[str, float]:
    """Return the median microseconds a call of each way, by name."""
    x, y = torch.randn(8, 8), torch.randn(8, 8)
    times: dict[str, list[float]] = {}

    def call() -> torch.Tensor:
        return torch.mul(x, y)

    def matmul() -> torch.Tensor:
        return torch.mm(x, y)

    with aoti_eager.config.scope(check=True):
        for _ in range(ROUNDS):
            times.setdefault("aten mul", []).append(microseconds(call))
            times.setdefault("aten mm", []).append(microseconds(matmul))
            with aoti_eager.register(["aten::mul.Tensor", "aten::mm"]) as registration:
                call(), matmul()
                before = aoti_eager.stats()["aten::mul.Tensor"].hits
                times.setdefault("hit", []).append(microseconds(call))
                hits = aoti_eager.stats()["aten::mul.Tensor"].hits - before
                assert hits == CALLS, f"only {hits} of {CALLS} calls were hits"
                times.setdefault("declined mm", []).append(microseconds(matmul))
                registration.disable()
                times.setdefault("disabled", []).append(microseconds(call))
    return {name: statistics.median(rounds) for name, rounds in times.items()}


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    namespace = parser.parse_args()
    medians = measure()
    base = {"declined mm": medians["aten mm"], "aten mm": medians["aten mm"]}
    ratios = {name: us / base.get(name, medians["aten mul"]) for name, us in medians.items()}
    print(f"{'way':<14}{'us a call':>10}{'/ ATen':>8}")
    for name, us in medians.items():
        print(f"{name:<14}{us:>10.2f}{ratios[name]:>8.2f}")
    if namespace.json:
        namespace.json.write_text(json.dumps({"microseconds": medians, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
