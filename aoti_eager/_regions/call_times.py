"""The times of a variant's calls in this process, plain and served in turn, and who wins.

Few calls show that a library wins. A loss takes more calls: the first calls of a library meet cold
caches, and a library that is given up for them would be lost for the process.
"""

from __future__ import annotations

from .stop import Stop

# So many calls of each kind are timed, the served and the plain in turn, until the library wins, or
# has lost after the last number.
_TIMED = (3, 6, 12)
# A library that serves beats the forward by more than noise.
_WINS = 0.97
# A library that takes so many times as long as the forward has lost after the first number.
_FAR_OFF = 2.0


class CallTimes:
    """The last times of the forward, and the first ones of served calls."""

    __slots__ = ("_plain_s", "_served_s", "_wanted")

    def __init__(self) -> None:
        self._wanted = _TIMED[0]
        self._plain_s: list[float] = []
        self._served_s: list[float] = []

    @property
    def wants_plain(self) -> bool:
        """Return whether the next call is to run the forward, because its time is wanted."""
        return len(self._plain_s) <= len(self._served_s) and len(self._plain_s) < self._wanted

    @property
    def is_complete(self) -> bool:
        """Return whether enough calls of both kinds were timed."""
        return len(self._served_s) >= self._wanted

    def add(self, seconds: float, *, served: bool) -> Stop | None:
        """Keep the time of a call, and return why serving ends, if this time shows that."""
        times = self._served_s if served else self._plain_s
        if len(times) < self._wanted or not served:
            times.append(seconds)
            del times[: -self._wanted]
        if not (served and self.is_complete and self._plain_s):
            return None
        plain, mine = min(self._plain_s), min(self._served_s)
        if mine <= _WINS * plain:
            return None
        wanted = self._wanted  # Once: another thread may be here, too.
        if mine < _FAR_OFF * plain and wanted < _TIMED[-1]:
            self._wanted = _TIMED[_TIMED.index(wanted) + 1]
            return None
        message = f"a served call takes {1e6 * mine:.0f} us, the forward {1e6 * plain:.0f}"
        return Stop("slower", message)

    @property
    def plain_s(self) -> float | None:
        """Return the seconds that the forward takes, at best; ``None`` if not timed."""
        return min(self._plain_s, default=None)

    @property
    def served_s(self) -> float | None:
        """Return the seconds that a served call takes, at best; ``None`` if not timed."""
        return min(self._served_s, default=None)

    @property
    def speed(self) -> float | None:
        """Return how many times as fast as the forward a served call is, if both were timed."""
        plain_s, served_s = self.plain_s, self.served_s
        return None if plain_s is None or served_s is None else plain_s / max(served_s, 1e-9)
