"""When a call looks at the state of a library that is being made: once in four milliseconds.

A look costs as much as a small op, and workers take seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# How long the calls of a region do not look, in turn. The times differ, so that kinds of calls that
# take turns, too, are all seen.
_RESTS_NS = (4_000_000, 2_400_000, 5_200_000)


class Waiting:
    """The rests between two looks.

    Args:
        clock: Gives nanoseconds.

    Attributes:
        clock: Gives nanoseconds.
        until_ns: When the rest that goes on ends; 0 if none does.
    """

    __slots__ = ("_turn", "clock", "until_ns")

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.clock = clock
        self.until_ns = 0
        self._turn = 0

    def rest(self) -> None:
        """Have no call look for a while, after one that has found the library being made."""
        self.until_ns = self.clock() + _RESTS_NS[self._turn]
        self._turn = (self._turn + 1) % len(_RESTS_NS)

    def is_resting(self) -> bool:
        """Return whether a call does not look."""
        if not self.until_ns:
            return False
        if self.clock() < self.until_ns:
            return True
        self.until_ns = 0
        return False
