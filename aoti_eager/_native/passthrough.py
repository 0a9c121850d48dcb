"""Marks threads that do this package's own work, so that ops run their originals there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from threading import get_ident

from .._base.torch_compat.tensors import DisableTorchFunctionSubclass
from . import library as native_library
from . import op_kernel

# Thread idents. A set and not a threading.local: every dispatched call looks here, and nothing is
# cheaper than to see that a set is empty.
passing: set[int] = set()


@contextlib.contextmanager
def passthrough() -> Iterator[None]:
    """Run originals for every registered op that this thread calls in the ``with`` block.

    In the block, Tensor subclasses count as plain tensors: their ``__torch_function__`` is not
    called.
    """
    ident = get_ident()
    if ident in passing:
        yield
        return
    passing.add(ident)
    # Asked once: the hit path may be loaded while the block runs, and would then only be told -1.
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
