"""Timed rounds of calls: one side of a measurement, and how long threads waited for a core."""

from __future__ import annotations

import os
import resource
import statistics
from collections.abc import Callable
from typing import Any

from .._dispatch.kernel import Kernel

# One round of one side: a shorter round measures the clock, a longer one other processes.
_ROUND_NS = 400_000


def waited_ns() -> int:
    """Return how long threads of this process were ready to run and had no core, in total.

    Where the system has no such time: how often a thread lost its core, a millisecond each.
    """
    waited = 0
    try:
        for task in os.scandir("/proc/self/task"):
            with open(f"{task.path}/schedstat", encoding="ascii") as file:
                waited += int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw * 1_000_000
    return waited


class Side:
    """One way of a call: the original (no path), or a kernel or a decline on a hit path.

    ``call`` is the function to call, if it is not the op.
    """

    def __init__(
        self, kernel: Kernel | None, path: str, call: Callable[..., Any] | None = None
    ) -> None:
        self.kernel = kernel
        self.path = path
        self.call = call
        self.quiet: list[float] = []
        self._all: list[float] = []

    def add(self, taken: float, quiet: bool) -> None:
        """Keep the nanoseconds of one call in one more round."""
        self._all.append(taken)
        if quiet:
            self.quiet.append(taken)

    def calls(self, most: int) -> int:
        """Return how many calls make the next round."""
        return max(1, min(most, int(_ROUND_NS / max(min(self._all, default=_ROUND_NS), 1.0))))

    def microseconds(self, quiet: bool) -> float:
        """Return the median of the rounds that count."""
        return round(statistics.median(self._counting(quiet)) / 1e3, 3)

    def spread(self, quiet: bool) -> float:
        """Return by how much the rounds that count differ, as a share of their median."""
        counting = self._counting(quiet)
        return round((counting[-1] - counting[0]) / max(statistics.median(counting), 1.0), 4)

    def _counting(self, quiet: bool) -> list[float]:
        # The faster half of the quiet rounds: no disturbance makes a call faster than it is.
        taken = sorted(self.quiet if quiet else self._all)
        return taken[: (len(taken) + 1) // 2 if quiet else (len(taken) + 3) // 4]
