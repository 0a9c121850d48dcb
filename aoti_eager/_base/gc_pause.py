"""Pauses garbage collection while this package imports its own modules; imported first.

An import makes no garbage, but enough objects to trigger a full collection. That collection looks
at each of torch's half million objects: 50 ms, as long as the whole import.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Return a context without garbage collection; the previous state returns, even on errors."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
