"""What runs on several days gave, in short, as the repository keeps it: one line a unit.

A run of everything takes days of CPU time, and the work directory of a run goes with its machine.
``python -m tests.conformance keep --work DIR`` puts what a work directory has into
``recorded.jsonl``, in place of what earlier runs gave of the same units.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .records import Run, Runs, Unit

FILE = Path(__file__).parent / "recorded.jsonl"
# A longer problem is cut off: its beginning tells the call and what differed.
MOST_CHARACTERS = 300


@dataclass
class Seen:
    """What one unit gave, cold and warm.

    Attributes:
        served: Keys that a kernel served.
        declined: Keys that declined, counted by the reason.
        calls: Calls that were compared.
        hit: Calls in which a kernel had a part.
        problems: ``(phase) what differed``, a line each.
        notes: What differs and is allowed, counted by its name.
        left_out: What was not run, counted by the reason.
        code: The package's code version.
        date: Day on which the unit ran, ISO 8601.
    """

    served: int = 0
    declined: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    hit: int = 0
    problems: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    code: int = 0
    date: str = ""


Kept = dict[Unit, Seen]


def in_short(runs: Runs, code: int) -> Kept:
    """Return what both phases of each unit gave; units that were ended between them are left out.

    Args:
        runs: What was recorded.
        code: The package's code version that was run.
    """
    return {
        unit: _seen(list(phases.items()), code)
        for unit, phases in runs.items()
        if {"cold", "warm"} <= phases.keys()
    }


def _seen(phases: list[tuple[str, Run]], code: int) -> Seen:
    runs = [one for _, one in phases]
    # A warm process compiles nothing: what it did not find was no entry, and why the cold one says.
    pairs = {p for one in runs for p in one.declined.items() if p[1] != "not_in_cache"}
    return Seen(
        served=len({key for one in runs for key in one.served}),
        declined=_counted(reason for _, reason in pairs),
        calls=sum(one.calls.get("compared", 0) for one in runs),
        hit=sum(one.calls.get("hit", 0) for one in runs),
        problems=[f"({phase}) {_cut(p)}" for phase, one in phases for p in one.problems],
        notes=_summed(one.notes for one in runs),
        left_out=_summed(one.left_out for one in runs),
        code=code,
        date=max(one.date for one in runs),
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _cut(problem: str) -> str:
    text = " ".join(problem.split())
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "..."


def read(file: Path = FILE) -> Kept:
    """Return what ``file`` keeps; nothing if there is no such file."""
    if not file.exists():
        return {}
    kept: Kept = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        entry, dtype, part, fields = json.loads(line)
        kept[Unit(entry, dtype, part)] = Seen(**fields)
    return kept


def write(kept: Kept, file: Path = FILE) -> None:
    """Replace ``file`` by ``kept``; the same results give the same bytes."""
    lines = [_line(unit, seen) for unit, seen in sorted(kept.items())]
    file.write_text("".join(lines), encoding="utf-8")


def _line(unit: Unit, seen: Seen) -> str:
    fields: dict[str, Any] = {name: value for name, value in asdict(seen).items() if value}
    return json.dumps([unit.entry, unit.dtype, unit.part, fields], sort_keys=True) + "\n"
