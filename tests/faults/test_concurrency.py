"""Two threads run two kernels at once, as ratios measured within one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..benchmarks.concurrency import compile_kernel
from ..conftest import Machine, make_cache_dir


@pytest.mark.full
def test_two_threads_run_two_kernels_as_two_processes_do(
    tmp_path: Path, run_dir: Path, shared_cache_dir: Path, machine: Machine
) -> None:
    """A kernel runs without the GIL. Best of six runs: other programs share the machine."""
    figures = tmp_path / "concurrency.json"
    environment = {
        **os.environ,
        "AOTI_EAGER_CACHE_DIR": str(make_cache_dir(tmp_path / "kernels", shared_cache_dir)),
        "AOTI_EAGER_MODE": "sync",
        "TORCHINDUCTOR_CACHE_DIR": str(run_dir / "inductor"),
    }
    package = tmp_path / "slow.pt2"
    compile_kernel(package)
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.concurrency",
        *("--rounds", "9", "--json", str(figures)),
        *("--package", str(package)),
    ]
    root = Path(__file__).parents[2]
    seen = []
    with machine.alone():
        for _ in range(6):
            subprocess.check_output(command, cwd=root, env=environment)
            found = json.loads(figures.read_text())
            assert found["one_run_ms"] > 0
            ratios = found["over_two_processes"]
            worst = max(ratios["two threads, runner"], ratios["two threads, kernel cache"])
            seen.append(worst)
            if worst <= 1.1:
                break
    assert min(seen) <= 1.1, seen
