"""What a call costs, against another version of the package: one per cent is seen.

    python -m tests.benchmarks.call_cost --other DIRECTORY [--rounds 24] [--blocks 30]
        [--counted 4] [--ways PATTERN] [--caches DIRECTORY] [--json FILE]

``--other`` is a checkout of the other version. Each version fills a cache of its own. Then in each
round both have a new process, and blocks of calls in which the two take turns: CPU time of the
thread, so that other processes count little, and a new process each round, because where its
memory lies makes a per cent of difference. The figure is the median of the rounds' ratios of
lower quartiles, and beside it how far the middle half of the rounds is from that. With the two the
same checkout it says what the benchmark cannot see. Instructions of one call (``instructions.py``)
are counted in the first rounds, and tell a tenth of a per cent apart.

Default settings, without the gate, which would decline some of these calls. Ways of a call:
``mul`` on 8x8 float32 as a hit, in place, with two keys in turn, declined, disabled; a hit of
``silu`` on 4x512; the same on the Python path. ATen is there for what the noise is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import instructions

COUNTED_CALLS = 3
SAMPLES = 10
HERE = Path(__file__).resolve().parents[2]

# way -> op, how it is called, hit path
WAYS = {
    "ATen": ("mul", "plain", "1"),
    "hit": ("mul", "hit", "1"),
    "hit, in place": ("mul_", "hit", "1"),
    "hit, two keys": ("two", "hit", "1"),
    "hit, silu 4x512": ("silu", "hit", "1"),
    "declined": ("mul", "declined", "1"),
    "disabled": ("mul", "disabled", "1"),
    "hit, Python": ("mul", "hit", "0"),
    "hit in place, Python": ("mul_", "hit", "0"),
    "declined, Python": ("mul", "declined", "0"),
    "disabled, Python": ("mul", "disabled", "0"),
}

CHILD = """
import contextlib, json, os, sys, tempfile, time
sys.path.insert(0, os.environ["AE_TREE"])
import torch
import aoti_eager
from pathlib import Path
assert aoti_eager.__file__.startswith(os.environ["AE_TREE"]), aoti_eager.__file__
sys.path[0] = os.environ["AE_HERE"]
from instructions import counter

torch.set_num_threads(1)
config = aoti_eager.config
config.mode, config.gate, config.dynamic = "sync", False, False
x, y, u, v = (torch.rand(rows, 8) for rows in (8, 8, 7, 7))
wide = torch.randn(4, 512)
written, ones = torch.ones(8, 8), torch.ones(8, 8)

def two():
    torch.mul(x, y)
    torch.mul(u, v)

calls = {
    "mul": ("aten::mul.Tensor", lambda: torch.mul(x, y)),
    "mul_": ("aten::mul_.Tensor", lambda: written.mul_(ones)),
    "two": ("aten::mul.Tensor", two),
    "silu": ("aten::silu", lambda: torch.nn.functional.silu(wide)),
}

@contextlib.contextmanager
def way(call, kind, native):
    op, function = calls[call]
    with contextlib.ExitStack() as stack:
        if kind != "plain":
            settings = {"native": native}
            if kind == "declined":
                empty = stack.enter_context(tempfile.TemporaryDirectory())
                settings |= {"mode": "cache_only", "cache_dir": Path(empty)}
            stack.enter_context(config.scope(**settings))
            registration = stack.enter_context(aoti_eager.register(op))
            if kind == "disabled":
                registration.disable()
        for _ in range(3000):  # The first looks of a key, and what Python specialises.
            function()
        before = aoti_eager.stats().get(op)
        yield function
        after = aoti_eager.stats().get(op)
        if kind in ("hit", "declined"):
            assert after.misses == before.misses, "a call was a miss"
            what = {"hit": after.hits > before.hits, "declined": after.declines > before.declines}
            assert what == {name: name == kind for name in what}, (call, kind, native, after)

def timed(function, count):
    span = range(count)
    begin = time.thread_time_ns()
    for _ in span:
        function()
    return (time.thread_time_ns() - begin) / count

entered = contextlib.ExitStack()
for line in sys.stdin:
    command = json.loads(line)
    answer = None
    if "enter" in command:
        function = entered.enter_context(way(*command["enter"]))
    elif "leave" in command:
        entered.close()
    elif "time" in command:
        answer = [timed(function, command["calls"]) for _ in range(command["time"])]
    elif "count" in command:
        count = counter(os.environ["AE_COUNTER"])
        answer = min(count(function) for _ in range(command["count"]))
    print(json.dumps(answer), flush=True)
