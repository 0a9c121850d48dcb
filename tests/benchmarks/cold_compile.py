"""What a compile costs: ``python -m tests.benchmarks.cold_compile [--json FILE] [--quick]``.

Ours, from a call to its library tried, checked and stored, against
``torch._inductor.aoti_compile_and_package`` of the same op and shapes (the in-tree way): the first
one of a machine, with empty directories and in new processes that have imported torch; further
ones in processes that have compiled before; a hundred on two workers. In seconds: medians of rounds
in which the ways take turns, and ratios of these medians. ``--quick`` takes one round of the first
and two of the others, and leaves the hundred out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OPS = ("mul", "silu", "softmax")
HUNDRED = 100

# figure -> numerator, denominator, at most
BARS = {
    "first kernel / in-tree": ("first", "first, in-tree", 0.6),
    "warm compile / in-tree": ("warm", "warm, in-tree", 0.15),
    "100 kernels / in-tree": ("100 kernels", "100 kernels, in-tree (estimated)", 0.12),
}
LIBRARY_BYTES = 50_000

_CALLS = """
import json, os, sys, threading, time
from pathlib import Path
import torch

def case(op, rows):
    x = torch.randn(rows, 64)
    return {
        "mul": (lambda a, b: torch.mul(a, b), (x, x.clone())),
        "silu": (torch.nn.functional.silu, (x,)),
        "softmax": (lambda a: torch.softmax(a, -1), (x,)),
    }[op]
"""

_OURS = """
import aoti_eager
NAMES = {"mul": "aten::mul.Tensor", "silu": "aten::silu", "softmax": "aten::_softmax"}
aoti_eager.config.mode = "sync"
aoti_eager.config.gate = False
aoti_eager.config.static_cap = 1000

def compiled():
    return sum(one.compiles - one.failures for one in aoti_eager.stats().values())

