"""What a new process pays for kernels that the cache has, against another version of the package.

    python -m tests.benchmarks.load --other DIRECTORY [--rounds 15] [--json FILE]

``DIRECTORY`` is a checkout of the other version. Both serve the same cache, which the other version
fills: whole processes in turn, default settings but ``mode=cache_only``, one thread of everything
else. Prints medians of: the first call of a key (lookup, check and load of its library), all first
calls of the process, the process from its start to its end, and a hit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]

CALLS = """
import json, os, sys, time
sys.path.insert(0, os.environ["AE_TREE"])
start = time.perf_counter()
import torch
torch_s = time.perf_counter() - start
start = time.perf_counter()
import aoti_eager
assert aoti_eager.__file__.startswith(os.environ["AE_TREE"]), aoti_eager.__file__
aoti_eager.config.gate = False  # Every kernel counts, whether it wins on this machine or not.
aten = torch.ops.aten
ops = [aten.silu, aten.tanh, aten.gelu_backward, aten.sigmoid, aten.exp, aten.softplus]
aoti_eager.register([f"aten::{op._qualified_op_name.partition('::')[2]}" for op in ops])
ready_s = time.perf_counter() - start
firsts = []
def call(op, x):
    return op(x, x) if op is aten.gelu_backward else op(x)
xs = [torch.randn(rows, 64) for rows in range(8, 12)]
if os.environ.get("AE_FILL"):
    aoti_eager.config.mode = "sync"
    aoti_eager.config.dynamic = False
else:
    aoti_eager.config.mode = "cache_only"
for op in ops:
    for x in xs:
        begin = time.perf_counter_ns()
        call(op, x)
        firsts.append((time.perf_counter_ns() - begin) / 1000)
for _ in range(2):
    for op in ops:
        for x in xs:
            call(op, x)
x = xs[0]
rounds = []
for _ in range(15):
    begin = time.perf_counter_ns()
    for _ in range(2000):
        aten.silu(x)
    rounds.append((time.perf_counter_ns() - begin) / 2000)
stats = aoti_eager.stats()
print(json.dumps({
    "import and register ms": 1000 * ready_s,
    "first call of a key us": sorted(firsts)[len(firsts) // 2],
    "all first calls ms": sum(firsts) / 1000,
    "hit ns": sorted(rounds)[len(rounds) // 2],
    "hits": sum(s.hits for s in stats.values()),
    "misses": sum(s.misses for s in stats.values()),
    "declines": sum(s.declines for s in stats.values()),
}))
"""


def run(tree: Path, cache: Path, *, fill: bool = False) -> dict[str, float]:
    """Run one process of the version in ``tree``; return what it measured."""
    environment = {
        **os.environ,
        "AE_TREE": str(tree),
        "AOTI_EAGER_CACHE_DIR": str(cache),
        "AOTI_EAGER_NATIVE": "1" if fill else "auto",
        "AE_FILL": "1" if fill else "",
        "PYTHONSAFEPATH": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True, check=True
    )
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trees = {"other": options.other.resolve(), "this": HERE}
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory, "cache")
        cache.mkdir(mode=0o700)
        for tree in trees.values():  # The C++ path of each, too.
            run(tree, cache, fill=True)
            run(tree, cache)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in range(options.rounds):
            for name, tree in trees.items():
                found[name].append(run(tree, cache))
    rows = {
        what: {name: statistics.median(one[what] for one in found[name]) for name in trees}
        for what in found["this"][0]
    }
    print(f"{'':28}{'other':>12}{'this':>12}{'ratio':>8}")
    for what, row in rows.items():
        ratio = row["this"] / row["other"] if row["other"] else float("nan")
        print(f"{what:28}{row['other']:12.1f}{row['this']:12.1f}{ratio:8.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
