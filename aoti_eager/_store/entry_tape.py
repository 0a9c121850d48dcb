"""The tape of a region's entry in short, for people: ``8 ops: addmm x3, tanh x2``."""

from __future__ import annotations

import re
from collections import Counter

from .entry import Entry
from .new_entries import TAPE

# A line of the listing: ``r3 = aten::addmm(i5, r2)``, with the overload's name behind a point.
_CALL = re.compile(r"^r\d+ = \w+::(\w+)", flags=re.MULTILINE)
_NAMED = 4


def tape_in_short(entry: Entry) -> str:
    """Return how many ops a region's tape has, and the most frequent ones; empty for other entries.

    A very long listing is stored without its middle, whose ops are not counted.
    """
    listing = dict(entry.provenance).get(TAPE, "")
    ops = Counter(_CALL.findall(listing))
    if not ops:
        return ""
    # By number, then in the order of the tape.
    named = [f"{op} x{n}" if n > 1 else op for op, n in ops.most_common(_NAMED)]
    more = ", ..." if len(ops) > _NAMED else ""
    return f"{sum(ops.values())} ops: {', '.join(named)}{more}"
