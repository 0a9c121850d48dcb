"""The real scripts: that their results are compared, and what the watcher writes down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..scripts import __main__ as scripts

ROOT = Path(__file__).parents[2]
NAN = float("nan")
SCRIPT = """
import json, sys
import torch
x = torch.linspace(-1, 1, 64).reshape(8, 8)
model = torch.nn.LayerNorm(8)
for _ in range(int(sys.argv[1])):
    y = model(x)
print(json.dumps({"sum": y.abs().sum().item()}))
"""


def test_each_script_is_there_and_compiles() -> None:
    files = {path.stem for path in scripts.HERE.glob("*.py")}
    assert set(scripts.SCRIPTS) == set(scripts.STEPS)
    assert set(scripts.SCRIPTS) == files - {"__init__", "__main__", "watched"}
    for name in scripts.SCRIPTS:
        text = (scripts.HERE / f"{name}.py").read_text(encoding="utf-8")
        compile(text, name, "exec")
        assert "aoti_eager" not in text


@pytest.mark.parametrize(
    ("got", "equal"),
    [({"a": 1.0005}, True), ({"a": 1.002}, False), ({"b": 1.0}, False), ({"a": NAN}, False)],
)
def test_results_are_compared(got: dict[str, float], equal: bool) -> None:
    assert scripts.is_close(got, {"a": 1.0}) is equal


@pytest.mark.full
@pytest.mark.parametrize("enabled", ["0", "1"])
def test_what_a_watched_script_did_is_written_down(
    tmp_path: Path, cache_dir: Path, enabled: str
) -> None:
    script, result = tmp_path / "script.py", tmp_path / "result.json"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "tests.scripts.watched"]
    done = subprocess.run(
        [*command, result, enabled, cache_dir, script, "5"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sum"] > 0
    found = json.loads(result.read_text())
    assert found["seconds"] > 0
    assert found["longest_ms"] > 0
    assert ("hits" in found) is (enabled == "1")
