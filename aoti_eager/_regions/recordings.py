"""Which keys of a region are being recorded, and which of them have raised an error."""

from __future__ import annotations

import os
from typing import Any

# A key of which so many recorded calls in turn raise is stopped.
_ERRORS = 8
# So many keys that have raised are remembered.
_MOST = 64


class Recordings:
    """The recordings of one region."""

    __slots__ = ("_errors", "_under_way")

    def __init__(self) -> None:
        # With the process that records: a forked child has none of its parent's other threads.
        self._under_way: dict[tuple[Any, int], object] = {}
        self._errors: dict[Any, int] = {}

    def begin(self, key: Any) -> bool:
        """Return whether the caller records a call of a key; not if another thread does."""
        mine = object()
        return self._under_way.setdefault((key, os.getpid()), mine) is mine

    def end(self, key: Any) -> None:
        """Let other threads record calls of a key."""
        self._under_way.pop((key, os.getpid()), None)

    def raised(self, key: Any) -> bool:
        """Note that a recorded call has raised; return whether calls of its key do so as a rule."""
        if len(self._errors) >= _MOST:
            self._errors.clear()
        count = self._errors[key] = self._errors.get(key, 0) + 1
        return count >= _ERRORS

    def returned(self, key: Any) -> None:
        """Note that a recorded call has returned: an error before was of that call alone."""
        self._errors.pop(key, None)
