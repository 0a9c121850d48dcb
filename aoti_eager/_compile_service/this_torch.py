"""Whether calls may be served with the torch at hand: it was checked, or a self-test has passed.

Every kernel of ours asks here: kernel caches when they are made and refreshed, regions when their
settings are read. ``untested_torch`` has the self-test; a torch that was checked never imports it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import ModuleType

from .._base import checked_torch as checked
from ..config import config
from ..errors import ConfigError

# The decline reason of calls that are not served for this.
REASON = "untested_torch"

# Whether somebody has asked to be served.
_is_wanted = False
# Another object after each change of what the answer depends on; what ``is_refused`` found, and the
# object of that time. No count: two threads may change it at once.
_state = object()
_refused: tuple[object, bool] = (None, True)


def _forget() -> None:
    global _state
    _state = object()


_observers: list[Callable[[], None]] = [_forget]


def may_serve() -> bool:
    """Return whether calls may be served; start the self-test, or in mode ``sync`` wait for it.

    What puts kernels into the dispatcher, or has modules fused, calls this first, and holds no lock
    that a kernel's ``refresh`` takes: all kernels are refreshed when the answer changes.
    """
    global _is_wanted
    if checked.is_checked():
        return True
    _forget()  # A variable, or the programs on PATH, may have changed.
    _is_wanted = True
    return bool(_tests().may_serve())


def is_refused() -> bool:
    """Return whether no call may be served at this moment; nobody is told, nothing is started.

    Looked up once after each change of a setting, because each kernel asks, under its lock.
    """
    global _refused
    if checked.is_checked():
        return False
    state, found = _state, _refused
    if found[0] is not state:
        # With the object from before: an answer that a change has overtaken is not used again.
        _refused = found = state, bool(_tests().is_refused())
    return found[1]


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


def _settings_changed() -> None:
    """Start the self-test that is wanted, if the settings before allowed none, or another."""
    _forget()
    if _is_wanted and not checked.is_checked():
        # The next ``register`` says what is wrong with a variable or the config file.
        with contextlib.suppress(ConfigError):
            _tests().start_if_missing()


def _tests() -> ModuleType:
    # Only here: a torch that was checked needs no self-test.
    from . import untested_torch

    untested_torch.observers = _observers
    return untested_torch


# Before the kernels and regions that ask: they import this module.
config.on_change(_settings_changed)
