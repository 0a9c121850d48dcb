"""When a kernel is likely to pay: the time of its calls so far against the time of a compile."""

from __future__ import annotations

from ..config import config

# Seconds for the compile, trial and measurement of one small kernel in a worker that has a core.
COMPILE_S = 1.5
# A key whose calls have taken this share of a compile is likely to take a thousand times as much:
# docs/background.md has the calculation.
SHARE = 1 / 300
# The times of this process's own compiles count within these bounds: a worker that waits for a core
# takes longer, but costs no more.
_LEAST_S, _MOST_S = 0.75, 6.0
# The weight of the last compile in the moving average.
_NEWEST = 0.2


class Payback:
    """The rule for one process, which learns how long its compiles take."""

    def __init__(self) -> None:
        self._compile_s = COMPILE_S

    def observe(self, compile_s: float) -> None:
        """Take into account how long a compile has taken: the seconds from asking to its entry."""
        bounded = min(max(compile_s, _LEAST_S), _MOST_S)
        # If two threads observe at once, one observation may be lost.
        self._compile_s += _NEWEST * (bounded - self._compile_s)

    @property
    def spent_s(self) -> float:
        """Return how many seconds the calls of a key take before a kernel is asked for."""
        return self._compile_s * SHARE

    def missing(self, calls: int, spent_s: float) -> float:
        """Return after how many more calls a key, or a family, is likely to pay for a kernel.

        Args:
            calls: How often the key or family was called, earlier runs included.
            spent_s: How many seconds the original has taken for these calls.
        """
        wanted = config.compile_after
        if wanted != "auto":
            return float(max(int(wanted) - calls, 0))
        call_s = max(spent_s / max(calls, 1), 1e-9)
        # One call says nothing about further calls, however long it took.
        return max(2.0 - calls, (self.spent_s - spent_s) / call_s, 0.0)


payback = Payback()
