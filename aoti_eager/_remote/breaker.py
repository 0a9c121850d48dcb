"""Whether requests to a place are worth it: after failures in turn, none are made for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# So many failures in turn open the breaker, for the first and the longest rest.
MOST_FAILURES = 3
FIRST_REST_S, LONGEST_REST_S = 30.0, 600.0

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


class Breaker:
    """A circuit breaker.

    While it is closed, requests go through. After ``MOST_FAILURES`` failures in turn it is open: no
    request goes through until the rest is over. Then it is half-open: one request goes through, and
    closes the breaker, or opens it for twice as long.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._rest_s = FIRST_REST_S
        self._until: float | None = None
        self._is_probed = False
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        """Return ``closed``, ``open`` or ``half-open``."""
        with self._lock:
            if self._until is None:
                return CLOSED
            return OPEN if self._clock() < self._until else HALF_OPEN

    def allows(self) -> bool:
        """Return whether a request may be made now; in the half-open state, the first may."""
        with self._lock:
            if self._until is None:
                return True
            if self._clock() < self._until or self._is_probed:
                return False
            self._is_probed = True
            return True

    def succeeded(self) -> None:
        """Note that a request was answered; also that there is no such thing is an answer."""
        with self._lock:
            self._failures, self._rest_s = 0, FIRST_REST_S
            self._until, self._is_probed = None, False

    def failed(self) -> None:
        """Note that a request was not answered, or by an error."""
        with self._lock:
            self._failures += 1
            if self._is_probed:
                self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
            elif self._failures < MOST_FAILURES:
                return
            self._until, self._is_probed = self._clock() + self._rest_s, False
