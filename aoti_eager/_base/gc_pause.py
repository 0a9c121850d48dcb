"""Pauses garbage collection while this package imports its own modules; imported first.

An import makes no garbage, but enough objects to trigger a full collection. That collection looks
at each of torch's half million objects: 50 ms, as long as the whole import. Nor are the new objects
left to the script's next collections: otherwise the full collection would come a moment later, in a
call of the script's.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Return a context without garbage collection; the previous state returns, even on errors.

    Objects that exist at its end count as objects that have survived collections.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        _make_all_old()
        gc.enable()


def _make_all_old() -> None:
    """Put all objects into the oldest generation, and count new objects from zero.

    Both functions move whole lists of objects: they take no time. A script that has frozen objects
    itself must keep them frozen.
    """
    if not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()
