"""Whether two threads run two kernels at once: ``python -m tests.benchmarks.concurrency``.

Kernels of some 50 ms, on one core. Rounds alternate between one run, two runs at once in two
threads (of a ``ModelContainerRunner`` with two instances, of the kernel cache, and of torch's own
binding of the runner, which holds the GIL), and two runs of the same kernel at once in two
processes, which are what this machine can do at best. What a kernel writes to lies in memory that
the process has already: while the operating system maps and clears new pages for one thread of a
process, others wait. Figures are medians of each way's time over the time of one run in the same
round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROUNDS = 15
# Of this size, freed memory is used again.
SHAPE = (1024, 4096)
CACHED_OP = "aten::atan2.out"
CACHED_SHAPE = (8192, 4096)

_COMPILE = """
import sys
import torch

class Slow(torch.nn.Module):
    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(torch.sin(x) * torch.exp(-x * x)) + torch.atan2(x, torch.cos(x))
        return x

program = torch.export.export(Slow(), (torch.randn({shape}),))
torch._inductor.aoti_compile_and_package(
    program, package_path=sys.argv[1], inductor_configs={{"cpp.threads": 1}}
)
"""


def compile_kernel(path: Path) -> None:
    """Write a package with a kernel that takes long and uses one core, to ``path``."""
    code = _COMPILE.format(shape=SHAPE)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(path)], check=True)


def at_once(calls: Sequence[Callable[[], object]]) -> float:
    """Return the seconds from the common start of ``calls``, each on a thread, to the last end."""
    barrier = threading.Barrier(len(calls) + 1)
    ends: list[float] = []

    def work(call: Callable[[], object]) -> None:
        barrier.wait()
        call()
        ends.append(time.perf_counter())

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    assert len(ends) == len(calls), "a call raised"
    return max(ends) - start


def serve(package: str, pipe: Connection) -> None:
    """Run a kernel whenever asked; answer with the times at which it began and ended."""
    import torch

    import aoti_eager

    torch.set_num_threads(1)
    runner = aoti_eager.ModelContainerRunner(package)
    inputs = [torch.randn(SHAPE)]
    tensor, result = torch.randn(CACHED_SHAPE), torch.empty(CACHED_SHAPE)
    with aoti_eager.register(CACHED_OP):
        calls = {
            "runner": lambda: runner.run(inputs),
            "cache": lambda: torch.atan2(tensor, tensor, out=result),
        }
        for call in calls.values():
            call()
        pipe.send("ready")
        while asked := pipe.recv():
            start = time.clock_gettime(time.CLOCK_MONOTONIC)
            calls[asked]()
            pipe.send((start, time.clock_gettime(time.CLOCK_MONOTONIC)))


@contextlib.contextmanager
def two_processes(package: Path) -> Iterator[Callable[[str], float]]:
    """Give a function that runs a kernel in two processes, and returns the seconds for both."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(str(package), theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()

    def run_both(kernel: str) -> float:
        for pipe in pipes:
            pipe.send(kernel)
        spans = [pipe.recv() for pipe in pipes]
        return float(max(end for _, end in spans) - min(start for start, _ in spans))

    yield run_both
    for pipe in pipes:
        pipe.send("")
    for process in processes:
        process.join()


def measure(package: Path, rounds: int) -> dict[str, Any]:
    """Return the median time of one run in seconds, and each way's ratio to it."""
    import torch

    import aoti_eager

    torch.set_num_threads(1)
    x, y = torch.randn(SHAPE), torch.randn(SHAPE)
    u, v = torch.randn(CACHED_SHAPE), torch.randn(CACHED_SHAPE)
    runner = aoti_eager.ModelContainerRunner(package, num_models=2)
    binding = torch._C._aoti.AOTIModelContainerRunnerCpu(str(runner._library.path), 2)

    def cached(tensor: torch.Tensor) -> Callable[[], object]:
        result = torch.empty_like(tensor)
        return lambda: torch.atan2(tensor, tensor, out=result)

    first, second = cached(u), cached(v)
    ways: dict[str, Callable[[], float]] = {
        "one run": lambda: at_once([lambda: runner.run([x])]),
        "two threads, runner": lambda: at_once([lambda: runner.run([x]), lambda: runner.run([y])]),
        "two threads, torch's binding": lambda: at_once(
            [lambda: binding.run([x]), lambda: binding.run([y])]
        ),
        "one run, kernel cache": lambda: at_once([first]),
        "two threads, kernel cache": lambda: at_once([first, second]),
    }
    times: dict[str, list[float]] = {}
    with aoti_eager.register(CACHED_OP):
        first(), first(), second()  # the processes find its kernel in the store
        assert aoti_eager.stats()[CACHED_OP].hits, "the kernel cache has no kernel"
        with two_processes(package) as run_both:
            ways["two processes"] = lambda: run_both("runner")
            ways["two processes, kernel cache"] = lambda: run_both("cache")
            for _ in range(rounds):
                for name, way in ways.items():
                    times.setdefault(name, []).append(way())

    def compared(name: str, base: str) -> float:
        # Round by round: what a neighbour does to one way, it does to the other.
        cache = ", kernel cache" if name.endswith("cache") else ""
        return statistics.median(
            mine / theirs for mine, theirs in zip(times[name], times[base + cache], strict=True)
        )

    twos = [name for name in ways if name.startswith("two")]
    return {
        "one_run_ms": statistics.median(times["one run"]) * 1e3,
        "one_run_kernel_cache_ms": statistics.median(times["one run, kernel cache"]) * 1e3,
        "two_over_one": {name: compared(name, "one run") for name in twos},
        "over_two_processes": {name: compared(name, "two processes") for name in twos},
        "rounds": rounds,
        "cpus": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--package", type=Path, help="keep the compiled kernel here and reuse it")
    namespace = parser.parse_args()
    # Whether a kernel is worth its call is another question.
    os.environ["AOTI_EAGER_GATE"] = "0"
    with tempfile.TemporaryDirectory() as directory:
        package = namespace.package or Path(directory) / "slow.pt2"
        if not package.exists():
            compile_kernel(package)
        figures = measure(package, namespace.rounds)
    print(f"one run {figures['one_run_ms']:.0f} ms, on one of {figures['cpus']} cores")
    print(f"one run of the kernel cache's kernel {figures['one_run_kernel_cache_ms']:.0f} ms")
    print(f"{'way':<30}{'two / one':>10}{'/ two processes':>17}")
    for name, ratio in figures["two_over_one"].items():
        print(f"{name:<30}{ratio:>10.2f}{figures['over_two_processes'][name]:>17.2f}")
    if namespace.json:
        namespace.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
