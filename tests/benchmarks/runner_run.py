"""What a run costs beside torch's own runner: ``python -m tests.benchmarks.runner_run``.

Two libraries: a small network (8-64-64-4, one row, weights inside), and a kernel with 70 inputs of
16 numbers. Both runners run each of them with the library's input checks and without: torch leaves
the checks off unless a variable of the environment is set, ours has them on. Rounds alternate; a
number is a ratio of medians to torch's ``boxed_run``, of the same library with the same checks.
Prints a table and, with ``--json FILE``, writes what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor

import aoti_eager
from aoti_eager._compile_service import native_path
from aoti_eager._native import runner as native_runner

ROUNDS, CALLS = 100, 100
CHECKS = "AOTI_RUNTIME_CHECK_INPUTS"
MOST = 1.0  # of torch's time, for ``run`` in C++

_COMPILE = """
import sys
import torch
from torch import nn

class Many(nn.Module):
    def forward(self, first, *rest):
        for one in rest:
            first = torch.relu(first + one)
        return first

def network():
    return nn.Sequential(
        nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)
    ).eval()

torch.set_num_threads(1)
for name, model, inputs in (
    ("network", network(), (torch.randn(1, 8),)),
    ("70 inputs", Many(), tuple(torch.randn(16) for _ in range(70))),
):
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            torch.export.export(model, inputs), package_path=f"{sys.argv[1]}/{name}.pt2"
        )
"""
INPUTS: dict[str, Callable[[], list[Tensor]]] = {
    "network": lambda: [torch.randn(1, 8)],
    "70 inputs": lambda: [torch.randn(16) for _ in range(70)],
}


def compile_packages(directory: Path) -> None:
    """Write the two packages to ``directory``."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", _COMPILE, str(directory)], check=True)


def ways_of(package: Path, inputs: list[Tensor], checked: bool) -> dict[str, Callable[[], Any]]:
    """Return the ways to run a library: torch's, ours in Python and in C++."""
    loader = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1)
    in_python = aoti_eager.ModelContainerRunner(package, check_inputs=checked)
    in_python._has_native_runs = True  # So the runner does not look for them.
    in_cpp = aoti_eager.ModelContainerRunner(package, check_inputs=checked)
    os.environ[CHECKS] = str(int(checked))
    want = loader.run(inputs)  # The first run decides on the checks.
    os.environ[CHECKS] = "0"
    for runner in (in_python, in_cpp):
        for _ in range(3):
            assert all(map(torch.equal, runner.run(inputs), want))
    assert in_cpp._pool.is_lending, "C++ does not run"
    assert in_python._native_runs is None
    return {
        "torch's boxed_run": lambda: loader.boxed_run(list(inputs)),
        "torch's run": lambda: loader.run(inputs),
        "run, C++": lambda: in_cpp.run(inputs),
        "boxed_run, C++": lambda: in_cpp.boxed_run(list(inputs)),
        "run, Python": lambda: in_python.run(inputs),
    }


def medians(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median microseconds of each way's calls, from alternating rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 3):
        for name, way in ways.items():
            start = perf_counter_ns()
            for _ in range(CALLS):
                way()
            if number >= 3:  # The first rounds warm up.
                times[name].append((perf_counter_ns() - start) / CALLS / 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def measure(directory: Path, rounds: int, checked: bool) -> list[dict[str, Any]]:
    """Return a row for each library. A process has a library with checks, or without."""
    torch.set_num_threads(1)
    aoti_eager.config.native = "1"
    native_path.prepare()
    assert native_runner.can_run(), "the C++ path cannot run libraries here"
    rows = []
    for name, make in INPUTS.items():
        found = medians(ways_of(directory / f"{name}.pt2", make(), checked), rounds)
        base = found["torch's boxed_run"]
        ratios = {way: time / base for way, time in found.items()}
        rows.append({"library": name, "checked": checked, "us": found, "ratios": ratios})
    return rows


def main() -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--packages", type=Path, help="keep the compiled packages here, reuse them")
    parser.add_argument("--only", choices=["checked", "unchecked"], help=argparse.SUPPRESS)
    namespace = parser.parse_args()
    if namespace.only:
        rows = measure(namespace.packages, namespace.rounds, namespace.only == "checked")
        print(json.dumps(rows))
        return
    rows = []
    with tempfile.TemporaryDirectory() as kept:
        directory = namespace.packages or Path(kept)
        directory.mkdir(exist_ok=True)
        if not all((directory / f"{name}.pt2").exists() for name in INPUTS):
            compile_packages(directory)
        for only in ("unchecked", "checked"):
            command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.runner_run"]
            command += ["--only", only, "--packages", str(directory)]
            command += ["--rounds", str(namespace.rounds)]
            rows += json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    ways = list(rows[0]["us"])
    print(f"{'library':<12}{'checks':<8}" + "".join(f"{way:>20}" for way in ways))
    for row in rows:
        cells = [f"{row['us'][way]:.2f} us {row['ratios'][way]:5.2f}" for way in ways]
        checks = "on" if row["checked"] else "off"
        print(f"{row['library']:<12}{checks:<8}" + "".join(f"{cell:>20}" for cell in cells))
    worst = max(row["ratios"]["run, C++"] for row in rows)
    print(f"worst of run in C++: {worst:.2f} times torch's boxed_run (at most {MOST:g} is wanted)")
    if namespace.json:
        namespace.json.write_text(json.dumps({"rounds": namespace.rounds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
