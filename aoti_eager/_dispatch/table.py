"""The in-memory table of one op for one cache directory, with its twin in C++.

The dicts decide. The C++ table holds the part of them that C++ can serve: it may lack some of their
entries, but has no others. A lock keeps writers apart. Readers take no lock: in Python because a
lookup in a dict is one step, in C++ by epochs (``_native/csrc/epochs.h``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from .._native.table import NativeTable
from .kernel import Kernel
from .key_state import COMPARING, COMPILING, QUEUED, STATES, Decline, Progress
from .native_twin import NativeTwin
from .specialisations import Specialisations

TableKey = tuple[Any, ...]

# How many keys are remembered as declined at most.
DECLINES_LIMIT = 1 << 16
# How many keys have a kernel at most; beyond it, keys that share a dynamic kernel are forgotten,
# and found again.
KERNELS_LIMIT = 1 << 12


_close_observers: list[Callable[[], None]] = []


def on_close(observer: Callable[[], None]) -> None:
    """Call ``observer`` after tables were closed."""
    _close_observers.append(observer)


def tell_of_closed() -> None:
    """Have all that belongs to closed tables released; not to be called under a table's lock."""
    for observer in _close_observers:
        observer()


class NextCall(Protocol):
    """What takes the next call of a key: a library to be compared, or a rare key to be timed."""

    def serve(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the call's result, and decide on the key, or leave that to a later call."""


class Table:
    """The decisions about the keys of one op.

    Attributes:
        kernel: Returns the kernel of a key, or ``None``; called on the hit path.
        candidates: What takes the next call of its key: libraries to be compared, rare keys to be
            timed.
        awaited: Keys whose kernels are being made while their calls wait (mode ``sync``).
        compiling: How many keys are with the compile workers.
        lost: How many keys have a kernel that does not pay off, or could not be given one.
        dynamic: The op's dynamic specialisations.
        closed: Whether the table is out of use: nothing is looked up or kept in it.
        goes_on: Whether the keys of the op that earlier processes wanted have been looked at.

    More than 12 methods, because each kind of change is one step under the lock.
    """

    def __init__(self) -> None:
        self.kernels: dict[TableKey, Kernel] = {}
        self.declines: dict[TableKey, Decline] = {}
        # Bound once: looking the method up on every call costs as much as the lookup.
        self.kernel: Callable[[TableKey], Kernel | None] = self.kernels.get
        self._twin = NativeTwin()
        self.candidates: dict[TableKey, NextCall] = {}
        self.awaited: dict[TableKey, Progress] = {}
        self.compiling = 0
        self.lost = 0
        self.closed = False
        self.goes_on = False
        self._listener: Callable[[], None] | None = None
        self.dynamic = Specialisations()
        self._lock = threading.RLock()

    @property
    def native(self) -> NativeTable | None:
        """Return the C++ table, once ``attach`` was called."""
        return self._twin.table

    @property
    def static_count(self) -> int:
        """Return how many keys have a kernel, used or not, or are getting one."""
        static = sum(not kernel.is_dynamic for kernel in self.kernels.values())
        return static + self.compiling + self.lost

    def state(self, key: TableKey, decline: Decline) -> str | None:
        """Return the state of a key that has no kernel yet; ``None`` if it was decided on."""
        if decline.reason != COMPILING:
            return None
        if key in self.candidates:
            return COMPARING
        return QUEUED if decline.progress is None else decline.progress.state

    def unfinished(self) -> dict[str, int]:
        """Return how many keys have no decision yet, by state."""
        counts = dict.fromkeys(STATES, 0)
        for progress in list(self.awaited.values()):
            counts[progress.state] += 1
        for key, decline in list(self.declines.items()):
            state = self.state(key, decline)
            if state is not None:
                counts[state] += 1
        return {state: count for state, count in counts.items() if count}

    def progresses(self) -> list[Progress]:
        """Return the progress of each key that a kernel is being made for."""
        queued = [one.progress for one in list(self.declines.values()) if one.reason == COMPILING]
        return [*self.awaited.values(), *(one for one in queued if one is not None)]

    def steps(self) -> tuple[str, ...]:
        """Return the steps that workers are in with kernels of these keys, in words."""
        return tuple(step for progress in self.progresses() if (step := progress.step))

    def attach(self) -> NativeTable:
        """Return the C++ twin, made and filled by the first call; the hit path must be loaded."""
        with self._lock:
            if self._twin.table is None:
                self._twin.table = NativeTable()
                for kernel in self.kernels.values():
                    self._twin.put(kernel)
                for key, decline in self.declines.items():
                    # Not for a key with a candidate: Python must see its next call, and C++ would
                    # run the original.
                    if key not in self.candidates:
                        self._twin.decline(decline)
            return self._twin.table

    def tell(self, listener: Callable[[], None] | None) -> None:
        """Call ``listener`` for every decision that is taken back, and for new libraries.

        ``None`` for no listener: when this returns, the former listener is not called any more.
        """
        with self._lock:
            self._listener = listener

    def put(self, key: TableKey, kernel: Kernel) -> None:
        """Serve calls of ``key`` by ``kernel`` from now on."""
        with self._lock:
            if self.closed:
                return
            if len(self.kernels) >= KERNELS_LIMIT:
                self.drop_kernels(lambda one: one.is_dynamic)
            self._twin.leave_pattern(self.kernels.get(key), kernel)
            self.kernels[key] = kernel
            self._undecline(key)
            self._twin.put(kernel)

    def offer(self, key: TableKey, taker: NextCall) -> None:
        """Have ``taker`` take the next call of ``key``; calls beside it run the original."""
        with self._lock:
            decline = self.declines.get(key)
            if self.closed or decline is None or not decline.is_undecided:
                return  # Something else was decided meanwhile.
            self.candidates[key] = taker
            if self._twin.table is not None and decline.words is not None:
                self._twin.table.remove(decline.words)
            self._tell()

    def drop_kernels(self, which: Callable[[Kernel], bool]) -> None:
        """Remove the kernels for which ``which`` is true; their keys are decided on again."""
        with self._lock:
            for key, kernel in list(self.kernels.items()):
                if which(kernel):
                    self._twin.remove(kernel)
                    del self.kernels[key]
                    self._tell()

    def leave_dynamic(self) -> None:
        """Decide again on the keys that dynamic specialisations serve, or were to serve."""
        with self._lock:
            self.drop_kernels(lambda kernel: kernel.is_dynamic)
            for key, decline in list(self.declines.items()):
                if decline.is_dynamic:
                    self.forget_decline(key)

    def distrust(self, digest: str) -> None:
        """Serve no more calls by the dynamic specialisation whose pattern has this digest."""
        # Not under the table's lock: ``Specialisations`` takes the table's lock after its own.
        self.dynamic.kernels.distrust(digest)
        with self._lock:
            # All dynamic kernels: the next calls find those of other specialisations again.
            self.drop_kernels(lambda kernel: kernel.is_dynamic)

    def decline(self, key: TableKey, decline: Decline) -> None:
        """Keep the original for calls of ``key`` from now on."""
        with self._lock:
            if self.closed:
                return
            if len(self.declines) >= DECLINES_LIMIT:
                self._forget_declines()  # Bounds memory: declines are found out again.
            self._twin.leave_pattern(self.kernels.get(key), decline)
            kernel = self.kernels.get(key)
            if kernel is not None:
                # Before Python removes it: a call that finds no kernel in Python must not be served
                # by C++.
                self._twin.remove(kernel)
            lost = self.kernels.pop(key, None) is not None
            self._undecline(key)
            self.declines[key] = decline
            if lost:
                self._tell()
            self._count(decline, 1)
            self._twin.decline(decline)

    def forget_declines(self, reason: str) -> None:
        """Let the keys declined for ``reason`` be decided on again."""
        if not self.declines:
            return
        with self._lock:
            for key, decline in list(self.declines.items()):
                if decline.reason == reason:
                    self.forget_decline(key)

    def forget_decline(self, key: TableKey) -> None:
        """Let one key be decided on again."""
        with self._lock:
            decline = self.declines.get(key)
            self._undecline(key)
            if decline is not None:
                self._twin.remove(decline)

    def clear(self) -> None:
        """Release all libraries; a call that is inside of a library ends undisturbed."""
        with self._lock:
            if self._twin.table is not None:
                self._twin.table.clear()
            self.kernels.clear()
            self.declines.clear()
            self.candidates.clear()
            self.compiling = self.lost = 0
            self.dynamic = Specialisations()
            self._tell()

    def close(self) -> None:
        """Release all libraries for good; no op may look into the C++ table any more."""
        with self._lock:
            self.clear()
            self.closed = True  # Kernels that workers still bring are dropped.
            native, self._twin.table = self._twin.table, None
            if native is not None:
                native.close()

    def after_fork(self) -> None:
        """Let go of a lock that a thread of the parent may have held."""
        self._lock = threading.RLock()
        self.dynamic.after_fork()

    def _undecline(self, key: TableKey) -> None:
        decline = self.declines.pop(key, None)
        self.candidates.pop(key, None)
        if decline is not None:
            self._count(decline, -1)
            self._tell()

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener()

    def _count(self, decline: Decline, change: int) -> None:
        if not decline.is_dynamic:
            self.compiling += change * (decline.reason == COMPILING)
            self.lost += change * decline.is_lost

    def _forget_declines(self) -> None:
        self.declines.clear()
        self.candidates.clear()
        self.compiling = self.lost = 0
        if self._twin.table is not None:
            # All at once: removing them one by one would stall the call that came to the limit.
            self._twin.table.clear()
            for kernel in self.kernels.values():
                self._twin.put(kernel)
        self._tell()
