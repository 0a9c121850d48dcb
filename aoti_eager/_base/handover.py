"""Hands the interpreter to the script between two steps of work beside the script."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from threading import get_ident

_beside: set[int] = set()


@contextlib.contextmanager
def beside_script() -> Iterator[None]:
    """Mark this thread as one of ours, which works beside the script, in the block."""
    ident = get_ident()
    is_first = ident not in _beside
    _beside.add(ident)
    try:
        yield
    finally:
        if is_first:
            _beside.discard(ident)


def let_others_run() -> None:
    """In a thread of ours, let a thread that waits for the interpreter have it.

    A thread that only releases the interpreter, as each system call does, takes it back before the
    waiting thread wakes up; the waiting thread then gets it after the interpreter's switch interval
    (5 ms). So work that a thread of ours may do calls this after each step of at most a
    millisecond. In the script's own threads, in which calls do some of the same work, nothing is
    handed over.
    """
    if get_ident() in _beside:
        time.sleep(0)
