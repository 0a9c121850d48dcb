"""``stats``: totals, the log of runs, and zero."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aoti_eager import cli
from aoti_eager._dispatch import run_log
from aoti_eager._dispatch.counters import OpStats, add_totals, read_totals
from aoti_eager._dispatch.run_log import Run, note_run, read_runs
from aoti_eager.errors import AotiEagerError

from ..bundles.conftest import open_store
from ..support.entries import publish

STATS = {"aten::silu": OpStats(hits=6, misses=2, declines=2, compiles=1, declined={"slower": 2})}


def run(number: int, script: str = "train.py") -> Run:
    return Run(1_800_000_000 + number, 2.5, script, "background", STATS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "store")
    publish(store)
    return store.root


def text_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.main(["stats", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_runs_are_kept_in_order_and_the_oldest_go(root: Path) -> None:
    for number in range(run_log.MOST_RUNS + 3):
        note_run(root, run(number))
    found = read_runs(root)
    assert [one.ended_at for one in found] == [
        1_800_000_000 + number for number in range(3, run_log.MOST_RUNS + 3)
    ]
    assert found[-1] == run(run_log.MOST_RUNS + 2)


def test_a_damaged_line_costs_that_line(root: Path) -> None:
    for number in range(3):
        note_run(root, run(number))
    path = root / "run_log"
    lines = path.read_bytes().split(b"\n")
    no_count = b'{"ops": {"a": {"hits": "x"}}}'
    for spoilt in (b"{", b"[]", no_count, b"null", b"\xff" * 30, b"[" * 9000):
        lines[1] = spoilt
        path.write_bytes(b"\n".join(lines))
        assert [one.ended_at for one in read_runs(root)] == [1_800_000_000, 1_800_000_002]
    note_run(root, run(7))
    assert len(read_runs(root)) == 3


def test_a_log_that_others_could_have_written_is_not_read(root: Path) -> None:
    note_run(root, run(0))
    (root / "run_log").chmod(0o666)
    assert read_runs(root) == []
    note_run(root, run(1))
    assert [one.ended_at for one in read_runs(root)] == [1_800_000_001]


def test_threads_and_processes_lose_no_run(root: Path) -> None:
    threads = [threading.Thread(target=note_run, args=(root, run(n))) for n in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(one.ended_at - 1_800_000_000 for one in read_runs(root)) == list(range(16))


def test_a_run_has_the_ops_with_the_most_calls() -> None:
    ops = {f"aten::op{n}": OpStats(hits=n) for n in range(run_log.MOST_OPS + 10)}
    found = run_log.this_run(ops, "sync", 1.0)
    assert len(found.ops) == run_log.MOST_OPS
    assert min(stats.hits for stats in found.ops.values()) == 10


def test_each_process_that_used_the_cache_leaves_a_line(tmp_path: Path, cache_dir: Path) -> None:
    script = tmp_path / "my_script.py"
    script.write_text(
        "import torch, aoti_eager\n"
        "aoti_eager.register('aten::silu')\n"
        "for _ in range(5): torch.ops.aten.silu(torch.ones(3))\n"
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (found,) = read_runs(cache_dir)
    assert (found.script, found.mode) == ("my_script.py", "sync")
    assert found.ops["aten::silu"].calls == 5
    assert found.seconds > 0
    (root_totals,) = read_totals(cache_dir).values()
    assert root_totals.calls == 5
    # Nothing that was not used is logged.
    subprocess.run([sys.executable, "-c", "import aoti_eager"], check=True)
    assert len(read_runs(cache_dir)) == 1


def test_the_verb_shows_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note_run(root, run(0, "a\x1b[31m.py"))
    header, row, last = text_of(capsys, "--runs", "--cache-dir", str(root))
    assert " ".join(header.split()) == "ended script mode seconds calls hits compiles saved s"
    assert row.split()[2:8] == ["a\\x1b[31m.py", "background", "2", "10", "60", "%"]
    assert last == f"1 runs that used {root}, the last one last"
    (document,) = json.loads(text_of(capsys, "--runs", "--json", "--cache-dir", str(root))[0])
    assert document["ops"]["aten::silu"]["hits"] == 6


def test_zero_forgets_counters_and_runs_and_no_entry(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_totals(root, STATS)
    note_run(root, run(0))
    (line,) = text_of(capsys, "--zero", "--cache-dir", str(root))
    assert line == f"the counters of 1 ops are zero, in {root}"
    assert read_totals(root) == {}
    assert read_runs(root) == []
    assert len(list(open_store(root).scan())) == 1
    (line,) = text_of(capsys, "--zero", "--json", "--cache-dir", str(root))
    assert json.loads(line) == {"ops": 0}


def test_zero_leaves_a_directory_alone_that_is_no_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    project.mkdir(mode=0o700)
    (project / "totals.json").write_text("{}")
    (project / "main.c").write_text("")
    assert cli.main(["stats", "--zero", "--cache-dir", str(project)]) == 2
    assert "CACHEDIR.TAG" in capsys.readouterr().err
    assert sorted(one.name for one in project.iterdir()) == ["main.c", "totals.json"]
    with pytest.raises(AotiEagerError):
        open_store(project).require_marker()
