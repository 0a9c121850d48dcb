"""``run --fuse``: whole modules of an unmodified script are served, and the report names them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aoti_eager import OpStats
from aoti_eager._commands.region_report import regions_text
from aoti_eager._regions import whole_script
from aoti_eager._regions.report import RegionState

from ..support import forked_python

Result = subprocess.CompletedProcess[str]

SCRIPT = """
import torch
from torch import nn


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        return torch.tanh(self.second(torch.tanh(self.first(x))))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.policies = nn.ModuleList([Policy() for _ in range(2)])

    def forward(self, x):
        return sum(policy(x) for policy in self.policies) + 0 * torch.rand(())


def main():
    torch.manual_seed(0)
    policy, noisy, x = Policy().eval(), Noisy().eval(), torch.ones(4, 5)
    with torch.no_grad():
        for _ in range(12):
            y = policy(x), noisy(x)
    print([round(one.sum().item(), 4) for one in y])


main()
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(text)
        return path

    return write


def python(*command: str | Path) -> Result:
    return forked_python.run([sys.executable, *command], capture_output=True, text=True)


def run(*arguments: str | Path) -> Result:
    return python("-m", "aoti_eager", "run", "--fuse", *arguments)


def row(result: Result, region: str) -> list[str]:
    """Return the cells of a region's line: its name, class, state, calls, served, and so on."""
    line = next(one for one in result.stderr.splitlines() if one.startswith(f"{region} "))
    return re.split(r"  +", line)


@pytest.mark.native
def test_a_script_is_served_cold_and_warm(
    script: Callable[[str], Path], shared_cache: Path
) -> None:
    path = script(SCRIPT)
    expected = python(path).stdout
    for _ in range(2):
        got = run("--ops", "aten::silu", "--cache-dir", shared_cache, path)
        assert (got.returncode, got.stdout) == (0, expected), got.stderr
        assert row(got, "Policy")[1:4] == ["Policy", "served", "10"]
        assert int(row(got, "Policy")[4]) > 0
        noisy = row(got, "Noisy")
        assert noisy[1:5] == ["Noisy", "stopped", "10", "0"]
        assert noisy[5].startswith("(random)")
        assert row(got, "Noisy.policies.*")[1:3] == ["Policy x2", "served"]
        assert "aoti_eager_region::" not in got.stderr
    assert "0 libraries were compiled for regions" in got.stderr
    listed = python("-m", "aoti_eager", "list", "--cache-dir", shared_cache)
    entry = min(  # The store has entries of other tests, too.
        re.split(r"  +", line)[1]
        for line in listed.stdout.splitlines()
        if "ops: t x2, addmm x2, tanh x2" in line and line.startswith("aoti_eager_region::t_")
    )
    shown = python("-m", "aoti_eager", "inspect", entry, "--cache-dir", shared_cache).stdout
    assert "  region    6 ops: t x2, addmm x2, tanh x2" in shown
    assert "= aten::tanh(" in shown
    totals = python("-m", "aoti_eager", "stats", "--cache-dir", shared_cache).stdout
    assert "6 ops: t x2, addmm x2, tanh x2" in totals


@pytest.mark.native
@pytest.mark.shipped
@pytest.mark.full
def test_wait_finishes_the_libraries_of_regions(
    script: Callable[[str], Path], shared_cache: Path
) -> None:
    path = script(SCRIPT.replace("range(12)", "range(300)"))
    got = run("--ops", "aten::silu", "--cache-dir", shared_cache, "--wait", path)
    assert got.returncode == 0, got.stderr
    assert "unfinished;" not in got.stderr
    again = run("--ops", "aten::silu", "--cache-dir", shared_cache, path)
    assert "0 libraries were compiled for regions" in again.stderr


@pytest.mark.native
def test_processes_that_the_script_starts_are_plain(script: Callable[[str], Path]) -> None:
    path = script(
        "import multiprocessing, os, torch\n"
        "def hooks(_=None):\n"
        "    return len(torch.nn.modules.module._global_forward_pre_hooks)\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(hooks, [0]), hooks())\n"
        "    if os.fork():\n"
        "        os.wait()\n"
        "    print(hooks(), flush=True)\n"
    )
    got = run("--ops", "aten::silu", path)
    assert (got.returncode, got.stdout) == (0, "[0] 1\n0\n1\n"), got.stderr
    assert got.stderr.count("no module was called twice") == 1


@pytest.mark.native
def test_blocks_of_the_script_undo_nothing(script: Callable[[str], Path]) -> None:
    path = script(
        "import aoti_eager, torch\n"
        "layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)\n"
        "for _ in range(3):\n"
        "    with aoti_eager.use(include=(), regions=True):\n"
        "        layer(x)\n"
        "print('forward' in vars(layer))\n"
    )
    got = run("--ops", "aten::silu", "--mode", "cache_only", path)
    assert (got.returncode, got.stdout) == (0, "True\n"), got.stderr


def test_equal_layers_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def state(path: str, state: str = "served", reason: str = "", hits: int = 2) -> RegionState:
        return RegionState(path, "Layer", state, reason, "", 3, hits, None, 0.002, 0.001)

    states = {
        "Model": [
            state("", "stopped", "random", 0),
            *[state(f"layers.{n}.mlp") for n in range(12)],
            state("layers.12.mlp", "compiling", hits=0),
            state("h2.out"),
        ]
    }
    monkeypatch.setattr("aoti_eager._regions.whole_script.region_states", lambda: states)
    counts = {
        "aoti_eager_region::t_1": OpStats(hits=24, compiles=1, saved_s=0.5),
        "aten::silu": OpStats(hits=9, compiles=7),
    }
    lines = regions_text(counts).splitlines()
    assert [line.split("  ")[0] for line in lines[:5]] == [
        "region",
        "Model",
        "Model.layers.*.mlp",
        "Model.layers.*.mlp",
        "Model.h2.out",
    ]
    assert re.split(r"  +", lines[2])[1:] == ["Layer x12", "served", "36", "24", "2.000", "1.000"]
    assert "(random): " in lines[1]
    assert lines[-1] == ("1 library was compiled for regions; their calls have saved about 0.5 s")


def test_a_script_without_modules_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_script, "_roots", whole_script._Roots())
    assert regions_text({}) == "no module was called twice, so none was fused"
