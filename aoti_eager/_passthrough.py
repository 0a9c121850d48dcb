"""Which threads are inside our own work, so that registered ops run their originals there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from threading import get_ident

# Thread idents. A set and not a threading.local: every dispatched call asks, and an empty set is
# the cheapest question there is.
passing: set[int] = set()


@contextlib.contextmanager
def passthrough() -> Iterator[None]:
    """Run originals for every registered op that this thread calls in the ``with`` block."""
    ident = get_ident()
    if ident in passing:
        yield
        return
    passing.add(ident)
    try:
        yield
    finally:
        passing.discard(ident)
