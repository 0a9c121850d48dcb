"""``AOTI_EAGER_ENABLE``: by ``sitecustomize`` and by ``run``; children, and what is loaded."""

from __future__ import annotations

import json
import os
import re
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
    page = (ROOT / "docs" / "enable.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import os\n.*?)```", page, flags=re.S)
    (directory / "sitecustomize.py").write_text(example)
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


def test_a_process_without_the_variable_loads_nothing_of_ours(customized: Path) -> None:
    code = "import sys; print(any(name.startswith('aoti_eager') for name in sys.modules))"
    assert run("-c", code) == ["False"]
    assert run("-c", code, **{VARIABLE: "1"}) == ["True"]


def test_who_only_asks_for_torch_does_not_use_the_hook_up(customized: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    asks = """
import importlib.util, sys
for _ in range(2):
    spec = importlib.util.find_spec("torch")
    assert spec.origin.endswith("__init__.py")
    assert spec.loader.get_filename("torch") == spec.origin
assert "torch" not in sys.modules
"""
    script.write_text(asks + SCRIPT)
    assert run(script, **{VARIABLE: "1"}) == [f"True {LOADER}", f"False {LOADER}"]


# A tool wraps each finder, or takes out those that it does not know.
TOOLS = {
    "wraps": """
import sys
class Wrapped:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Wrapped(one) for one in sys.meta_path]
""",
    "holds": """
import sys
taken = [one for one in sys.meta_path if type(one).__name__ == "_AtTorch"]
assert len(taken) == (len(sys.argv) < 2), "a child has none"
sys.meta_path[:] = [one for one in sys.meta_path if one not in taken]
class Tool:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return next(filter(None, (one.find_spec(name, path, target) for one in taken)), None)
sys.meta_path.insert(0, Tool)
""",
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_has_changed_the_finders_is_no_harm(
    customized: Path, tmp_path: Path, tool: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(TOOLS[tool] + SCRIPT)
    assert run(script, **{VARIABLE: "1"}) == [f"True {LOADER}", f"False {LOADER}"]


# Prints what is served, how often, and which runs are to be counted.
ONCE = """
import json
from aoti_eager._enable import script_runs, scripts
from aoti_eager._registration import registry
(pid, run), = script_runs._counted
print(json.dumps({
    "held": max(len(one.holders) for one in registry._installed.values()),
    "ops": len({one for one, _ in registry._installed if one.startswith("aten::")}
               - scripts._switch.held),
    "children": scripts._switch.in_force.children,
    "run": run,
}))
"""


@pytest.mark.parametrize("value", ["1", "1+children", None])
def test_run_beside_sitecustomize_serves_and_counts_once(
    customized: Path, tmp_path: Path, value: str | None
) -> None:
    script = tmp_path / "script.py"
    script.write_text(ONCE)
    command = ["-m", "aoti_eager", "run", script]
    if value is None:  # A hook of the user's own.
        (customized / "sitecustomize.py").write_text("import aoti_eager\naoti_eager.enable()\n")
    variables = {} if value is None else {VARIABLE: value}
    (found,) = map(json.loads, run(*command, **variables))
    assert found["held"] == 1, "one registration holds an op"
    assert found["ops"] == 0, "the default list is not served on top"
    assert found["children"] is (value == "1+children")
    (customized / "sitecustomize.py").write_text("")
    if value is None:
        assert found["run"] is None, "a hook does not know the script"
        return
    (plain,) = map(json.loads, run(*command, **variables))
    assert found == plain, "as without sitecustomize: the script's run is counted"
    assert found["run"] is not None


def test_run_says_what_it_leaves_to_sitecustomize(customized: Path, tmp_path: Path) -> None:
    code = "import aoti_eager\naoti_eager.enable(include='aten::silu')\n"
    (customized / "sitecustomize.py").write_text(code)
    script = tmp_path / "script.py"
    script.write_text("")
    said = []
    for options in ([], ["--all-ops", "--record", str(tmp_path / "calls.jsonl")]):
        done = subprocess.run(
            [sys.executable, "-m", "aoti_eager", "run", *options, str(script)],
            capture_output=True,
            text=True,
            env={**os.environ, **({VARIABLE: "all"} if options else {})},
        )
        assert done.returncode == 0, done.stderr
        said.append([one for one in done.stderr.splitlines() if "has chosen the ops" in one])
    assert said[0] == []
    (line,) = said[1]
    assert f"not changed by --all-ops, {VARIABLE}, --record (" in line


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
