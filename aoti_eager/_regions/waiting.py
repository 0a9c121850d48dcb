"""When a call looks at the state of a library that is being made: once in a millisecond.

A look costs as much as a small op, and workers take seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# How long the calls of a region do not look, in turn. The times differ, so that kinds of calls that
# take turns, too, are all seen.
_RESTS_NS = (1_000_000, 600_000, 1_300_000)


class Waiting:
    """The rests between two looks.

    Args:
        clock: Gives nanoseconds.
    """

    __slots__ = ("_clock", "_turn", "_until_ns")

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._turn = 0
        self._until_ns = 0  # of the rest that goes on; 0 if none does

    def rest(self) -> None:
        """Have no call look for a while, after one that has found the library being made."""
        self._until_ns = self._clock() + _RESTS_NS[self._turn]
        self._turn = (self._turn + 1) % len(_RESTS_NS)

    def is_resting(self) -> bool:
        """Return whether a call does not look."""
        if not self._until_ns:
            return False
        if self._clock() < self._until_ns:
            return True
        self._until_ns = 0
        return False
