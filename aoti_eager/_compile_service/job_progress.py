"""How far a worker has come with one job, as the script knows it: the latest step, in words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .steps import Step


# Thread ident -> the job that the thread asks a worker for.
_asked_for: dict[int, JobProgress] = {}


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

    @contextlib.contextmanager
    def asked_for_here(self) -> Iterator[None]:
        """Tell this job of the steps of the worker that this thread asks in the block."""
        ident = get_ident()
        before = _asked_for.get(ident)
        _asked_for[ident] = self
        try:
            yield
        finally:
            if before is None:
                _asked_for.pop(ident, None)
            else:
                _asked_for[ident] = before


def progress_here() -> JobProgress | None:
    """Return the job that this thread asks a worker for; ``None`` if nobody wants its steps."""
    return _asked_for.get(get_ident())
