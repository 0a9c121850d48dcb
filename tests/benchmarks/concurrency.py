"""Whether two threads run two kernels at once: ``python -m tests.benchmarks.concurrency``.

One kernel of 50 ms and more, on one core. Rounds alternate between one run, two runs at once in two
threads (of a ``ModelContainerRunner`` with two instances, of the kernel cache, and of torch's own
binding of the runner, which holds the GIL), and two runs at once in two processes, which are what
this machine can do at best. Figures are medians of each way's time over the time of one run in the
same round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROUNDS = 15
SHAPE = (2048, 4096)

_COMPILE = """
import sys
import torch

class Slow(torch.nn.Module):
    def forward(self, x):
        return torch.tanh(torch.sin(x) * torch.exp(-x * x)) + torch.atan2(x, torch.cos(x))

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
    """Run the kernel whenever asked; answer with the times at which it began and ended."""
    import torch

    from aoti_eager import ModelContainerRunner

    torch.set_num_threads(1)
    runner = ModelContainerRunner(package)
    inputs = [torch.randn(SHAPE)]
    runner.run(inputs)
    pipe.send("ready")
    while pipe.recv():
        start = time.clock_gettime(time.CLOCK_MONOTONIC)
        runner.run(inputs)
        pipe.send((start, time.clock_gettime(time.CLOCK_MONOTONIC)))


def measure(package: Path, rounds: int) -> dict[str, Any]:
    """Return the median time of one run in seconds, and each way's ratio to it."""
    import torch

    import aoti_eager

    torch.set_num_threads(1)
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

    def two_processes() -> float:
        for pipe in pipes:
            pipe.send(True)
        spans = [pipe.recv() for pipe in pipes]
        return float(max(end for _, end in spans) - min(start for start, _ in spans))

    x, y = torch.randn(SHAPE), torch.randn(SHAPE)
    runner = aoti_eager.ModelContainerRunner(package, num_models=2)
    library = runner._library.path
    binding = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 2)
    op = "aten::atan2"

    def cached(tensor: torch.Tensor) -> Callable[[], object]:
        return lambda: torch.atan2(tensor, tensor)

    ways: dict[str, Callable[[], float]] = {
        "two threads, runner": lambda: at_once([lambda: runner.run([x]), lambda: runner.run([y])]),
        "two threads, torch's binding": lambda: at_once(
            [lambda: binding.run([x]), lambda: binding.run([y])]
        ),
        "two processes": two_processes,
    }
    times: dict[str, list[float]] = {name: [] for name in [*ways, "one run"]}
    with aoti_eager.register(op):
        u, v = torch.randn(8192, 4096), torch.randn(8192, 4096)
        cached(u)(), cached(u)()
        stats = aoti_eager.stats()[op]
        if stats.hits:
            ways["two threads, kernel cache"] = lambda: at_once([cached(u), cached(v)])
            times |= {"two threads, kernel cache": [], "one run, kernel cache": []}
        for _ in range(rounds):
            times["one run"].append(at_once([lambda: runner.run([x])]))
            if stats.hits:
                times["one run, kernel cache"].append(at_once([cached(u)]))
            for name, way in ways.items():
                times[name].append(way())
    for pipe in pipes:
        pipe.send(False)
    for process in processes:
        process.join()
    rounds_of = {
        name: [
            two / one
            for two, one in zip(
                times[name],
                times["one run, kernel cache" if name.endswith("cache") else "one run"],
                strict=True,
            )
        ]
        for name in ways
    }
    ratios = {name: statistics.median(values) for name, values in rounds_of.items()}
    # Round by round: what a neighbour does to one way, it does to the other.
    best = rounds_of["two processes"]
    compared = {
        name: statistics.median(mine / theirs for mine, theirs in zip(values, best, strict=True))
        for name, values in rounds_of.items()
    }
    return {
        "one_run_ms": statistics.median(times["one run"]) * 1e3,
        "one_run_kernel_cache_ms": statistics.median(times.get("one run, kernel cache", [0])) * 1e3,
        "two_over_one": ratios,
        "over_two_processes": compared,
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
