"""The op set: which ops can win over ATen, by figures that were measured, and by which rule.

``python -m tests.benchmarks.op_set`` measures and writes ``op_set.json``: for each op, size and
dtype the seconds of ATen's call and of the call with the op registered and the gate on, on a named
model of processor. An op wins on a processor if a kernel served it there, at least
``LEAST_SPEED`` times as fast as ATen at one size and dtype or more. Which of its calls a kernel
serves, the gate decides anew on each machine.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .._base.data_class import dataclass
from ..errors import ConfigError

FILE = Path(__file__).with_name("op_set.json")
FORMAT = 1
PRESETS = ("inference", "training", "all")
DEFAULT_PRESET = "training"
# How many times as fast as ATen a kernel is that wins.
LEAST_SPEED = 1.05


@dataclass(frozen=True, slots=True)
class Run:
    """Where figures come from.

    Attributes:
        processor: The model of processor, as verdicts name it.
        threads: How many threads ATen and the kernels had.
        date: The day.
        torch: The version of torch.
        note: What else is to be known, for example that the machine was busy.
    """

    processor: str
    threads: int
    date: str
    torch: str
    note: str


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured of one op's call.

    Attributes:
        op: Qualified name of the overload, as ``register`` takes it.
        run: Where it was measured: the number of the run.
        dtype: The dtype of its tensors, ``float32``.
        size: The sizes of its first tensor, ``512x512``.
        aten_us: Microseconds of ATen's call; median.
        served_us: Microseconds of the call with the op registered; median.
        declined: Why no kernel served the call; ``None`` if one did.
    """

    op: str
    run: int
    dtype: str
    size: str
    aten_us: float
    served_us: float
    declined: str | None

    @property
    def speed(self) -> float:
        """Return how many times as fast as ATen the call is with the op registered."""
        return self.aten_us / self.served_us

    @property
    def wins(self) -> bool:
        """Return whether a kernel has served the call, and paid off."""
        return self.declined is None and self.speed >= LEAST_SPEED


@dataclass(frozen=True, slots=True)
class OpSet:
    """The figures of all ops that were measured, and where they were measured."""

    runs: tuple[Run, ...]
    figures: tuple[Figure, ...]

    def ops(self, preset: str, processor: str) -> tuple[str, ...]:
        """Return the names of a preset's overloads, sorted.

        Args:
            preset: ``"inference"``, the ops that win, without those of gradients; ``"training"``,
                the ops that win; ``"all"``, all ops that were measured, whichever win.
            processor: The model of processor to choose for. If nothing was measured on it, an op
                wins that wins on any other.

        Raises:
            ConfigError: There is no such preset.
        """
        if preset not in PRESETS:
            raise ConfigError(f"preset {preset!r}: there are {', '.join(map(repr, PRESETS))}")
        if preset == "all":
            return tuple(sorted({one.op for one in self.figures}))
        here = {number for number, run in enumerate(self.runs) if run.processor == processor}
        figures = [one for one in self.figures if one.run in here] or self.figures
        found = {one.op for one in figures if one.wins}
        if preset == "inference":
            found = {op for op in found if not is_of_gradients(op)}
        return tuple(sorted(found))


def is_of_gradients(op: str) -> bool:
    """Return whether only gradients call an op."""
    return "backward" in op.partition(".")[0]


@functools.cache
def shipped() -> OpSet:
    """Return the op set of the package's own file; read at the first use."""
    return read_op_set(FILE.read_text(encoding="utf-8"))


def read_op_set(text: str) -> OpSet:
    """Return the op set of a document.

    Raises:
        ValueError: ``text`` is no document of an op set.
    """
    document = json.loads(text)
    if document["format"] != FORMAT:
        raise ValueError(f"an op set of format {document['format']!r}; {FORMAT} is known")
    runs = tuple(Run(**run) for run in document["runs"])
    return OpSet(runs, tuple(_figure(row) for row in document["rows"]))


def op_set_text(op_set: OpSet) -> str:
    """Return the document of an op set, a line for each figure."""
    runs = ",\n".join(json.dumps(_run_document(run)) for run in op_set.runs)
    rows = ",\n".join(json.dumps(_row(one)) for one in op_set.figures)
    return f'{{"format": {FORMAT},\n"runs": [\n{runs}\n],\n"rows": [\n{rows}\n]}}\n'


def merged(before: OpSet | None, run: Run, figures: Iterable[Figure]) -> OpSet:
    """Return ``before`` with the figures of a run; they replace those of the same call and run.

    Args:
        before: What was measured so far; ``None`` for nothing.
        run: The run. A run in ``before`` of the same processor, thread count, torch and note goes
            on, and its date becomes this run's.
        figures: Its figures, whose ``run`` is set here.
    """
    runs = [] if before is None else list(before.runs)
    number = next((i for i, one in enumerate(runs) if _is_same(one, run)), len(runs))
    runs[number : number + 1] = [run]
    kept = {} if before is None else {_place(one): one for one in before.figures}
    for one in figures:
        new = Figure(one.op, number, one.dtype, one.size, one.aten_us, one.served_us, one.declined)
        kept[_place(new)] = new
    return OpSet(tuple(runs), tuple(kept[place] for place in sorted(kept)))


def _is_same(one: Run, other: Run) -> bool:
    mine = (one.processor, one.threads, one.torch, one.note)
    return mine == (other.processor, other.threads, other.torch, other.note)


def _place(one: Figure) -> tuple[str, int, str, str]:
    return one.op, one.run, one.dtype, one.size


def _figure(row: Sequence[Any]) -> Figure:
    op, run, dtype, size, aten_us, served_us, declined = row
    return Figure(op, run, dtype, size, aten_us, served_us, declined)


def _row(one: Figure) -> list[Any]:
    times = [round(one.aten_us, 3), round(one.served_us, 3)]
    return [one.op, one.run, one.dtype, one.size, *times, one.declined]


def _run_document(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ("processor", "threads", "date", "torch", "note")}
