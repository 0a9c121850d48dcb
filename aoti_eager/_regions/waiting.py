"""When a call looks at the state of a library that is being made: once in four milliseconds.

A look costs as much as a small op, and workers take seconds.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable

from .._compile_service import queue

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

    __slots__ = ("__weakref__", "_turn", "clock", "until_ns")

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.clock = clock
        self.until_ns = 0
        self._turn = 0

    def rest(self) -> None:
        """Have no call look for a while, after one that has found the library being made."""
        self.until_ns = self.clock() + _RESTS_NS[self._turn]
        self._turn = (self._turn + 1) % len(_RESTS_NS)
        _resting.add(self)

    def is_resting(self) -> bool:
        """Return whether a call does not look."""
        if not self.until_ns:
            return False
        if self.clock() < self.until_ns:
            return True
        self.until_ns = 0
        return False


_resting: weakref.WeakSet[Waiting] = weakref.WeakSet()


def end_all() -> None:
    """Have the next call of each region look: somebody has waited, or a setting has changed."""
    for one in _all_resting():
        one.until_ns = 0
        _resting.discard(one)


def _all_resting() -> list[Waiting]:
    while True:
        with contextlib.suppress(RuntimeError):  # Another thread's call has begun to rest.
            return list(_resting)


queue.after_wait.append(end_all)
