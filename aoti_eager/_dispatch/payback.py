"""When a kernel is likely to pay: what its calls have taken so far against what a compile costs."""

from __future__ import annotations

from ..config import config

# What the compile, trial and measurement of one small kernel take in a worker that has a core.
COMPILE_S = 1.5
# A key whose calls have taken this share of a compile is likely to take a thousand times as much:
# docs/background.md has the reckoning.
SHARE = 1 / 300
# What this process's own compiles say is believed within these bounds: workers that wait for a core
# take long and cost no more.
_LEAST_S, _MOST_S = 0.75, 6.0
# How much the last compile counts.
_NEWEST = 0.2


class Payback:
    """The rule for one process, which learns what its compiles take."""

    def __init__(self) -> None:
        self._compile_s = COMPILE_S

    def observe(self, compile_s: float) -> None:
        """Take into account what a compile has taken, in seconds from asking to its entry."""
        bounded = min(max(compile_s, _LEAST_S), _MOST_S)
        # Of two threads at once one may be lost.
        self._compile_s += _NEWEST * (bounded - self._compile_s)

    @property
    def spent_s(self) -> float:
        """Return how many seconds the calls of a key take before a kernel is asked for."""
        return self._compile_s * SHARE

    def missing(self, calls: int, spent_s: float) -> float:
        """Return after how many more calls a key, or a family, is likely to pay for a kernel.

        Args:
            calls: How often it was called, in earlier runs, too.
            spent_s: What the original has taken for these calls, in seconds.
        """
        wanted = config.compile_after
        if wanted != "auto":
            return float(max(int(wanted) - calls, 0))
        call_s = max(spent_s / max(calls, 1), 1e-9)
        # One call says nothing of others to come, however long it took.
        return max(2.0 - calls, (self.spent_s - spent_s) / call_s, 0.0)


payback = Payback()
