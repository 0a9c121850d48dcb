"""How much time the children of one model spend on recordings: a fifth, after a first share.

A model that stops has its children recorded in its next call: three thousand layers would take
seconds in that call.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

# Children may be recorded for so many seconds of the thread's own time at once.
_AT_ONCE_S = 0.2
# Then for this share of the time that passes.
_SHARE = 0.2


class RecordingTime:
    """The time that the children of one model may still spend on recordings.

    Threads that record at once may spend a little more: a recording of one thread may begin before
    another thread's one is counted.

    Args:
        is_limited: Whether recordings are counted; the model itself has no such limit.
        clock: Gives the seconds that pass.
        own_clock: Gives the seconds that the calling thread has run.
    """

    __slots__ = ("_clock", "_full_at_s", "_is_limited", "_own_clock")

    def __init__(
        self,
        *,
        is_limited: bool = True,
        clock: Callable[[], float] = time.monotonic,
        own_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._is_limited = is_limited
        self._clock, self._own_clock = clock, own_clock
        # When the whole first share will be there again.
        self._full_at_s = 0.0

    def is_spent(self) -> bool:
        """Return whether no recording begins now."""
        full_at_s = self._full_at_s
        return full_at_s > 0.0 and full_at_s - self._clock() > _AT_ONCE_S / _SHARE

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is done within as a recording, the forward included."""
        if not self._is_limited:
            yield
            return
        begin_s = self._own_clock()
        try:
            yield
        finally:
            taken_s = self._own_clock() - begin_s
            self._full_at_s = max(self._full_at_s, self._clock()) + taken_s / _SHARE
