"""Which threads are inside our own work, so that registered ops run their originals there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from threading import get_ident

from .._base.torch_compat.tensors import DisableTorchFunctionSubclass
from . import library as native_library
from . import op_kernel

# Thread idents. A set and not a threading.local: every dispatched call asks, and an empty set is
# the cheapest question there is.
passing: set[int] = set()


@contextlib.contextmanager
def passthrough() -> Iterator[None]:
    """Run originals for every registered op that this thread calls in the ``with`` block.

    Tensor subclasses count as plain tensors in it: their ``__torch_function__`` is not called.
    """
    ident = get_ident()
    if ident in passing:
        yield
        return
    passing.add(ident)
    # It may be loaded in the block, for a thread that did not enter.
    native = native_library.is_loaded()
    if native:
        op_kernel.add_passing(1)
    try:
        with DisableTorchFunctionSubclass():
            yield
    finally:
        if native:
            op_kernel.add_passing(-1)
        passing.discard(ident)
