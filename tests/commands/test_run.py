"""``run``: the script notices nothing, and the table says what happened to its ops."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import aoti_eager
from aoti_eager import OpStats
from aoti_eager._commands.run import DEFAULT_OPS
from aoti_eager._commands.run_report import format_table, number_unfinished, summary

from ..support import forked_python

Result = subprocess.CompletedProcess[str]

SILU = """
import torch

x = torch.linspace(-2, 2, 64).reshape(8, 8)
for _ in range(5):
    y = torch.nn.functional.silu(x)
print(round(y.sum().item(), 3))
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a script and return its path, in a directory that is not the current one."""

    def write_(text: str, name: str = "script.py") -> Path:
        path = tmp_path / "scripts" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write_


def plain(*command: str | Path, cwd: Path | None = None) -> Result:
    return forked_python.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd)


def run(*arguments: str | Path, cwd: Path | None = None) -> Result:
    return plain("-m", "aoti_eager", "run", *arguments, cwd=cwd)


def started(*command: str | Path, cwd: Path | None = None) -> Result:
    """What a Python that is started does: tests compare what ``__main__`` is with that."""
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd)


def test_the_script_sees_what_it_sees_under_python_itself(write, tmp_path):
    script = write(
        "import sys, neighbour\n"
        "print(__name__, __file__, sys.argv, sys.path[0], neighbour.VALUE)\n"
        "print(sorted(globals()), sys.modules['__main__'].__dict__ is globals())\n"
        "print(__spec__, __package__, __doc__, type(__loader__).__name__)\n"
    )
    write("VALUE = 7\n", "neighbour.py")
    relative = script.relative_to(tmp_path)
    arguments = ("--steps", "3", "--", "--ops", "a b")
    expected = started(relative, *arguments, cwd=tmp_path)
    assert "__main__" in expected.stdout
    got = run("--ops", "aten::silu", relative, *arguments, cwd=tmp_path)
    assert (got.returncode, got.stdout) == (0, expected.stdout)


def test_a_link_gives_the_path_of_what_it_points_to(write, tmp_path):
    script = write("import sys, neighbour\nprint(sys.path[0], __file__)\n")
    write("", "neighbour.py")
    link = tmp_path / "link.py"
    link.symlink_to(script)
    assert run("--ops", "aten::silu", link).stdout == started(link).stdout != ""


@pytest.mark.full
@pytest.mark.parametrize(
    "ending",
    [
        "def f():\n    raise ValueError('no')\nf()",
        "1 +",
        "import sys\nsys.exit(3)",
        "import sys\nsys.exit('a message')",
        "raise SystemExit",
        "import sys\nsys.excepthook = lambda *a: print('hooked', a[0].__name__)\n1 / 0",
    ],
)
def test_the_end_of_the_script_is_its_own(write, ending):
    script = write(f"print('before')\n{ending}\n")
    expected = started(script)  # Not forked: its traceback is compared frame by frame.
    got = run("--ops", "aten::silu", script)
    assert (got.returncode, got.stdout) == (expected.returncode, expected.stdout)
    # The same traceback, frame by frame, and the table after it.
    said, table = got.stderr.split("\naoti_eager: ")
    assert said == expected.stderr
    assert table.endswith("1 of them never called\n") or "2 of them never called" in table


@pytest.mark.full
def test_what_runs_after_the_last_line_finds_the_script_and_is_counted(write, shared_cache):
    script = write(
        "import atexit, sys, threading, time, torch\n"
        "def later():\n"
        "    assert sys.modules['__main__'].later is later\n"
        "    print(torch.nn.functional.silu(torch.zeros(8, 8)).sum().item())\n"
        "atexit.register(later)\n"
        "threading.Thread(target=later).start()\n"
    )
    got = run("--ops", "aten::silu.default", "--cache-dir", shared_cache, script)
    assert (got.returncode, got.stdout) == (0, "0.0\n0.0\n")
    assert row(got, "aten::silu")[0] == 2


def row(result: Result, op: str) -> list[int]:
    """Return calls, hits, misses, compiles and declines of ``op`` in the printed table."""
    line = next(line for line in result.stderr.splitlines() if line.split()[:1] == [op])
    return [int(cell) for cell in line.split()[1:6]]


@pytest.mark.full
@pytest.mark.both_paths(costly=True)
def test_calls_are_served_and_counted_cold_and_warm(write, cache_dir, tmp_path):
    script = write(SILU)
    file = tmp_path / "counts.json"
    options = ("--ops", "aten::silu.default,aten::gelu.default", "--json", file, script)
    expected = plain(script).stdout
    for hits, compiles in ((4, 1), (5, 0)):
        got = run(*options)
        assert (got.returncode, got.stdout) == (0, expected)
        assert row(got, "aten::silu") == [5, hits, 5 - hits, compiles, 0]
        assert row(got, "total") == [5, hits, 5 - hits, compiles, 0]
        assert "aten::gelu" not in got.stderr
        table, summary = got.stderr.split("2 ops were registered, 1 of them never called\n")
        assert summary == f"{20 * hits}.0 % of all calls were hits\n"
        assert "unfinished" not in table
        counts = json.loads(file.read_text())
        assert OpStats(**counts["aten::silu"]) == OpStats(hits, 5 - hits, 0, compiles)
    off = run("--mode", "off", *options)
    assert (off.returncode, off.stdout) == (0, expected)
    assert "aten::silu" not in off.stderr


def test_the_counts_may_go_to_a_pipe(write):
    got = run("--ops", "aten::silu.default", "--json", "/dev/stdout", write("print('started')"))
    first, second = got.stdout.splitlines()
    assert (first, json.loads(second)) == (
        "started",
        {"aten::silu": json.loads(second)["aten::silu"]},
    )


def test_a_decline_is_shown_with_its_reason(write):
    script = write(SILU)
    got = run("--ops", "aten::silu.default", "--mode", "cache_only", script)
    assert row(got, "aten::silu") == [5, 0, 0, 0, 5]
    assert "not_in_cache x5" in got.stderr


def test_the_default_ops_are_registered_and_all_there(write):
    got = run("--mode", "cache_only", write(SILU))
    assert got.returncode == 0
    assert f"\n{len(DEFAULT_OPS)} ops were registered" in got.stderr
    assert row(got, "aten::silu")[0] == 5


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--ops", "aten::gelo"],
            "aten::gelo: no such op is registered with PyTorch; did you mean",
        ),
        (["--ops", "aten::silu", "--ops", "aten::selu_"], "aten::selu_: is composite"),
        (["--workers", "none"], "workers"),
        (["--json", "no-such-directory/counts.json"], "cannot be written: No such file"),
        (["--record", "/dev/null"], "cannot be written: is no regular file"),
    ],
)
def test_a_wrong_option_is_an_error_before_the_script_starts(write, options, message):
    got = run(*options, write("print('started')"))
    assert (got.returncode, got.stdout) == (2, "")
    assert message in got.stderr
    assert "Traceback" not in got.stderr


def test_the_counts_of_a_script_that_fails_are_written_in_one_piece_at_its_end(write, tmp_path):
    file = tmp_path / "counts.json"
    file.write_text("old")
    file.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    script = write(
        "import os, torch\n"
        f"print(open({str(file)!r}).read())\n"
        "os.chdir('/')\n"
        "torch.nn.functional.silu(torch.ones(3))\n"
        "raise ValueError('no')\n"
    )
    options = ("--ops", "aten::silu.default", "--mode", "cache_only", "--json", "link.json")
    got = run(*options, script, cwd=tmp_path)
    assert (got.returncode, got.stdout) == (1, "old\n")
    assert json.loads(file.read_text())["aten::silu"]["declines"] == 1
    assert (file.stat().st_mode & 0o777, link.is_symlink()) == (0o640, True)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["counts.json", "link.json"]
    assert list(tmp_path.glob(".aoti-eager-*")) == []


def test_counts_that_cannot_be_written_any_more_are_said_at_the_end(write, tmp_path):
    file = tmp_path / "counts.json"
    got = run("--ops", "aten::silu", "--json", file, write(f"import os\nos.mkdir({str(file)!r})\n"))
    assert got.returncode == 0
    assert f"{file}: cannot be written: Is a directory" in got.stderr
    assert "Traceback" not in got.stderr


def test_a_script_that_is_not_there_is_an_error(tmp_path):
    for path, problem in ((tmp_path / "no.py", "No such file"), (tmp_path, "Is a directory")):
        got = run(path)
        assert got.returncode == 2
        assert f"{path}: the script cannot be read: {problem}" in got.stderr


def test_processes_that_the_script_starts_run_plain_and_print_no_table(write):
    script = write(
        "import multiprocessing, os\n"
        "def work(value):\n"
        "    return value + 1\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(work, [1, 2]))\n"
        "    if os.fork():\n"
        "        os.wait()\n"
        "    print('end', flush=True)\n"
    )
    got = run("--ops", "aten::silu", script)
    assert (got.returncode, got.stdout) == (0, "[2, 3]\nend\nend\n")
    assert got.stderr.count("were registered") == 1


def test_the_table_is_aligned_and_sums_up():
    table = format_table(
        {
            "aten::a": OpStats(hits=1000, misses=2, compiles=2),
            "aten::long_name": OpStats(declines=7, declined={"random": 3, "tracing": 4}),
            "aten::unused": OpStats(),
        },
        registered=["aten::a", "aten::long_name", "aten::unused"],
    )
    assert table.splitlines() == [
        "op               calls  hits  misses  compiles  declines  reasons",
        "aten::a           1002  1000       2         2         0",
        "aten::long_name      7     0       0         0         7  tracing x4, random x3",
        "-" * 79,
        "total             1009  1000       2         2         7",
        "3 ops were registered, 1 of them never called",
    ]
    assert format_table({}, registered=[]) == "0 ops were registered, 0 of them never called"


def test_what_is_unfinished_has_a_column_of_its_own() -> None:
    counts = {
        "aten::a": OpStats(hits=3, misses=1, unfinished={"comparing": 1, "queued": 2}),
        "aten::b": OpStats(misses=4, declines=1, declined={"random": 1}),
        "aten::c": OpStats(unfinished={"queued": 4}),  # Of earlier processes.
    }
    lines = format_table(counts, registered=list(counts)).splitlines()
    assert [line.rstrip() for line in lines[:4]] == [
        "op       calls  hits  misses  compiles  declines  reasons    unfinished",
        "aten::a      4     3       1         0         0             2 queued, 1 comparing",
        "aten::b      5     0       4         0         1  random x1",
        "aten::c      0     0       0         0         0             4 queued",
    ]
    assert lines[5].split()[-4:] == ["6", "queued,", "1", "comparing"]
    # A kernel that waits for a call to be compared with is there.
    assert number_unfinished(counts) == 6


def test_the_step_that_a_worker_is_in_is_said_once() -> None:
    unfinished, steps = {"compiling": 1, "queued": 1}, ("step 4 of 6, compiling C++, 12 s",)
    counts = {"aten::a": OpStats(misses=2, unfinished=unfinished, steps=steps)}
    lines = format_table(counts, registered=list(counts)).splitlines()
    said = "1 queued, 1 compiling"
    assert lines[1].endswith(f"{said} (step 4 of 6, compiling C++, 12 s)")
    assert lines[3].rstrip().endswith(said)


def test_the_share_of_hits_and_what_they_have_saved_are_said_in_a_line() -> None:
    assert summary({}) == summary({"aten::a": OpStats()}) == []
    counts = {"aten::a": OpStats(hits=2, misses=1), "aten::b": OpStats(hits=1, saved_s=0.0)}
    assert summary(counts) == ["75.0 % of all calls were hits"]
    counts["aten::c"] = OpStats(declines=4, saved_s=1.234)
    assert summary(counts) == ["37.5 % of all calls were hits; they have saved about 1.2 s"]


def test_counts_of_the_process_are_what_the_counters_say(shared_cache):
    """Each call counts once, whether it misses, hits or declines."""
    import torch

    x = torch.linspace(-2, 2, 64).reshape(8, 8)
    with aoti_eager.register("aten::silu.default"):
        before = aoti_eager.stats()["aten::silu"]
        for _ in range(4):
            torch.nn.functional.silu(x)
        after = aoti_eager.stats()["aten::silu"]
    assert after.calls - before.calls == 4
