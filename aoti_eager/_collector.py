"""No garbage collection while this package is imported; imported first.

An import makes no garbage, but enough objects to set off a full collection, which looks at each of
the half million objects that torch has: 50 ms, as long as all of the import.
"""

from __future__ import annotations

import gc

_was_enabled = gc.isenabled()
gc.disable()


def resume() -> None:
    """Collect again, if that was on; at the end of the import."""
    if _was_enabled:
        gc.enable()
