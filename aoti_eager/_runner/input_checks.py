"""Have AOTInductor's libraries check the inputs of each run.

Each library has these checks in its code, and reads the environment variable
``AOTI_RUNTIME_CHECK_INPUTS`` once, in its first run. The variable is set during that run only: set
for the rest of the process, it would change what libraries do that are not ours.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from ..errors import LibraryRunError
from .abi import KernelLibrary

_VARIABLE = "AOTI_RUNTIME_CHECK_INPUTS"

# Held during a first run. Re-entrant: an op inside of the run may run another library.
_lock = threading.RLock()
# Libraries that have run with the variable set, as device and inode.
_settled: set[tuple[int, int]] = set()


def is_settled(library: KernelLibrary) -> bool:
    """Return whether the library has had its first run in this process, under ``first_run``."""
    return library.identity in _settled


@contextlib.contextmanager
def first_run(library: KernelLibrary) -> Iterator[None]:
    """Switch on a library's checks: a context for the library's first run in this process.

    A library that ran before without it (torch's own loader ran it, say) keeps its checks off.
    """
    with _lock:
        before = os.environ.get(_VARIABLE, "0")
        # Reset afterwards, not removed: adding a variable moves the table of variables, which
        # getenv reads without a lock in other threads. So the variable is added only once.
        os.environ[_VARIABLE] = "1"
        try:
            yield
        except LibraryRunError:
            _settled.add(library.identity)
            raise
        else:
            _settled.add(library.identity)
        finally:
            # Not settled after any other exception: the library's run may not have begun.
            os.environ[_VARIABLE] = before


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
