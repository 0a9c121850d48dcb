"""A script's second run leaves out ops whose kernels all lose. Nothing compiles."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aoti_eager

from ..store.test_cache import publish
from ..store.test_prune import LOSES, measured
from ..support import forked_python

SCRIPT = """
import json, logging, sys
import torch
import aoti_eager
from aoti_eager._enable import chosen, scripts
ops = ["aten::silu.default", "aten::tanh.default"]
chosen.op_set.shipped = lambda: type("", (), {"ops": lambda self, preset, processor: ops})()
aoti_eager.enable()
print(json.dumps(sorted(scripts._switch.in_force.ops)))
if len(sys.argv) > 1:
    sys.exit(sys.argv[1]) if sys.argv[1] != "raise" else 1 / 0
"""


@pytest.fixture(autouse=True)
def _gated(settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The gate, as by default, here and in processes."""
    monkeypatch.setenv("AOTI_EAGER_GATE", "1")
    with aoti_eager.config.scope(gate=True):
        yield


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def served(script: Path, *arguments: str) -> list[str]:
    done = forked_python.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_an_op_that_only_loses_is_left_out_from_the_second_run_on(script: Path) -> None:
    measured(publish(torch.ops.aten.silu.default, torch.ones(8, 8)), python=LOSES)
    assert served(script) == ["aten::silu", "aten::tanh"]
    assert served(script) == ["aten::tanh"]
    assert served(script) == ["aten::tanh"]


def test_a_run_that_ended_in_an_error_does_not_count(script: Path) -> None:
    measured(publish(torch.ops.aten.silu.default, torch.ones(8, 8)), python=LOSES)
    for _ in range(2):
        assert served(script, "raise") == ["aten::silu", "aten::tanh"]


def test_a_run_that_ended_by_sys_exit_counts(script: Path) -> None:
    measured(publish(torch.ops.aten.silu.default, torch.ones(8, 8)), python=LOSES)
    assert served(script, "says why") == ["aten::silu", "aten::tanh"]
    assert served(script, "says why") == ["aten::tanh"]


def test_other_arguments_make_another_run(script: Path) -> None:
    measured(publish(torch.ops.aten.silu.default, torch.ones(8, 8)), python=LOSES)
    assert served(script) == ["aten::silu", "aten::tanh"]
    assert served(script, "0") == ["aten::silu", "aten::tanh"]
    assert served(script) == ["aten::tanh"]
