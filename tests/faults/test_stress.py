"""A share of the long runs: threads on the whole hit path, and memory over many calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.both_paths(costly=True)

ROOT = Path(__file__).parents[2]


def environment(cache_dir: Path) -> dict[str, str]:
    return {**os.environ, "AOTI_EAGER_CACHE_DIR": str(cache_dir)}


@pytest.mark.full
def test_threads_that_call_while_others_change_everything_get_right_results(
    hit_path: str, shared_cache_dir: Path
) -> None:
    """``python -m tests.stress`` runs for a minute."""
    native = "1" if hit_path == "native" else "0"
    done = subprocess.run(
        [sys.executable, "-m", "tests.stress", "--seconds", "5", "--native", native],
        cwd=ROOT,
        env=environment(shared_cache_dir),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["hits"] > 0
    assert found["declines"] > 0


@pytest.mark.full
def test_memory_stays_flat_over_many_calls(
    hit_path: str, shared_cache_dir: Path, tmp_path: Path
) -> None:
    """``python -m tests.benchmarks.hit_path_memory`` makes ten million."""
    native = "1" if hit_path == "native" else "0"
    figures = tmp_path / "memory.json"
    command = [sys.executable, "-m", "tests.benchmarks.hit_path_memory", "--calls", "300000"]
    subprocess.run(
        [*command, "--native", native, "--json", str(figures)],
        cwd=ROOT,
        env=environment(shared_cache_dir),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    growth = json.loads(figures.read_text())
    assert len(growth) == 7
    assert max(growth.values()) < 1.0, growth
