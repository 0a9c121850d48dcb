"""Whether calls leak: ``python -m tests.benchmarks.hit_path_memory [--calls 10000000]``.

Resident memory of the process before and after that many calls of each kind, in MB. Nothing else
runs in the process. ``--json`` writes the figures.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import aoti_eager
from aoti_eager._native import op_kernel

CALLS = 10_000_000
OPS = ["aten::mul.Tensor", "aten::add_.Tensor", "aten::native_layer_norm", "aten::cat"]


def resident_mb() -> float:
    """Return the process's resident memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth_mb(function: Callable[[], object], calls: int) -> float:
    """Return by how much ``calls`` calls make the process grow, after as many as warm it up."""
    for _ in itertools.repeat(None, 20_000):
        function()
    before = resident_mb()
    for _ in itertools.repeat(None, calls):
        function()
    return resident_mb() - before


def measure(calls: int, native: str) -> dict[str, float]:
    """Return the growth in MB by kind of call; the rarer kinds are called a tenth as often."""
    x, y = torch.randn(8, 8), torch.randn(8, 8)
    kinds: dict[str, Callable[[], object]] = {
        "hit, mul": lambda: torch.mul(x, y),
        "hit, mul by a number": lambda: torch.mul(x, 2.5),
        "hit, in place": lambda: x.add_(y, alpha=0.0),
        "hit, three outputs": lambda: torch.native_layer_norm(x, [8], None, None, 1e-5),
        "hit, a list": lambda: torch.cat([x, y]),
    }
    figures: dict[str, float] = {}
    with (
        aoti_eager.config.scope(native=native, mode="sync", gate=False),
        aoti_eager.register(OPS) as registration,
    ):
        for name, function in kinds.items():
            function(), function()
            figures[name] = growth_mb(function, calls if name == "hit, mul" else calls // 10)
        declines = sum(counts.declines for counts in aoti_eager.stats().values())
        assert declines == 0, "a call was no hit"
        registration.disable()
        figures["disabled"] = growth_mb(kinds["hit, mul"], calls // 10)
        registration.enable()
        with (
            tempfile.TemporaryDirectory() as empty,
            aoti_eager.config.scope(mode="cache_only", cache_dir=Path(empty)),
        ):
            figures["declined"] = growth_mb(kinds["hit, mul"], calls // 10)
    assert not any(op_kernel.alive().values()), op_kernel.alive()
    return figures


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--native", choices=("0", "1"), default="1")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    namespace = parser.parse_args()
    figures = measure(namespace.calls, namespace.native)
    print(f"{namespace.calls:,} calls of mul, a tenth of the others; grown by")
    for name, growth in figures.items():
        print(f"{name:<24}{growth:>8.2f} MB")
    if namespace.json:
        namespace.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