def kernels(cases):
    call = [case(op, rows) for op, rows in cases]
    begin = time.perf_counter()
    with aoti_eager.register(list(NAMES.values())):
        before = compiled()
        shares = [call[i::aoti_eager.config.workers] for i in range(aoti_eager.config.workers)]
        threads = [
            threading.Thread(target=lambda share=share: [f(*args) for f, args in share])
            for share in shares
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begin
        assert compiled() == before + len(cases), aoti_eager.stats()
    return seconds
"""

_IN_TREE = """
def kernels(cases):
    call = [case(op, rows) for op, rows in cases]
    begin = time.perf_counter()
    from torch._inductor import aoti_compile_and_package
    for i, (function, args) in enumerate(call):
        class Call(torch.nn.Module):
            def forward(self, *tensors):
                return function(*tensors)
        exported = torch.export.export(Call(), args)
        path = os.path.join(os.environ["TMPDIR"], f"{time.time_ns()}-{i}.pt2")
        aoti_compile_and_package(exported, package_path=path)
    return time.perf_counter() - begin
"""

# What a compile in a worker consists of; the rest of a call is the trial, the check and the store.
_PARTS = """
import collections, tempfile
begin = time.perf_counter()
from aoti_eager._compile_worker import inductor_compat
from aoti_eager._compile_worker import lowering
from aoti_eager._base import op_names
from aoti_eager._compile_worker import thin_codegen
from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import op_schema
from aoti_eager._keys.call_template import call_template
times = collections.defaultdict(float)
times["import Inductor"] = time.perf_counter() - begin

def timed(holder, name, what):
    function = getattr(holder, name)
    def call(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            times[what] += time.perf_counter() - begin
    setattr(holder, name, call)

timed(lowering, "_program", "export")
timed(lowering, "trace_outputs", "trace the outputs")
timed(thin_codegen, "call_compiler", "g++")
timed(lowering, "lower", "all in the worker")
target = cpu_target(cpu_features())
inductor_compat.prepare_worker(target.vector_bits)
OPS = {
    "mul": (torch.ops.aten.mul.Tensor, lambda a: (a[0], a[1])),
    "silu": (torch.ops.aten.silu.default, lambda a: (a[0],)),
    "softmax": (torch.ops.aten._softmax.default, lambda a: (a[0], -1, False)),
}

def kernels(cases):
    for what in list(times):
        if what != "import Inductor" or "g++" in times:
            del times[what]
    for op, rows in cases:
        overload, arguments = OPS[op]
        schema = op_schema(overload)
        key = kernel_key(schema, "CPU", arguments(case(op, rows)[1]))
        options = {"cpp.threads": 2, "aot_inductor.enable_line_tables": False}
        if target.march != "native":
            options["cpp.march"] = target.march
        work = Path(tempfile.mkdtemp(dir=os.environ["TMPDIR"]))
        headers = Path(os.environ["AOTI_EAGER_CACHE_DIR"]) / "toolchain" / "headers"
        lowering.lower(overload, call_template(schema, key), work, headers, options)
    return dict(times)
"""

_LOOP = """
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    print(json.dumps(kernels(json.loads(line))), flush=True)
"""


class Child:
    """A process that compiles cases, in directories of its own."""

    def __init__(self, program: str, directory: Path, **variables: str) -> None:
        for name in ("tmp", "inductor"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(_VARIABLES)},
            "TMPDIR": str(directory / "tmp"),
            "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
            "AOTI_EAGER_CACHE_DIR": str(directory / "cache"),
            **variables,
        }
        self.cache = Path(environment["AOTI_EAGER_CACHE_DIR"])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _CALLS + program + _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        assert self._answer() == "ready"

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def compile(self, *cases: tuple[str, int]) -> Any:
        """Return what compiling ``cases`` (op, rows) took."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(cases) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait_for_header(self, first_rows: int) -> None:
        """Compile until the precompiled header is there."""
        for rows in range(first_rows, first_rows + 50):
            if list(self.cache.glob("toolchain/headers/*.gch")):
                return
            self.compile(("mul", rows))
        raise AssertionError("no precompiled header")

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process died"
        return json.loads(line)


_VARIABLES = ("AOTI_EAGER_", "TORCHINDUCTOR_", "AOT_INDUCTOR_")


def first_kernels(rounds: int, directory: Path) -> dict[str, list[float]]:
    """Return seconds of the first kernel in new processes with empty directories."""
    ways = {
        "first": (_OURS, {}),
        "first, no C++ hit path beside it": (_OURS, {"AOTI_EAGER_NATIVE": "0"}),
        "first, in-tree": (_IN_TREE, {}),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        for name, (program, variables) in ways.items():
            with (
                tempfile.TemporaryDirectory(dir=directory, ignore_cleanup_errors=True) as own,
                Child(program, Path(own), **variables) as child,
            ):
                times[name].append(child.compile((OPS[i % len(OPS)], 64)))
    return times


def warm_kernels(rounds: int, directory: Path) -> tuple[dict[str, list[float]], list[int]]:
    """Return seconds of kernels in processes that have compiled some, and our libraries' sizes."""
    times: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:

        def start(name: str, program: str, **variables: str) -> Child:
            return stack.enter_context(Child(program, directory / name, **variables))

        ours = start("ours", _OURS, AOTI_EAGER_NATIVE="0")
        parts = start("parts", _PARTS)
        in_tree = start("in-tree", _IN_TREE)
        ours.wait_for_header(1000)
        ours.compile(*((op, 8) for op in OPS))
        in_tree.compile(("mul", 8))
        first = parts.compile(("mul", 8))
        times["first: import Inductor"] = [first.pop("import Inductor")]
        for name, seconds in first.items():
            times[f"first: {name}"] = [seconds]
        parts.wait_for_header(1000)
        parts.compile(*((op, 9) for op in OPS))
        for i in range(rounds):
            cases = (OPS[i % len(OPS)], 100 + i)
            times.setdefault("warm", []).append(ours.compile(cases))
            times.setdefault("warm, in-tree", []).append(in_tree.compile(cases))
            for name, seconds in parts.compile(cases).items():
                times.setdefault(f"warm: {name}", []).append(seconds)
        sizes = [path.stat().st_size for path in ours.cache.glob("v1/*/*/*/*/*/library.so")]
    return times, sizes


def hundred_kernels(directory: Path) -> float:
    """Return seconds of a hundred distinct kernels on two workers that are started for them."""
    with Child(
        _OURS, directory / "hundred", AOTI_EAGER_NATIVE="0", AOTI_EAGER_WORKERS="2"
    ) as child:
        return float(child.compile(*((OPS[i % len(OPS)], 200 + i) for i in range(HUNDRED))))


def measure(first_rounds: int, warm_rounds: int, *, hundred: bool) -> dict[str, Any]:
    """Return medians in seconds, the bars' ratios, and the size of our largest library."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        directory = Path(name)
        times = first_kernels(first_rounds, directory)
        warm, sizes = warm_kernels(warm_rounds, directory)
        times |= warm
        if hundred:
            times["100 kernels"] = [hundred_kernels(directory)]
    medians = {what: statistics.median(rounds) for what, rounds in times.items()}
    if hundred:
        medians["100 kernels, in-tree (estimated)"] = HUNDRED * medians["warm, in-tree"]
    ratios = {
        what: medians[upper] / medians[lower]
        for what, (upper, lower, _) in BARS.items()
        if upper in medians and lower in medians
    }
    return {
        "ratios": ratios,
        "seconds": medians,
        "rounds": {"first": first_rounds, "warm": warm_rounds},
        "all": times,
        "library_bytes": max(sizes),
    }


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="few rounds, no hundred kernels")
    namespace = parser.parse_args()
    begin = time.perf_counter()
    quick = namespace.quick
    figures = measure(1 if quick else 3, 2 if quick else 9, hundred=not quick)
    print(f"{'figure':<44}{'ratio':>10}{'at most':>9}")
    for name, ratio in figures["ratios"].items():
        print(f"{name:<44}{ratio:>10.3f}{BARS[name][2]:>9.2f}")
    print(f"\n{'what':<44}{'seconds':>10}{'lowest':>9}{'highest':>9}")
    for name, seconds in figures["seconds"].items():
        rounds = figures["all"].get(name, [seconds])
        print(f"{name:<44}{seconds:>10.3f}{min(rounds):>9.3f}{max(rounds):>9.3f}")
    print(f"\nlargest library: {figures['library_bytes']:,} bytes, at most {LIBRARY_BYTES:,}")
    print(f"({time.perf_counter() - begin:.0f} s in all)")
    if namespace.json:
        namespace.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
