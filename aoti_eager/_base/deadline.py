"""Counts the seconds that a process has for its work; waits for a core do not count."""

from __future__ import annotations

import time

from . import scheduling

# Longest interval between two looks at the processes' times, in seconds. The wait of a process that
# ends between two looks is lost.
LOOK_S = 1.0


class Deadline:
    """The end of the time that another process has.

    Time in which the process runs or sleeps counts. Time in which the process wants a core and has
    none does not count: a process beside a script may get only a tenth of a core, and must not time
    out for that.

    Args:
        seconds: The process's time.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._looked = time.monotonic()
        self._process: int | None = None
        self._times: dict[int, tuple[int, int]] = {}

    def follow(self, process: int) -> None:
        """Leave out waits for a core by ``process``, and all that it starts, from now on."""
        self.left()
        self._process = process
        self._times = scheduling.process_times(process)

    def left(self) -> float:
        """Return the seconds that are left; a number below zero if the time is over."""
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        self._left -= passed - self._waited(passed)
        return self._left

    def next_look(self) -> float:
        """Return for how many seconds to wait for a reply before ``left`` must be called again."""
        return max(0.0, min(self._left, LOOK_S))

    def _waited(self, passed: float) -> float:
        """Return in how many of the last ``passed`` seconds the processes waited for a core."""
        if self._process is None:
            return 0.0
        before, self._times = self._times, scheduling.process_times(self._process)
        run = waited = 0
        for process, (has_run, has_waited) in self._times.items():
            had_run, had_waited = before.get(process, (0, 0))
            if has_run < had_run:  # A new process has been given the number.
                had_run = had_waited = 0
            run += has_run - had_run
            waited += max(0, has_waited - had_waited)
        wanted = run + waited
        # Several processes may want a core at once; each second counts only once.
        return min(passed, wanted / 1e9) * waited / wanted if wanted else 0.0
