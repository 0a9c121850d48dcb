"""A pool of model instances: borrow one, give it back, or have all of them at once.

First come, first served, for both: a swap of constants is not starved by calls that keep coming
(the lock in AOTInductor's own container prefers readers, and can be), nor they by it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from threading import get_ident

from .errors import RunnerError


class _Waiter:
    __slots__ = ("granted", "instances", "lock", "wants_all")

    def __init__(self, wants_all: bool) -> None:
        self.wants_all = wants_all
        self.granted = False
        self.instances: list[int] = []
        self.lock = threading.Lock()
        self.lock.acquire()


class InstancePool:
    """``count`` instances, numbered from 0.

    A thread that holds an instance never waits for another one: what it waited for could be itself.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._available = deque(range(self.count))
        self._waiters: deque[_Waiter] = deque()
        self._held: dict[int, int] = {}  # thread -> how many it holds

    @property
    def available(self) -> int:
        """Return how many instances are free at this moment."""
        return len(self._available)

    def borrow(self) -> int:
        """Return a free instance, the one that was given back longest ago; wait if there is none.

        Raises:
            RunnerError: This thread holds one already (a signal handler or an op inside of a run
                runs the same library), and none is free.
        """
        ident = get_ident()
        with self._lock:
            holds = ident in self._held
            if self._available and (holds or not self._waiters):
                self._held[ident] = self._held.get(ident, 0) + 1
                return self._available.popleft()
            if holds:
                raise RunnerError(
                    f"{self._name}: a run inside of a run of this thread needs another instance, "
                    f"and all {self.count} are in use; load the library with a larger num_models"
                )
            waiter = _Waiter(wants_all=False)
            self._waiters.append(waiter)
        self._wait(waiter)
        with self._lock:
            self._held[ident] = self._held.get(ident, 0) + 1
        return waiter.instances[0]

    def give_back(self, instance: int) -> None:
        """Make a borrowed instance free again; to be called by the thread that borrowed it."""
        with self._lock:
            self._forget_holder()
            self._available.append(instance)
            if self._waiters:
                self._grant()

    @contextlib.contextmanager
    def all_instances(self) -> Iterator[None]:
        """Wait until all runs that began before have ended, and keep later ones waiting.

        Raises:
            RunnerError: This thread is inside of a run.
        """
        ident = get_ident()
        with self._lock:
            if ident in self._held:
                raise RunnerError(
                    f"{self._name}: constants cannot change inside of a run of the same thread"
                )
            waiter = _Waiter(wants_all=True)
            self._waiters.append(waiter)
            self._grant()
        self._wait(waiter)
        with self._lock:
            self._held[ident] = self._held.get(ident, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._forget_holder()
                self._available.extend(waiter.instances)
                self._grant()

    def _forget_holder(self) -> None:
        ident = get_ident()
        left = self._held.get(ident, 0) - 1
        if left > 0:
            self._held[ident] = left
        else:
            self._held.pop(ident, None)

    def _grant(self) -> None:
        """Give what is free to those who wait, in their order; the lock is held."""
        while self._waiters:
            waiter = self._waiters[0]
            wanted = self.count if waiter.wants_all else 1
            if len(self._available) < wanted:
                return
            self._waiters.popleft()
            waiter.instances = [self._available.popleft() for _ in range(wanted)]
            waiter.granted = True
            waiter.lock.release()

    def _wait(self, waiter: _Waiter) -> None:
        try:
            waiter.lock.acquire()
        except BaseException:
            # Ctrl-C: nothing may be lost, and nobody may wait behind one who has left.
            with self._lock:
                if waiter.granted:
                    self._available.extend(waiter.instances)
                else:
                    self._waiters.remove(waiter)
                self._grant()
            raise


_pools: weakref.WeakSet[InstancePool] = weakref.WeakSet()


def _after_fork() -> None:
    # The threads that held instances, or waited, are not in this process.
    for pool in list(_pools):
        pool._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
