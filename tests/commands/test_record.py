"""``record``: a script's calls as a workload, and nothing compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aoti_eager import cache

SCRIPT = """
import sys, torch
print(sys.argv[1:])
torch.nn.functional.silu(torch.ones(3, 5))
raise SystemExit(7)
"""


def test_a_script_is_run_and_its_calls_are_written(tmp_path: Path, cache_dir: Path) -> None:
    script, workload = tmp_path / "script.py", tmp_path / "calls.jsonl"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "aoti_eager", "record", str(workload), str(script)]
    done = subprocess.run(
        [*command, "--ops", "x", "-v"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 7, done.stderr  # As the script's own.
    assert done.stdout.splitlines()[0] == "['--ops', 'x', '-v']"
    assert [one.key.op for one in cache.read_workload(workload)] == ["aten::silu"]
    assert cache.list(cache_dir=cache_dir) == []


def test_a_file_that_cannot_be_written_is_found_before_the_script_runs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('ran')")
    command = [sys.executable, "-m", "aoti_eager", "record", str(tmp_path / "no" / "f")]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
