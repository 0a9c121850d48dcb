"""What this thread is in the middle of, asked of C++ in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

from .library import functions
from .runner import can_run, new_function

# Returns ``None`` if this thread records, traces, autocasts, differentiates forward, or is under a
# mode of torch's or functorch's; else whether gradients are switched off. Dynamo's traces are not
# seen.
ThreadState = Callable[[], bool | None]


def native_thread_state() -> ThreadState | None:
    """Return the function of C++; ``None`` if C++ is not loaded, or cannot give Python's values."""
    return _function() if can_run() else None


@functools.cache
def _function() -> ThreadState:
    return cast(ThreadState, new_function(functions().ae_thread_state_function(), None, None))
