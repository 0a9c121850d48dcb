"""What a hit costs: ``python -m tests.benchmarks.hit_path [--json FILE] [--quick]``.

``mul`` on 8x8 float32, in microseconds a call: medians of rounds in which all ways take turns, and
ratios of these medians. ATen is measured with nothing registered, so each way registers and
unregisters in each round. PyTorch's own attempt at such a cache (``_impl_with_aoti_compile``) can
not be taken back, so it runs in a process of its own, beside one of ours, in the same rounds;
``--quick`` leaves these two out.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import aoti_eager
from aoti_eager._base.cpp_compiler import compiler_on_path
from aoti_eager._dispatch.kernel_cache import KernelCache
from aoti_eager._dispatch.table import Table
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.key_words import native_key
from aoti_eager._registration import registry

CALLS = 5000
ROUNDS = 21
ENTRIES = 10_000
OP = "aten::mul.Tensor"

# figure -> numerator, denominator, at most
BARS = {
    "hit / ATen": ("hit", "ATen", 0.95),
    "hit / no-op boxed kernel with an output": ("hit", "no-op with an output", 1.8),
    "declined / ATen": ("declined", "ATen", 1.25),
    "disabled / ATen": ("disabled", "ATen", 1.25),
    "mode off / ATen": ("mode off", "ATen", 1.25),
    "disabled / declined": ("disabled", "declined", 1.0),
    "hit with 10,000 entries / with 1": ("hit, 10,000 entries", "hit", 1.1),
    "two keys in turn, 10,000 entries / 2": ("two keys, 10,000 entries", "two keys", 1.1),
    "Python twin / ATen": ("hit, Python twin", "ATen", 5.0),
    "hit / _impl_with_aoti_compile": ("hit, own process", "_impl_with_aoti_compile", 0.6),
}


def call(x: torch.Tensor, y: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return one call of ``mul``."""
    return lambda: torch.mul(x, y)


def microseconds(function: Callable[[], object]) -> float:
    """Return the time of one call, in microseconds, over ``CALLS`` of them."""
    return timeit.timeit(function, number=CALLS) / CALLS * 1e6


def large_table(cache: KernelCache, entries: int) -> Table:
    """Return a table with the kernels of ``cache``'s and ``entries`` more, on other shapes."""
    table = Table()
    for key, kernel in cache.table.kernels.items():
        table.put(key, kernel)
    for rows in range(9, 9 + entries):
        values = (torch.empty(rows, 8), torch.empty(rows, 8))
        other = object.__new__(type(kernel))
        for name in type(kernel).__slots__:
            setattr(other, name, getattr(kernel, name))
        other.words = native_key(cache.schema, kernel_key(cache.schema, "CPU", values))
        table.put(cache.key(*values), other)
    assert len(table.attach()) == entries + 2
    return table


@contextlib.contextmanager
def served(native: str) -> Iterator[aoti_eager.Registration]:
    """Register the op with its kernels for 8x8 and 7x8 in the table; all calls must be hits."""
    with (
        aoti_eager.config.scope(native=native),
        aoti_eager.register(OP) as registration,
    ):
        for x in (torch.ones(8, 8), torch.ones(7, 8)):
            torch.mul(x, x), torch.mul(x, x)
        before = aoti_eager.stats()[OP]
        yield registration
        after = aoti_eager.stats()[OP]
        assert after.misses == before.misses, "a call was a miss"
        assert after.hits > before.hits or after.declines > before.declines, "nothing was served"


