"""Seconds that a process has for its work, without those in which it waited for a core."""

from __future__ import annotations

import time

from . import scheduling

# Times are looked at so often at least: what a process that has ended since has waited is lost.
LOOK_S = 1.0


class Deadline:
    """The end of the time that another process has.

    What works beside a script may get a tenth of a core, and is no slower for that: time in which a
    process wants a core and has none does not count. Time counts in which the process runs, and in
    which it sleeps.

    Args:
        seconds: The process's time.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._looked = time.monotonic()
        self._process: int | None = None
        self._times: dict[int, tuple[int, int]] = {}

    def follow(self, process: int) -> None:
        """Leave out what a process, with all that it starts, waits for a core from now on."""
        self.left()
        self._process = process
        self._times = scheduling.process_times(process)

    def left(self) -> float:
        """Return the seconds that are left; below zero if the time is over."""
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        self._left -= passed - self._waited(passed)
        return self._left

    def next_look(self) -> float:
        """Return for how many seconds an answer may be waited for until ``left`` is asked again."""
        return max(0.0, min(self._left, LOOK_S))

    def _waited(self, passed: float) -> float:
        """Return for how many of the last seconds all that wanted a core had none."""
        if self._process is None:
            return 0.0
        before, self._times = self._times, scheduling.process_times(self._process)
        run = waited = 0
        for process, (has_run, has_waited) in self._times.items():
            had_run, had_waited = before.get(process, (0, 0))
            if has_run < had_run:  # Another process, which has been given the number.
                had_run = had_waited = 0
            run += has_run - had_run
            waited += max(0, has_waited - had_waited)
        wanted = run + waited
        # Several processes may want a core at once: each second counts once.
        return min(passed, wanted / 1e9) * waited / wanted if wanted else 0.0
