"""Which calls of a region are not served, and when they are recorded once more."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from ..errors import RegionStoppedError
from .stop import Stop
from .target import Target

# After so many calls of a key that is not served, a region without a library passes all calls on.
_GIVEN_UP = 1000
# And so does a region with more keys that are not served.
_MOST_KEYS = 64
# The number of the first call of such a key that is recorded once more.
_FIRST_AGAIN = 64
# A module with this reason has children that are not tried yet.
_ELSEWHERE = "unsupported_device"


class StoppedKey:
    """Why the calls of a key are not served.

    Attributes:
        stop: The reason.
        calls: How many calls were not served.
        due: The number of the call that is recorded once more: a hook may be gone.
    """

    __slots__ = ("calls", "due", "stop")

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.calls = 0
        self.due = _FIRST_AGAIN


class StoppedCalls:
    """The calls of one region that are not served.

    Args:
        target: The region's target.
        path: The region's path in the fused model.
        strict: Whether the first stop in a mode raises.

    Attributes:
        first: The first stop in each mode of the module (``training``).
        by_key: The keys that are not served.
        given_up: The modes in which all calls pass.
        on_first: Called at the first stop in a mode: the module's children are tried.
    """

    def __init__(self, target: Target, path: str, *, strict: bool) -> None:
        self.first: dict[bool | None, Stop] = {}
        self.by_key: dict[Any, StoppedKey] = {}
        self.given_up: set[bool | None] = set()
        self.on_first: Callable[[], None] = lambda: None
        self._target, self._path, self._strict = target, path, strict

    def passes(self, key: Any, *, has_library: bool) -> bool:
        """Return whether a call runs as it is; count the call.

        Args:
            key: The key of the call.
            has_library: Whether a library of the region serves, or may serve, other calls.
        """
        found = self.by_key.get(key)
        if found is None:
            return False
        found.calls += 1
        if found.calls >= _GIVEN_UP and not has_library:
            self.given_up.add(self._target.training)
        if found.calls != found.due:
            return True
        found.due *= 4
        return False

    def pass_or_stop(self, key: Any, stop: Stop, *, has_library: bool) -> None:
        """Count a call that can have no library; see ``passes`` and ``stop``."""
        if key not in self.by_key:
            self.stop(key, stop)
        self.passes(key, has_library=has_library)

    def stop(self, key: Any, stop: Stop) -> None:
        """Serve no calls of a key, but try again after some calls.

        Raises:
            RegionStoppedError: The region is strict.
        """
        with _lock:
            before = self.by_key.get(key)
            if before is None:
                self.by_key[key] = StoppedKey(stop)
            else:
                before.stop = stop
            if len(self.by_key) > _MOST_KEYS:
                self.given_up.add(self._target.training)
        self.note(stop)

    def note(self, stop: Stop) -> None:
        """Have the children tried, if this is the first stop in the present mode.

        Raises:
            RegionStoppedError: The region is strict.
        """
        with _lock:
            before = self.first.get(self._target.training)
            # A module that stopped on another device may have been moved to this one.
            if before is not None and (before.reason != _ELSEWHERE or stop.reason == _ELSEWHERE):
                return
            self.first[self._target.training] = stop
        self.on_first()
        if self._strict:
            where = self._path or self._target.name
            raise RegionStoppedError(f"fuse: {where} stops ({stop.reason}): {stop}", stop.reason)


# Of all regions, and held for two steps at most.
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
