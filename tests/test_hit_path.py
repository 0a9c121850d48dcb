"""What a hit costs, as a ratio measured within one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .conftest import Machine


def test_a_hit_in_python_costs_at_most_five_times_atens_mul(
    shared_cache_dir: Path, tmp_path: Path, machine: Machine
) -> None:
    """Best of three runs: the machine is shared, and a neighbour only ever makes it slower."""
    figures = tmp_path / "hit_path.json"
    environment = {**os.environ, "AOTI_EAGER_CACHE_DIR": str(shared_cache_dir)}
    del environment["AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"]
    ratios = []
    with machine.alone():
        for _ in range(3):
            subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.hit_path", "--json", str(figures)],
                check=True,
                cwd=Path(__file__).parents[1],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            ratios.append(json.loads(figures.read_text())["ratios"]["hit"])
            if ratios[-1] <= 5:
                break
    assert min(ratios) <= 5, ratios
