"""What is written down of a unit's run: one JSON document a line, so that a run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PHASES = ("cold", "warm")
PARTS = ("samples", "layouts", "gradients")
DTYPES = (
    "float32",
    "float64",
    "bfloat16",
    "float16",
    "int64",
    "int32",
    "uint8",
    "bool",
    "complex64",
)


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """An entry of a database with a dtype, and the part of its calls that is run."""

    entry: str
    dtype: str
    part: str

    def __str__(self) -> str:
        return f"{self.entry} {self.dtype} {self.part}"


@dataclass
class Run:
    """What one phase of one unit gave.

    Attributes:
        registered: Qualified names of the overloads that were registered.
        served: ``op key`` of every table entry that has a kernel.
        declined: Reason by ``op key`` of every table entry that is declined, and by ``op`` of
            every op that always is.
        counts: Hits, misses, declines, compiles and failures, summed over the overloads.
        calls: Calls that were compared, and in how many of these a kernel had a part (``hit``), or
            the original raised (``raised``).
        problems: One line for each difference from the originals, and for a crash or a hang.
        notes: What differs and is allowed, counted by its name.
        left_out: What was not run, counted by the reason.
        seconds: Wall clock.
        date: Day on which it ran, ISO 8601.
    """

    registered: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    declined: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    date: str = ""


Runs = dict[Unit, dict[str, Run]]


class Records:
    """The records of a work directory that one version of torch and of this package has made.

    Args:
        work: The work directory; made if it is missing.
        versions: What tells the versions apart, as ``child.versions`` gives it.
    """

    def __init__(self, work: Path, versions: dict[str, Any]) -> None:
        self.directory = work / f"code{versions['code']}-torch{versions['torch']}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._path = self.directory / "runs.jsonl"
        (self.directory / "versions.json").write_text(json.dumps(versions), encoding="utf-8")

    def write(self, unit: Unit, phase: str, run: Run) -> None:
        """Append one line; a later line for the same unit and phase replaces an earlier one."""
        line = json.dumps({"unit": asdict(unit), "phase": phase, **asdict(run)})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> Runs:
        """Return what is recorded."""
        try:
            with self._path.open(encoding="utf-8") as file:
                return read_lines(file)
        except FileNotFoundError:
            return {}


def read_lines(lines: Iterable[str]) -> Runs:
    """Return the runs that ``lines`` hold; a line that was cut off is as if it were not there."""
    runs: Runs = {}
    for document in _documents(lines):
        unit, phase = Unit(**document.pop("unit")), document.pop("phase")
        runs.setdefault(unit, {})[phase] = Run(**document)
    return runs


def _documents(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            document = json.loads(line)
        except ValueError:  # The process was ended while it wrote.
            continue
        yield document
