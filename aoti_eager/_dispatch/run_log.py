"""The log of runs: one line for each process that used the cache, the last ones only.

The file ``run_log`` is advice for a reader. A line that cannot be read costs that line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .._base.data_class import dataclass
from .._base.file_lock import locked
from .._base.store_format import RUN_LOG_FILE, TOTALS_FILE
from .._base.store_removal import remove
from .._base.trusted_files import Directory, open_directory
from .counters import OpStats

# So many runs are kept, with so many ops each: those with the most calls.
MOST_RUNS, MOST_OPS = 200, 64
# At most so many bytes are read, before any of their content is believed.
_LIMIT = 8 << 20
# Short: this runs at exit, and a lost line is better than a late end.
_TIMEOUT_S = 2.0
_LONGEST_NAME = 120


@dataclass(frozen=True, slots=True)
class Run:
    """One process that used the cache.

    Attributes:
        ended_at: When it ended, in seconds since 1970.
        seconds: How long it ran, from its first registered op on.
        script: The script's name without directories; ``python`` where there is none.
        mode: The setting ``mode`` at its end.
        ops: What became of the calls, by op.
    """

    ended_at: int
    seconds: float
    script: str
    mode: str
    ops: Mapping[str, OpStats]


def this_run(ops: Mapping[str, OpStats], mode: str, seconds: float) -> Run:
    """Return the record of this process, which ends.

    Args:
        ops: What became of its calls, by op.
        mode: The setting ``mode``.
        seconds: How long it ran.
    """
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    most = sorted(ops, key=lambda op: (-ops[op].calls, op))[:MOST_OPS]
    return Run(
        int(time.time()),
        round(seconds, 1),
        name[:_LONGEST_NAME] if name not in ("", "-c", "-m") else "python",
        mode,
        {op: ops[op] for op in sorted(most)},
    )


def note_run(root: Path, run: Run) -> None:
    """Add a run to the log of the store at ``root``, which must exist; the oldest one may go.

    Raises:
        OSError: The log cannot be written.
    """
    with (
        open_directory(root) as directory,
        directory.directory("locks", create=True) as locks,
        locked(locks, "totals", _TIMEOUT_S),
    ):
        lines = _lines(directory)[-(MOST_RUNS - 1) :]
        directory.write(RUN_LOG_FILE, b"\n".join([*lines, _encoded(run), b""]))


def read_runs(root: Path | None) -> list[Run]:
    """Return the runs of the log, the last one last; none if the log cannot be read.

    Args:
        root: The store's directory; ``None`` for a user who has no store.
    """
    if root is None:
        return []
    try:
        with open_directory(root) as directory:
            found = [_decoded(line) for line in _lines(directory)]
    except OSError:
        return []
    return [one for one in found if one is not None]


def forget_totals(root: Path) -> None:
    """Remove the totals and the log of runs from the store at ``root``; the entries stay.

    Raises:
        OSError: They cannot be removed.
    """
    with (
        open_directory(root) as directory,
        directory.directory("locks", create=True) as locks,
        locked(locks, "totals", _TIMEOUT_S),
    ):
        remove(directory, TOTALS_FILE)
        remove(directory, RUN_LOG_FILE)


def _lines(root: Directory) -> list[bytes]:
    try:
        return [one for one in root.read(RUN_LOG_FILE, _LIMIT).split(b"\n") if one]
    except OSError:  # There is none yet, or others could have written it: it begins anew.
        return []


def _encoded(run: Run) -> bytes:
    ops = {op: _counts(stats) for op, stats in run.ops.items()}
    document = {
        "ended_at": run.ended_at,
        "seconds": run.seconds,
        "script": run.script,
        "mode": run.mode,
        "ops": ops,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _counts(stats: OpStats) -> dict[str, Any]:
    """Return what is not zero, and lasts."""
    values = asdict(stats)
    return {
        name: value
        for name, value in values.items()
        if value and name not in ("unfinished", "steps")
    }


def _decoded(line: bytes) -> Run | None:
    try:
        found = json.loads(line)
        ops = {str(op): OpStats() + OpStats(**counts) for op, counts in found["ops"].items()}
        return Run(
            int(found["ended_at"]),
            float(found["seconds"]),
            str(found["script"])[:_LONGEST_NAME],
            str(found["mode"])[:_LONGEST_NAME],
            dict(list(ops.items())[:MOST_OPS]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
