"""Have AOTInductor's libraries check the inputs of each run.

Each library has such checks in its code and asks for the environment variable
``AOTI_RUNTIME_CHECK_INPUTS`` once, in its first run. It is set for that run alone: for the rest of
the process it would change what other libraries do that are not ours.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from ..errors import LibraryRunError
from .abi import KernelLibrary

_VARIABLE = "AOTI_RUNTIME_CHECK_INPUTS"

# Held for the length of a first run. Re-entrant: an op inside of it may run another library.
_lock = threading.RLock()
# Libraries that have run with the variable set, as device and inode.
_settled: set[tuple[int, int]] = set()


def is_settled(library: KernelLibrary) -> bool:
    """Return whether the library has had its first run in this process, under ``first_run``."""
    return library.identity in _settled


@contextlib.contextmanager
def first_run(library: KernelLibrary) -> Iterator[None]:
    """Around the first run of a library in this process: its checks are on from then on.

    A library that ran before without (torch's own loader ran it, say) stays without.
    """
    with _lock:
        before = os.environ.get(_VARIABLE, "0")
        # Not removed afterwards: only the first time does it move the table of variables, which
        # other threads' getenv reads without a lock.
        os.environ[_VARIABLE] = "1"
        try:
            yield
        except LibraryRunError:
            _settled.add(library.identity)
            raise
        else:
            _settled.add(library.identity)
        finally:
            # After any other exception it may not have come to the library's run.
            os.environ[_VARIABLE] = before


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
