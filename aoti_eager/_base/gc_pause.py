"""No garbage collection while this package imports modules of its own; imported first.

An import makes no garbage, but enough objects to set off a full collection, which looks at each of
the half million objects that torch has: 50 ms, as long as all of the import.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Return a context without collections; at its end, also by an error, all is as it was."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