"""


class Child:
    """A process of one version that makes calls as it is told.

    Args:
        tree: The checkout of the version.
        cache: The version's own cache.
        counter: The library of ``instructions.py``.
    """

    def __init__(self, tree: Path, cache: Path, counter: Path) -> None:
        environment = {
            **os.environ,
            "AE_TREE": str(tree),
            "AE_HERE": str(Path(__file__).parent),
            "AE_COUNTER": str(counter),
            "AOTI_EAGER_CACHE_DIR": str(cache),
            "PYTHONSAFEPATH": "1",
            "PYTHONHASHSEED": "0",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CHILD],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command: Any) -> Any:
        """Return the child's answer to a command."""
        self.tell(**command)
        return self.answer()

    def tell(self, **command: Any) -> None:
        """Give the child a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Return what the child says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError("a child ended")
        return json.loads(line)


@contextlib.contextmanager
def children(trees: dict[str, Path], caches: Path, counter: Path) -> Iterator[dict[str, Child]]:
    """Give a new process of each version."""
    found = {name: Child(tree, caches / name, counter) for name, tree in trees.items()}
    with contextlib.ExitStack() as stack:
        for child in found.values():
            stack.enter_context(child.process)
        yield found
        for child in found.values():
            assert child.process.stdin is not None
            child.process.stdin.close()


@dataclass(frozen=True, slots=True)
class Round:
    """What two processes have found of one way, by version.

    Attributes:
        ns: Lower quartile of the samples' nanoseconds a call.
        instructions: Least instructions of a call; empty if they were not counted.
    """

    ns: dict[str, float]
    instructions: dict[str, int]


def one_round(found: dict[str, Child], way: str, blocks: int, calls: int, counted: int) -> Round:
    """Return what the processes find of one way."""
    for child in found.values():
        child.ask(enter=WAYS[way])
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(blocks):
        for name in sorted(found, reverse=bool(number % 2)):
            times[name] += found[name].ask(time=SAMPLES, calls=calls)
    counts = {}
    if counted:
        for child in found.values():
            child.tell(count=counted)
        counts = {name: child.answer() for name, child in found.items()}
    for child in found.values():
        child.ask(leave=True)
    return Round({name: lower_quartile(values) for name, values in times.items()}, counts)


def lower_quartile(values: list[float]) -> float:
    """Return what a quarter of the values is below: what disturbs a sample makes it longer."""
    return statistics.quantiles(values, n=4)[0]


def figures_of(rounds: list[Round]) -> dict[str, Any]:
    """Return the figures of one way."""
    ratios = [one.ns["this"] / one.ns["other"] for one in rounds]
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    found: dict[str, Any] = {
        "ns": {name: statistics.median(one.ns[name] for one in rounds) for name in rounds[0].ns},
        "ratio": statistics.median(ratios),
        "spread": (quarters[2] - quarters[0]) / 2,
    }
    if rounds[0].instructions:
        # The least: where memory lies, lookups in tables of Python's take longer by chance.
        counts = [one.instructions for one in rounds if one.instructions]
        least = {name: min(one[name] for one in counts) for name in counts[0]}
        found["instructions"] = least
        found["instructions_ratio"] = least["this"] / least["other"]
    return found


def main() -> None:
    """Measure, print a table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=24, help="processes of each version")
    parser.add_argument("--blocks", type=int, default=30, help="in which they take turns")
    parser.add_argument(
        "--calls", type=int, default=100, help="in a sample, ten of which are a block"
    )
    parser.add_argument("--counted", type=int, default=4, help="rounds that count instructions")
    parser.add_argument("--ways", default="", help="only those whose name this pattern matches")
    parser.add_argument("--caches", type=Path, help="keep the versions' caches here, to use again")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    trees = {"other": options.other.resolve(), "this": HERE}
    ways = [way for way in WAYS if re.search(options.ways, way)]
    with tempfile.TemporaryDirectory() as directory:
        caches = (options.caches or Path(directory)).resolve()
        for name in trees:
            (caches / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        counter = instructions.build(Path(directory))
        with children(trees, caches, counter) as found:  # It compiles.
            for way in ways:
                one_round(found, way, 1, 1, 0)
        rounds: dict[str, list[Round]] = {way: [] for way in ways}
        for number in range(options.rounds):
            counted = COUNTED_CALLS if number < options.counted else 0
            with children(trees, caches, counter) as found:
                for way in ways:
                    rounds[way].append(
                        one_round(found, way, options.blocks, options.calls, counted)
                    )
    figures = {way: figures_of(rounds[way]) for way in ways}
    head = f"{'way':<22}{'other ns':>10}{'this ns':>10}{'ratio':>8}{'+-':>7}"
    print(f"{head}{'other instr.':>14}{'this instr.':>13}{'ratio':>8}")
    for way, row in figures.items():
        line = f"{way:<22}{row['ns']['other']:>10.1f}{row['ns']['this']:>10.1f}"
        line += f"{row['ratio']:>8.3f}{row['spread']:>7.3f}"
        if options.counted:
            counts = row["instructions"]
            line += f"{counts['other']:>14}{counts['this']:>13}{row['instructions_ratio']:>8.4f}"
        print(line)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