def rounds_in_one_process(rounds: int, noop: ctypes.CDLL) -> dict[str, list[float]]:
    """Return microseconds a call of each way, a list with one figure a round."""
    x, y = torch.randn(8, 8), torch.randn(8, 8)
    u, v = torch.randn(7, 8), torch.randn(7, 8)
    one, other = call(x, y), call(u, v)
    times: dict[str, list[float]] = {}
    large: list[Table] = []  # made once: the change of tables is a pointer's

    def measure(name: str, function: Callable[[], object] = one) -> None:
        times.setdefault(name, []).append(microseconds(function))

    def both() -> None:
        one()
        other()

    for _ in range(rounds):
        measure("ATen")
        noop.noop_install()
        measure("no-op with an output")
        noop.noop_uninstall()
        with served("1") as registration:
            measure("hit")
            measure("two keys", both)
            (cache,) = registry.caches()
            assert cache.native is not None
            if not large:
                large.append(large_table(cache, ENTRIES))
            cache.native.set_table(large[0].attach())
            measure("hit, 10,000 entries")
            measure("two keys, 10,000 entries", both)
            cache.native.set_table(cache.table.attach())
            registration.disable()
            measure("disabled")
            registration.enable()
            with aoti_eager.config.scope(mode="off"):
                measure("mode off")
        with tempfile.TemporaryDirectory() as empty:
            scope = aoti_eager.config.scope(native="1", mode="cache_only", cache_dir=Path(empty))
            with scope, aoti_eager.register(OP):
                one()
                before = aoti_eager.stats()[OP].declines
                measure("declined")
                assert aoti_eager.stats()[OP].declines == before + CALLS
        with served("0"):
            measure("hit, Python twin")
    large[0].close()
    return times


_CHILD = """
import sys, tempfile, timeit
import torch

x, y = torch.randn(8, 8), torch.randn(8, 8)
if sys.argv[1] == "torch":
    library = torch.library.Library("aten", "IMPL")
    library._impl_with_aoti_compile("mul.Tensor", "CPU")
else:
    import aoti_eager
    aoti_eager.config.native, aoti_eager.config.mode, aoti_eager.config.gate = "1", "sync", False
    registration = aoti_eager.register("aten::mul.Tensor")
for _ in range(3):
    torch.mul(x, y)
print("ready", flush=True)
for line in sys.stdin:
    calls = int(line)
    print(timeit.timeit(lambda: torch.mul(x, y), number=calls) / calls * 1e6, flush=True)
"""


def rounds_in_processes(rounds: int) -> dict[str, list[float]]:
    """Return microseconds a call of PyTorch's own kernel cache and of ours, one process each."""
    names = {"torch": "_impl_with_aoti_compile", "ours": "hit, own process"}
    times: dict[str, list[float]] = {name: [] for name in names.values()}
    with contextlib.ExitStack() as stack:
        children = {}
        for way in names:
            child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _CHILD, way],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(child)
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", f"{way}: did not start"
            children[way] = child
        for _ in range(rounds):
            for way, child in children.items():
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(f"{CALLS}\n")
                child.stdin.flush()
                times[names[way]].append(float(child.stdout.readline()))
        for child in children.values():
            assert child.stdin is not None
            child.stdin.close()
    return times


def build_noop(directory: Path) -> ctypes.CDLL:
    """Return the library of ``noop.cpp``."""
    root = Path(torch.__file__).parent
    library = directory / "noop.so"
    source = Path(__file__).with_name("noop.cpp")
    include = root / "include"
    subprocess.run(
        [
            *(compiler_on_path() or "c++", "-std=c++20", "-O2", "-fPIC", "-shared", "-w"),
            *(f"-I{include}", f"-I{include}/torch/csrc/api/include", str(source)),
            *("-o", str(library), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"),
        ],
        check=True,
    )
    return ctypes.CDLL(str(library))


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="leave PyTorch's own cache out")
    namespace = parser.parse_args()
    aoti_eager.config.mode, aoti_eager.config.gate = "sync", False
    aoti_eager.config.dynamic = False  # Two keys are to have a kernel each.
    with tempfile.TemporaryDirectory() as directory:
        times = rounds_in_one_process(namespace.rounds, build_noop(Path(directory)))
    if not namespace.quick:
        times |= rounds_in_processes(namespace.rounds)
    medians = {name: statistics.median(rounds) for name, rounds in times.items()}
    print(f"{'way':<44}{'us a call':>10}{'/ ATen':>8}")
    for name, us in medians.items():
        print(f"{name:<44}{us:>10.3f}{us / medians['ATen']:>8.2f}")
    print(f"\n{'figure':<44}{'ratio':>10}{'at most':>9}")
    ratios = {}
    for name, (upper, lower, at_most) in BARS.items():
        if upper in medians and lower in medians:
            ratios[name] = medians[upper] / medians[lower]
            print(f"{name:<44}{ratios[name]:>10.2f}{at_most:>9.2f}")
    if namespace.json:
        figures = {"microseconds": medians, "ratios": ratios, "rounds": namespace.rounds}
        namespace.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
