"""``demo``: the example under kernels gives eager's losses, and the second run compiles nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aoti_eager import OpStats
from aoti_eager._commands.demo import (
    Outcome,
    find_script,
    largest_difference,
    problems,
    report,
)

OPS = "aten::native_layer_norm.default,aten::native_layer_norm_backward.default"


# Two threads on cores that other tests use wait for each other, which takes ten times as long.
@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def demo(*options: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aoti_eager", "demo", *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )


@pytest.mark.full
def test_the_example_imports_nothing_of_ours_and_learns(tmp_path):
    script = find_script()
    assert "import aoti_eager" not in script.read_text()
    command = [sys.executable, str(script), "--steps", "30", "--batch", "8", "--layers", "1"]
    runs = [
        subprocess.run([*command, "--write", "5"], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    losses = [float(line.split()[-1]) for line in runs[0].stdout.splitlines() if "loss" in line]
    assert losses[-1] < losses[0] - 1


@pytest.mark.full
def test_the_demo_serves_forward_and_backward_and_compiles_once(shared_cache_dir):
    # A mode of the environment must not reach it.
    result = demo(
        "--steps", "3", "--ops", OPS, "--keep-cache", shared_cache_dir, AOTI_EAGER_MODE="off"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    warm = next(line.split() for line in lines if line.startswith("warm  "))
    assert warm[3:] == ["30", "0", "0"]
    assert "served forward:  aten::native_layer_norm" in lines
    assert "served backward: aten::native_layer_norm_backward" in lines
    assert sum("largest difference" in line for line in lines) == 2


@pytest.mark.full
def test_an_unknown_op_ends_the_demo_with_its_message(cache_dir):
    result = demo("--steps", "1", "--ops", "aten::gelo", "--keep-cache", cache_dir)
    assert result.returncode == 1
    assert "cold run ended with exit code 2" in result.stderr
    assert "did you mean aten::gelu" in result.stderr


def outcome(*losses: float, **counts: Any) -> Outcome:
    return Outcome(list(losses), [0.1] * len(losses), {"aten::gelu": OpStats(**counts)})


GOOD = outcome(4.5, 4.0, hits=2)


def test_a_demo_that_shows_what_it_should_has_no_problem():
    assert problems(outcome(4.5, 4.0), GOOD, GOOD) == []


def test_kernels_that_all_lose_here_are_no_problem_and_said():
    loses = outcome(4.5, 4.0, declines=2, declined={"slower": 2})
    assert problems(outcome(4.5, 4.0), loses, loses) == []
    said = "    no kernel beats PyTorch's own here: none serves, and nothing is lost"
    assert said in report(outcome(4.5, 4.0), loses, loses).splitlines()
    assert said not in report(outcome(4.5, 4.0), GOOD, GOOD).splitlines()


@pytest.mark.parametrize(
    ("cold", "warm", "problem"),
    [
        (GOOD, outcome(4.5, 4.1, hits=2), "warm: a loss differs from plain's by 0.1"),
        (outcome(4.5, math.nan, hits=2), GOOD, "cold: a loss differs from plain's by inf"),
        (GOOD, outcome(4.5, 4.0, hits=1, compiles=1), "warm: compiled 1 kernels"),
        (GOOD, outcome(4.5, 4.0), "warm: no call was served"),
    ],
)
def test_what_the_demo_fails_to_show_is_named(cold, warm, problem):
    (found,) = problems(outcome(4.5, 4.0), cold, warm)
    assert found.startswith(problem)


def test_the_largest_difference_is_of_one_step():
    assert largest_difference(outcome(1.0, 2.0, 3.0), outcome(1.5, 2.0, 2.0)) == 1.0


def test_the_report_says_why_calls_were_declined():
    declined = Outcome(
        [4.5],
        [0.1],
        {"aten::gelu": OpStats(hits=1, declines=2, declined={"mismatch": 2})},
    )
    assert "    aten::gelu: mismatch x2" in report(outcome(4.5), declined, declined).splitlines()
