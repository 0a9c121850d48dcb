"""Imports that wait until a call needs them: one thread at a time, and none across a fork.

A module that another thread imports while the process forks is locked in the child for good: its
import there would never return. So a fork waits for imports that are under way.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from . import gc_pause

# Seconds that a fork waits for an import at most: an import that hangs must not stop forks.
_LONGEST_WAIT_S = 5.0

_lock = threading.RLock()
_is_held_for_fork = False


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import modules in the block, without garbage collections."""
    with _lock, gc_pause.paused():
        yield


def _before_fork() -> None:
    global _is_held_for_fork
    _is_held_for_fork = _lock.acquire(timeout=_LONGEST_WAIT_S)


def _after_fork_in_parent() -> None:
    if _is_held_for_fork:
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
