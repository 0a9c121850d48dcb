"""What the parts' results come to: rows by overload, dtype and target, and a table of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .rule import (
    UNCERTIFIED,
    merged,
    serves,
    spelled,
)

Row = dict[str, Any]


def _place(result: Mapping[str, Any]) -> tuple[str, str, str]:
    part = result["part"]
    return part["op"], part["dtype"], part["target"]


def rows(results: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return one row for each overload, dtype and target that eager takes, sorted."""
    ordered = sorted(results, key=lambda one: (*_place(one), one["part"]["variant"]))
    found = []
    for (op, dtype, target), group in itertools.groupby(ordered, _place):
        several = list(group)
        if all(result["outcome"] == "refused" for result in several):
            continue
        row = merged(several)
        place = {"op": op, "dtype": dtype, "target": target}
        found.append({**place, **row, "serves": serves(several)})
    return found


def beyond(results: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return the rows that would serve though they are beyond the rule."""
    return [row for row in rows(results) if row["serves"] and row["status"] == UNCERTIFIED]


def table(found: Sequence[Row]) -> str:
    """Return the rows as text, and how many there are of each status."""
    lines = []
    for row in found:
        ulps = f"{spelled(row['max_ulp_eager']):>9} {spelled(row['max_ulp_compiled']):>9}"
        lines.append(
            f"{row['op']:32} {row['dtype']:9} {row['status']:11} {ulps} "
            f"{row['zero_signs']:9} {row['values']:11} {row['coverage']:24} {row['reason'][:200]}"
        )
    head = (
        f"{'overload':32} {'dtype':9} {'status':11} {'eager ulp':>9} {'ulp':>9} {'zeros':>9} "
        f"{'values':>11} {'coverage':24} reason"
    )
    counts = Counter((row["dtype"], row["status"], row["serves"]) for row in found)
    totals = [
        f"{dtype}: {number} {status if is_served else 'declined'}"
        for (dtype, status, is_served), number in sorted(counts.items())
    ]
    return "\n".join([head, *lines, *totals])
