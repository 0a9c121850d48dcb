"""How far a worker has come with one job, as the script knows it: the latest step, in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .steps import Step


class JobProgress:
    """The latest step of one job, and the time since it began.

    One thread tells, others read: both are one reference in one attribute.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: tuple[Step | None, float] = None, clock()

    def tell(self, step: Step | None) -> None:
        """Note that a step begins; ``None`` when a worker is asked for, which may have to start."""
        self._latest = step, self._clock()

    def __str__(self) -> str:
        """Return the step and the seconds in it: ``step 4 of 6, compiling C++, 12 s``."""
        step, since = self._latest
        seconds = f"{self._clock() - since:.0f} s"
        return f"waiting for a worker, {seconds}" if step is None else f"{step}, {seconds}"
