"""Which calls of a region are not served, and when they are recorded once more.

A region whose calls are not served costs less and less: first a key and a look into a dict, then
one to three microseconds, where a mode is given up or nothing can be served at the moment, and
nothing at all where nothing can ever be gained.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import torch

from ..errors import RegionStoppedError
from .recorded_call import recording_threads
from .stop import HOPELESS, MAY_GO, OF_THE_MOMENT, Stop
from .target import Target
from .waiting import Waiting

# After so many calls that were not served, a mode without a library is given up: by the reason that
# gives most hope.
_WITHOUT_HOPE, _LASTING, _MAY_GO = 16, 100, 1000
# So many keys are remembered as stopped, and so many of them are recorded at most.
_MOST_KEYS = 64
# The number of the first call of a stopped kind that is recorded once more.
_FIRST_AGAIN = 64
# The number of the first call of a mode that was given up which is looked at, and how many calls
# are looked at then.
_FIRST_LOOK, _LOOKS = 1024, 8
# A module with this reason has children that are not tried yet.
_ELSEWHERE = "unsupported_device"


class StoppedKind:
    """Why the calls of a key, or of a variant, are not served.

    Attributes:
        stop: The reason.
        calls: How many calls were not served.
        due: The number of the call that is recorded once more: a hook may be gone.
    """

    __slots__ = ("calls", "due", "stop")

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.calls = 0
        self.due = _FIRST_AGAIN

    @property
    def may_go(self) -> bool:
        """Return whether the reason may go away while the code stays what it is."""
        return self.stop.reason in MAY_GO or self.stop.reason in OF_THE_MOMENT


class _Mode:
    """The calls of one mode of a module (``training``) that were not served.

    Attributes:
        kinds: Why they were not.
        calls: How many there were.
        limit: After how many of them the mode is given up.
        looks_at: The number of the first call that is looked at after that.
    """

    __slots__ = ("calls", "kinds", "limit", "looks_at")

    def __init__(self) -> None:
        self.kinds: list[StoppedKind] = []
        self.calls = 0
        self.limit = _WITHOUT_HOPE
        self.looks_at = _FIRST_LOOK

    def add(self, kind: StoppedKind) -> None:
        """Take a kind of calls into account."""
        if len(self.kinds) < _MOST_KEYS and kind not in self.kinds:
            self.kinds.append(kind)
        self.limit = max(self.limit, _limit(kind))


def _limit(kind: StoppedKind) -> int:
    if kind.stop.reason in HOPELESS:
        return _WITHOUT_HOPE
    return _MAY_GO if kind.may_go else _LASTING


def _nothing() -> None:
    pass


class StoppedCalls:
    """The calls of one region that are not served.

    Args:
        target: The region's target.
        path: The region's path in the fused model.
        strict: Whether the first stop in a mode raises.

    Attributes:
        first: The first stop in each mode of the module (``training``).
        by_key: The keys that are not served.
        given_up: The modes in which all calls pass. Who calls a region asks ``passes_unseen``
            first, or does as that does: each function costs a small model a hundredth of its time.
        passed_by: How many calls have passed before they came to the region.
        waiting: While no call can be served: when a call looks whether that has changed.
        rests_with_gradients: Whether ``waiting`` is for calls with gradients alone.
        has_hope: Says whether a library serves, or may serve, calls of a mode.
        on_first: Called at the first stop in a mode: the module's children are tried.
        on_hopeless: Called where no call of any mode can gain anything.

    More than 12 methods, because keys, variants and modes are stopped and counted together.
    """

    def __init__(self, target: Target, path: str, *, strict: bool) -> None:
        self.first: dict[bool | None, Stop] = {}
        self.by_key: dict[Any, StoppedKind] = {}
        self.given_up: dict[bool | None, _Mode] = {}
        self.passed_by = 0
        self.waiting: Waiting | None = None
        self.rests_with_gradients = False
        self.has_hope: Callable[[bool | None], bool] = lambda training: False
        self.on_first: Callable[[], None] = _nothing
        self.on_hopeless: Callable[[], None] = _nothing
        self._target, self._path, self._strict = target, path, strict
        self._modes: dict[bool | None, _Mode] = {}
        self._more: StoppedKind | None = None  # all keys beyond those that are remembered
        # Of variants that are recorded anew, by their keys: their counts go on.
        self._kept: dict[Any, StoppedKind] = {}

    def passes_unseen(self, training: bool | None) -> bool:
        """Return whether a call runs as it is, whatever it is; count the call if it does."""
        mode = self.given_up.get(training)
        if mode is not None:
            mode.calls += 1
            if mode.calls < mode.looks_at:
                self.passed_by += 1
                return True
            self._look_again(mode, training)
        waiting = self.waiting
        # A recording would see that somebody reads a clock.
        if waiting is None or recording_threads:
            return False
        if self.rests_with_gradients and not torch.is_grad_enabled():
            return False
        if waiting.clock() >= waiting.until_ns:
            self.waiting = None
            return False
        self.passed_by += 1
        return True

    def rest(self, waiting: Waiting, *, with_gradients: bool = False) -> None:
        """Have all calls pass for a while, or those with gradients alone."""
        waiting.rest()
        self.rests_with_gradients = with_gradients
        self.waiting = waiting

    def passes(self, key: Any) -> bool:
        """Return whether a call runs as it is, as its key is known not to be served; count it."""
        kind = self.by_key.get(key)
        if kind is None:
            kind = self._more if len(self.by_key) >= _MOST_KEYS else None
        return kind is not None and not self.is_due(kind)

    def is_due(self, kind: StoppedKind) -> bool:
        """Count a call that is not served, and return whether it is recorded once more."""
        training = self._target.training
        mode = self._modes.get(training)
        kind.calls += 1
        if mode is not None:
            mode.calls += 1
            if mode.calls >= mode.limit:
                self._give_up(mode, training)
        if kind.calls < kind.due:
            return False
        kind.due *= 4
        return True

    def pass_or_stop(self, key: Any, stop: Stop) -> None:
        """Count a call that can have no library; see ``passes`` and ``stop``."""
        if key not in self.by_key:
            self.stop(key, stop)
        self.passes(key)

    def stop(self, key: Any, stop: Stop) -> None:
        """Serve no calls of a key, but try again after some calls.

        Raises:
            RegionStoppedError: The region is strict.
        """
        with _lock:
            kind = self.by_key.get(key)
            if kind is not None:
                kind.stop = stop
            elif len(self.by_key) < _MOST_KEYS:
                kind = self._kept.pop(key, None) or StoppedKind(stop)
                kind.stop = stop
                self.by_key[key] = kind
            elif self._more is None:
                kind = self._more = StoppedKind(stop)
            else:
                kind = self._more
            self._mode().add(kind)
        self.note(stop)

    def stopped(self, key: Any, stop: Stop) -> StoppedKind:
        """Return the calls of a variant that is not served from now on; its key may have others."""
        with _lock:
            kind = self._kept.pop(key, None) or StoppedKind(stop)
            kind.stop = stop
            self._mode().add(kind)
        return kind

    def keep(self, key: Any, kind: StoppedKind) -> None:
        """Go on with the count of a variant that is recorded anew, if it stops once more."""
        self._kept[key] = kind

    def note(self, stop: Stop) -> None:
        """Have the children tried, if this is the first stop in the present mode.

        Raises:
            RegionStoppedError: The region is strict.
        """
        with _lock:
            before = self.first.get(self._target.training)
            # A module that stopped on another device may have been moved to this one.
            if before is not None and (before.reason != _ELSEWHERE or stop.reason == _ELSEWHERE):
                return
            self.first[self._target.training] = stop
        self.on_first()
        if self._strict:
            where = self._path or self._target.name
            raise RegionStoppedError(f"fuse: {where} stops ({stop.reason}): {stop}", stop.reason)

    def let_go(self) -> None:
        """Call nobody any more: whoever is called holds the module."""
        self.on_first = self.on_hopeless = _nothing

    def _mode(self) -> _Mode:
        return self._modes.setdefault(self._target.training, _Mode())

    def _give_up(self, mode: _Mode, training: bool | None) -> None:
        """Pass all calls of a mode on from now on, unless a library may serve some of them."""
        if self.has_hope(training):
            mode.limit = mode.calls + _LASTING
            return
        mode.looks_at = max(mode.looks_at, mode.calls + 1)
        self.given_up[training] = mode
        is_hopeless = all(one.limit == _WITHOUT_HOPE for one in list(self._modes.values()))
        if is_hopeless and not any(map(self.has_hope, (True, False))):
            self.on_hopeless()

    def _look_again(self, mode: _Mode, training: bool | None) -> None:
        """Look at some calls of a mode that was given up; record what may be another way by now."""
        with _lock:
            mode.looks_at = 4 * mode.calls
            mode.limit = mode.calls + _LOOKS
            for kind in mode.kinds:
                if kind.may_go:
                    kind.due = kind.calls + 1
            self.given_up.pop(training, None)


# Of all regions, and held for two steps at most.
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
