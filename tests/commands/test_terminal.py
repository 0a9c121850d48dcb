"""Every verb in a terminal of 80 columns, and piped: what a user sees.

python -m tests.commands.test_terminal    # prints the transcript
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Any

import pytest

from aoti_eager._dispatch.counters import OpStats, add_totals
from aoti_eager._dispatch.run_log import Run, note_run

from ..bundles.conftest import open_store, put
from ..support.entries import OTHER_ENVIRONMENT

COLUMNS = 80
REGION = "aoti_eager_region::t_" + "0123456789abcdef" * 4
STATS = {
    "aten::native_layer_norm_backward": OpStats(
        1_000_000, 20_000, 3_000, 12, 1, {"slower": 2_000, "unsupported_argument": 1_000}
    ),
    REGION: OpStats(hits=10, misses=1),
}
# Verbs that say sentences; a terminal wraps these.
SENTENCES = {"verify", "clear", "trim", "evict", "prune", "inspect", "push", "tiers", "explain"}
GOOD = [
    ["list"],
    ["stats"],
    ["stats", "--runs"],
    ["config"],
    ["config", "mode"],
    ["evict", "--older-than", "7d", "--dry-run"],
    ["trim", "--max-entries", "1", "--dry-run"],
    ["tiers"],
    ["verify", "--dry-run"],
    ["prune", "--stale", "--dry-run"],
    ["report"],
    ["--help"],
    *([verb, "--help"] for verb in ("list", "stats", "push", "pull", "run", "warm", "evict")),
]
WRONG = [
    [],
    ["lst"],
    ["list", "--jsn"],
    ["inspect", "zz"],
    ["evict", "--older-than", "soon"],
    ["config", "mod"],
    ["push"],
    ["push", "kernels"],
    ["load", "no-such-file"],
    ["trim", "--max-size", "much"],
]


def make_store(root: Path) -> Path:
    """Make a store with entries whose names and reasons are long."""
    store = open_store(root)
    put(store, "aten::native_layer_norm_backward")
    put(store, "aten::silu", rows=3)
    put(store, REGION)
    put(store, "aten::add.Scalar", environment=OTHER_ENVIRONMENT)
    add_totals(root, STATS)
    for name in ("train.py", "a_script_with_a_long_name_" * 4 + ".py"):
        note_run(root, Run(1_800_000_000, 61.0, name, "background", STATS))
    return root


def in_terminal(arguments: list[str], directory: Path, columns: int = COLUMNS) -> tuple[int, str]:
    """Return the exit status of a command, and what a terminal of that width was given."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "AOTI_EAGER_CACHE_DIR": str(directory)}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "aoti_eager", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=directory.parent, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # How Linux says that nobody has the terminal open any more.
            break
        if not more:
            break
        said += more
    os.close(ours)
    return process.wait(), said.decode().replace("\r\n", "\n")


def piped(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aoti_eager", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=directory.parent,
        env={**os.environ, "AOTI_EAGER_CACHE_DIR": str(directory)},
    )


def plain(text: str) -> str:
    """Return text without the sequences that a terminal obeys."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def cases(all_of: list[list[str]], fast: int) -> list[Any]:
    """Return all command lines; those behind the first ones run with ``--full``."""
    return [
        pytest.param(one, id=" ".join(one) or "nothing", marks=[pytest.mark.full][: number >= fast])
        for number, one in enumerate(all_of)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("terminal") / "store")


@pytest.mark.parametrize("arguments", cases(GOOD, 5))
def test_a_verb_in_a_terminal_and_piped(arguments: list[str], store: Path) -> None:
    status, shown = in_terminal(arguments, store)
    assert status == 0, shown
    assert "Traceback" not in shown
    if not SENTENCES & {arguments[0]} or "--help" in arguments:
        # A line with the cache's directory is a sentence, which the terminal wraps.
        rows = [row for row in shown.splitlines() if str(store) not in row]
        wide = [row for row in rows if len(plain(row)) > COLUMNS]
        assert wide == []
    done = piped(arguments, store)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", cases(WRONG, 4))
def test_a_wrong_use_is_one_line(arguments: list[str], store: Path) -> None:
    done = piped(arguments, store)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("aoti-eager")
    assert done.stderr.count("\n") == 1
    status, shown = in_terminal(arguments, store)
    assert status == 2
    assert plain(shown).strip() == done.stderr.strip()


def test_a_row_of_a_pipe_is_a_line(store: Path) -> None:
    lines = piped(["list"], store).stdout.splitlines()
    assert len(lines) == 1 + 4 + 1
    assert REGION in "\n".join(lines)


def test_a_table_fits_narrow_and_wide_terminals(store: Path) -> None:
    for columns in (60, 200):
        status, shown = in_terminal(["list"], store, columns)
        assert status == 0
        assert all(len(plain(row)) <= columns for row in shown.splitlines()[:-1])


def main() -> None:
    """Print what each verb says."""
    with tempfile.TemporaryDirectory() as directory:
        root = make_store(Path(directory) / "store")
        for arguments in [*GOOD, *WRONG]:
            status, shown = in_terminal(arguments, root)
            print(f"$ aoti-eager {' '.join(arguments)}\n{plain(shown).rstrip()}\n[{status}]\n")


if __name__ == "__main__":
    main()
