"""``evict``, ``trim`` and ``prune`` as commands; what ``list`` and ``stats`` say of limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aoti_eager import cli
from aoti_eager._base.amounts import size_in_words
from aoti_eager._store.entry import Remembered, Status
from aoti_eager._store.store import Store
from aoti_eager.config import config

from ..support.entries import files_below, make_entry, make_key, publish

DAY_S = 24 * 3600.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with three entries; the last uses are 1, 8 and 2 days ago."""
    root = tmp_path / "store"
    store = Store(root, lock_timeout_s=1.0)
    for op, days in (("aten::silu", 1), ("aten::add.Tensor", 8), ("aten::add.Scalar", 2)):
        path = publish(store, make_entry(key=make_key(op)), content=b"x" * 100_000).path
        os.utime(path, (time.time() - days * DAY_S,) * 2)
    return root


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run_(*arguments: str, status: int = 0) -> str:
        assert cli.main([*arguments, "--cache-dir", str(root)]) == status
        said = capsys.readouterr()
        assert (said.err if status == 0 else said.out) == ""
        return said.out if status == 0 else said.err

    return run_


def entries(root: Path) -> int:
    return sum(name.endswith("entry.json") for name in files_below(root))


def entry_files(root: Path) -> list[str]:
    return [name for name in files_below(root) if name.startswith("v1/")]


def test_evict_by_age_and_op(root: Path, run: Any) -> None:
    place = next((root / "v1").glob("*/aten.add.Tensor/*/*/*"))
    size = size_in_words(sum(file.stat().st_size for file in place.iterdir()))
    line = run("evict", "--older-than", "7d", "--op", "aten::*")
    assert line.startswith(f"1 entries, {size}, removed; 2 entries, ")
    assert line.endswith(f" KiB, left in {root}\n")
    assert entries(root) == 2
    run("evict", "--op", "aten::add")
    assert entries(root) == 1


def test_a_dry_run_names_what_would_go_and_removes_nothing(root: Path, run: Any) -> None:
    said = run("evict", "--older-than", "36h", "--dry-run").splitlines()
    assert said[0].split() == ["op", "key", "KiB", "last", "used"]
    assert [line.split()[0] for line in said[1:3]] == ["aten::add.Tensor", "aten::add.Scalar"]
    assert "would be removed" in said[3]
    assert len(said) == 4
    assert max(map(len, said[:3])) <= 80
    assert entries(root) == 3


@pytest.mark.parametrize("dry_run", [True, False])
def test_json_has_numbers_and_entries(root: Path, run: Any, dry_run: bool) -> None:
    options = ["--dry-run"] if dry_run else []
    document = json.loads(run("trim", "--max-size", "210K", "--json", *options))
    assert document["removed"] == 1
    assert document["left"] == 2
    assert document["dry_run"] is dry_run
    (entry,) = document["entries"]
    assert entry["op"] == "aten::add.Tensor"
    assert entry["size_bytes"] == document["removed_bytes"] > 100_000
    assert document["left_bytes"] == pytest.approx(2 * entry["size_bytes"], rel=0.01)
    assert Path(entry["path"]).exists() is dry_run


def test_trim_by_number(root: Path, run: Any) -> None:
    run("trim", "--max-entries", "2", "--max-size", "1G")
    assert entries(root) == 2
    run("trim", "--max-size", "0")
    assert entries(root) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evict"], "evict: choose --older-than, --op or both"),
        (["evict", "--older-than", "7x"], "--older-than: got '7x'; wants an age such as 30m, 12h"),
        (["trim"], "trim: choose --max-size, --max-entries or both"),
        (["trim", "--max-size", "much"], "--max-size: got 'much'; wants bytes, or text such as"),
        (
            ["trim", "--max-entries", "-1"],
            "--max-entries: got '-1'; wants a whole number, at least 0",
        ),
        (["prune"], "prune: choose --declined, --stale or both, or --compiler"),
        (["evict", "--older"], "argument --older-than: expected one argument"),
        (["evict", "--everything"], "unrecognized arguments: --everything"),
        (["evcit"], "invalid choice: 'evcit'"),
        ([], "the following arguments are required: VERB"),
    ],
)
def test_a_wrong_use_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(arguments)
    except SystemExit as error:  # argparse ends the process itself.
        status = int(str(error.code))
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("aoti-eager")
    assert message in said.err


def test_a_wrong_setting_is_one_line_and_no_traceback(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aoti_eager", "list", "--cache-dir", str(root)],
        env={**os.environ, "AOTI_EAGER_MAX_SIZE": "5 gigs"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "aoti-eager: environment variable AOTI_EAGER_MAX_SIZE: got '5 gigs'; wants bytes, or text "
        "such as 500M or 5G, above 0; or 'none' for no limit\n"
    )


def test_list_and_stats_say_how_much_there_is_and_may_be(root: Path, run: Any) -> None:
    size = size_in_words(sum((root / name).stat().st_size for name in entry_files(root)))
    for verb in ("list", "stats"):
        last = run(verb).splitlines()[-1]
        assert last == f"3 entries, {size} of at most 5.0 GiB, in {root}"
    with config.scope(max_size="1M", max_entries=7):
        assert " of at most 7 entries and 1.0 MiB, in" in run("list")
    with config.scope(max_size=None):
        assert f" KiB, in {root}" in run("list")


def test_prune_has_a_dry_run_and_json(root: Path, run: Any) -> None:
    store = Store(root, lock_timeout_s=1.0)
    failure = {"status": Status.DECLINED, "reason": "mismatch", "remembered": Remembered(1, None)}
    publish(store, make_entry(key=make_key(rows=9), **failure), content=None)
    before = files_below(root)
    assert "4 entries of other environments" in run("prune", "--stale", "--dry-run")
    document = json.loads(run("prune", "--stale", "--declined", "--dry-run", "--json"))
    wanted = {"declined": 0, "slower": 0, "stale": 4, "compiler": 0, "orphans": 0}
    assert document == {**wanted, "dry_run": True}
    assert files_below(root) == before
    assert json.loads(run("prune", "--stale", "--json")) == {**wanted, "dry_run": False}
    assert entries(root) == 0


def test_a_dry_run_of_prune_counts_the_verdicts_that_would_lose_their_entry(
    root: Path, run: Any
) -> None:
    for rows in (8, 9):
        place = root / "verdicts" / "a-cpu" / f"{make_key(rows=rows).digest}.json"
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.write_text("{}")
    dry = json.loads(run("prune", "--stale", "--dry-run", "--json"))
    done = json.loads(run("prune", "--stale", "--json"))
    assert dry["orphans"] == done["orphans"] == 2


def test_an_eviction_under_way_is_waited_for_and_then_reported(
    root: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aoti_eager._base.trusted_files import open_directory
    from aoti_eager._store import evict
    from aoti_eager._store.least_used import evicting

    monkeypatch.setattr(evict, "_TIMEOUT_S", 0.01)
    with open_directory(root) as directory, evicting(directory, 0.0):
        message = run("evict", "--op", "*", status=2)
        assert "another process has been evicting for more than 0.01 s; try again" in message
        run("evict", "--op", "*", "--dry-run")
    assert entries(root) == 3


def test_somebodys_directory_is_refused(tmp_path: Path, run: Any) -> None:
    project = tmp_path / "project"
    (project / "v1").mkdir(parents=True)
    (project / "v1" / "model.py").write_text("precious")
    assert cli.main(["evict", "--op", "*", "--cache-dir", str(project)]) == 2
    assert files_below(project) == ["v1/model.py"]
