"""What ``run --fuse`` prints about regions: a line for each kind of them, and their counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from .._dispatch.counters import OpStats
from .._functions.tape import NAMESPACE
from .columns import align

if TYPE_CHECKING:
    from .._regions.report import RegionState

# Layers of a list: all of one kind are one line.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def is_region(op: str) -> bool:
    """Return whether an op is a region's."""
    return op.startswith(f"{NAMESPACE}::")


def regions_text(counts: Mapping[str, OpStats]) -> str:
    """Return the table of all regions that were found in the script, and a line of their counts.

    Args:
        counts: What ``stats()`` returns.
    """
    from .._regions.whole_script import region_states  # Not at the top: see run.

    states = region_states()
    if not states:
        return "no module was called twice, so none was fused"
    header = ("region", "class", "state", "calls", "served", "forward ms", "served ms", "why")
    rows: list[tuple[str, ...]] = [header]
    for root, listed in states.items():
        rows += [_row(root, path, number, one) for (path, number, one) in _kinds(listed)]
    lines = align(rows, left=(0, 1, 2, 7))
    total = sum((count for op, count in counts.items() if is_region(op)), OpStats())
    libraries = "1 library was" if total.compiles == 1 else f"{total.compiles} libraries were"
    made = f"{libraries} compiled for regions"
    saved = f"; their calls have saved about {total.saved_s:.2g} s" if total.saved_s else ""
    return "\n".join([*lines, made + saved])


def _kinds(states: Iterable[RegionState]) -> list[tuple[str, int, RegionState]]:
    """Return path, number and sum of each kind: ``layers.*`` stands for equal layers."""
    found: dict[tuple[str, ...], tuple[int, RegionState]] = {}
    for one in states:
        path = _NUMBER.sub("*", one.path)
        kind = (path, one.name, one.state, one.reason)
        number, before = found.get(kind, (0, one))
        if number:
            calls, hits = before.calls + one.calls, before.hits + one.hits
            before = replace(before, calls=calls, hits=hits)
        found[kind] = (number + 1, before)
    return [(path, number, one) for (path, *_), (number, one) in found.items()]


def _row(root: str, path: str, number: int, one: RegionState) -> tuple[str, ...]:
    times = ["" if one_s is None else f"{1e3 * one_s:.3f}" for one_s in (one.plain_s, one.served_s)]
    where = f"{root}.{path}" if path else root
    what = one.name if number == 1 else f"{one.name} x{number}"
    return (where, what, one.progress, str(one.calls), str(one.hits), *times, one.why)
