"""Whether calls may be served with the torch at hand: it was checked, or a self-test has passed.

Every kernel of ours asks here: kernel caches when they are made and refreshed, regions when their
settings are read. ``untested_torch`` has the self-test; a torch that was checked never imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from .._base import checked_torch as checked

# The decline reason of calls that are not served for this.
REASON = "untested_torch"

_observers: list[Callable[[], None]] = []


def may_serve() -> bool:
    """Return whether calls may be served; start the self-test, or in mode ``sync`` wait for it.

    What puts kernels into the dispatcher, or has modules fused, calls this first.
    """
    if checked.is_checked():
        return True
    return bool(_tests().may_serve())


def is_refused() -> bool:
    """Return whether no call may be served at this moment; nothing is started or warned of."""
    if checked.is_checked():
        return False
    return bool(_tests().is_refused())


def may_use_native() -> bool:
    """Return whether the C++ hit path may be loaded: of a torch that was not checked, if tested."""
    if checked.is_checked():
        return True
    return bool(_tests().may_use_native())


def wait(timeout_s: float | None = None) -> bool:
    """Wait for a self-test that runs beside the script; return whether none is running."""
    if checked.is_checked():
        return True
    return bool(_tests().wait(timeout_s))


def on_change(observer: Callable[[], None]) -> None:
    """Call ``observer`` whenever a self-test changes the answer, on any thread."""
    _observers.append(observer)


def _tests() -> ModuleType:
    # Only here: a torch that was checked needs no self-test.
    from . import untested_torch

    untested_torch.observers = _observers
    return untested_torch
