"""``AOTI_EAGER_ENABLE``: by ``sitecustomize`` and by ``run``; children, and what is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aoti_eager._enable.variable import VARIABLE, take_preset

ROOT = Path(__file__).parents[2]
# Prints what is served here, and in a child that inherits the variables.
SCRIPT = """
import os, subprocess, sys
import torch
ours = sys.modules.get("aoti_eager._enable.scripts")
chosen = None if ours is None else ours._switch.in_force
served = 0 if chosen is None else len(chosen.ops)
loader = torch.__spec__.loader
print(served > 0, loader.__class__.__name__, torch.__loader__ is loader)
if len(sys.argv) < 2:
    sys.stdout.flush()
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""
LOADER = "SourceFileLoader True"


@pytest.fixture
def customized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that has a ``sitecustomize`` and is on the path of processes."""
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text("import aoti_eager.startup\n")
    monkeypatch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{ROOT}")
    return directory


def run(*command: object, **variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (None, [False, False]),
        ("0", [False, False]),
        ("1", [True, False]),
        ("inference+children", [True, True]),
        ("nonsense", [False, False]),
    ],
)
def test_sitecustomize_serves_a_process_and_not_its_children(
    customized: Path, tmp_path: Path, value: str | None, want: list[bool]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    variables = {} if value is None else {VARIABLE: value}
    assert run(script, **variables) == [f"{served} {LOADER}" for served in want]


def test_a_process_without_torch_loads_nothing(customized: Path) -> None:
    code = "import sys; print('torch' in sys.modules, len(sys.meta_path))"
    (plain,) = run("-c", code)
    (waiting,) = run("-c", code, **{VARIABLE: "1"})
    assert plain.split()[0] == waiting.split()[0] == "False"
    assert int(waiting.split()[1]) == int(plain.split()[1]) + 1


def test_run_serves_the_preset(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ["-m", "aoti_eager", "run", script]
    assert run(*command, **{VARIABLE: "1"}) == [f"True {LOADER}", f"False {LOADER}"]


@pytest.mark.parametrize(
    ("value", "want", "left"),
    [
        ("", None, ""),
        ("off", None, "off"),
        ("yes", ("", False), None),
        ("all", ("all", False), None),
        ("1+children", ("", True), "1+children"),
    ],
)
def test_the_variable_is_taken(
    monkeypatch: pytest.MonkeyPatch, value: str, want: object, left: str | None
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert take_preset() == want
    assert os.environ.get(VARIABLE) == left
