"""The thread that looks at the counts of rare keys: it starts when a key may be due."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

from .._base.handover import beside_script

log = logging.getLogger("aoti_eager")

# The thread ends after so many seconds without anything to look at.
_IDLE_S = 10.0
# The shortest time between two looks.
_SHORTEST_S = 0.1


class LookThread:
    """Calls ``look`` at the times that it is woken for, and when a key is due.

    Args:
        look: Looks at all keys.
        next_at: Returns when the next key is to be looked at; infinity if none is.
        clock: Gives seconds.
        changed: Guards the keys; the thread waits on it.
    """

    def __init__(
        self,
        look: Callable[[], None],
        next_at: Callable[[], float],
        clock: Callable[[], float],
        changed: threading.Condition,
    ) -> None:
        self._look = look
        self._next_at = next_at
        self._clock = clock
        self._changed = changed
        self._thread: threading.Thread | None = None
        self._wakes_at = 0.0

    def wake(self, at: float) -> None:
        """Look at the time ``at``, or sooner; the caller holds ``changed``."""
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="aoti_eager-rare", daemon=True)
            self._wakes_at = at
            try:
                thread.start()
            except RuntimeError as error:  # The system has no thread for us, or Python ends.
                log.info("no thread to look at counts: %s", error)
                return
            self._thread = thread
        elif at < self._wakes_at:
            self._wakes_at = at
            self._changed.notify_all()

    def _run(self) -> None:
        idle_since: float | None = None
        while True:
            with self._changed:
                now = self._clock()
                if self._wakes_at > now:
                    self._changed.wait(self._wakes_at - now)
                    continue
            with beside_script():
                self._look()
            with self._changed:
                now, at = self._clock(), self._next_at()
                self._wakes_at = max(min(at, now + _IDLE_S), now + _SHORTEST_S)
                idle_since = None if at < math.inf else idle_since or now
                if idle_since is not None and now - idle_since >= _IDLE_S:
                    self._thread = None
                    return
