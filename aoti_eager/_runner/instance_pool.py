"""A pool of model instances: borrow one, give it back, or have all of them at once.

Both kinds of request are served in the order in which they come. So calls that keep coming do not
starve a swap of constants, and swaps do not starve calls. (The lock in AOTInductor's own container
prefers readers, so a swap can starve there.)

Runs in C++ take instances by themselves, as long as nobody waits: see ``lend_to_native``.

Ctrl-C may come between any two steps of the main thread. So the caller first makes a ``Lease``,
which records what a thread holds, and may give a lease back at any moment and any number of times.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from threading import get_ident

from .._native.runner import FREE, Cells
from ..errors import RunnerError


class Lease:
    """One thread's claim on an instance, or on all of them: not made, waiting, granted or over."""

    __slots__ = ("granted", "ident", "instance", "turn", "wants_all")

    def __init__(self, wants_all: bool = False) -> None:
        self.ident = get_ident()
        self.wants_all = wants_all
        self.granted = False
        self.instance = -1
        self.turn: threading.Lock | None = None  # if the lease waits: held until it is granted


class InstancePool:
    """``count`` instances, numbered from 0.

    A thread that holds an instance never waits for another one: it could be waiting for itself.

    Attributes:
        count: As given.
        cells: Whose each instance is, as ``NativeRunner`` reads it.
        is_lending: Whether C++ may take free instances at this moment.

    More than 12 methods, because threads and C++ take the same instances, under one lock.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._forked = False
        self.cells: Cells = (ctypes.c_int64 * (count + 1))()
        self._reset()
        _pools.add(self)

        self._may_lend: Callable[[], bool] | None = None

    def _reset(self) -> None:
        # Re-entrant: a signal handler may run the library.
        self._lock = threading.RLock()
        self._available = deque(range(self.count))
        self._holders: list[Lease | None] = [None] * self.count
        self._waiters: deque[Lease] = deque()
        ctypes.memset(self.cells, 0, ctypes.sizeof(self.cells))
        self.is_lending = False

    @property
    def available(self) -> int:
        """Return how many instances are free at this moment."""
        return len(self._available) + self.cells[: self.count].count(FREE)

    def borrow(self, lease: Lease) -> int:
        """Return a free instance, the one that was given back longest ago; wait if there is none.

        The caller must give ``lease`` back, also when this method raises.

        Raises:
            RunnerError: This thread already holds an instance (a signal handler or an op inside of
                a run runs the same library), and no instance is free. Or this process was forked
                during runs.
        """
        with self._lock:
            self._recall()
            if self._available and not self._waiters:
                self._take(lease)
                self._lend()
                return lease.instance
            self._refuse_after_fork()
            if self._holds(lease.ident):
                if not self._available:
                    raise RunnerError(
                        f"{self._name}: a run inside of a run of this thread needs another "
                        f"instance, and all {self.count} are in use; load the library with a "
                        "larger num_models"
                    )
                self._take(lease)
                return lease.instance
            turn = self._enqueue(lease)
            # Once more: before there was a waiter, a signal handler's run may have lent instances.
            self._recall()
            self._grant()
        turn.acquire()
        return lease.instance

    def give_back(self, lease: Lease) -> None:
        """Free what ``lease`` holds; if the lease still waits, remove it from the queue.

        A second call does nothing, so the caller may call again if the first call was interrupted.
        """
        with self._lock:
            if not lease.wants_all:
                instance = lease.instance
                if instance >= 0 and self._holders[instance] is lease:
                    self._holders[instance] = None
                    self._available.append(instance)
            elif self._holders[0] is lease:
                available = deque(range(self.count))
                self._holders, self._available = [None] * self.count, available
            if self._waiters:
                if lease in self._waiters:
                    self._waiters.remove(lease)
                self._grant()
            self._lend()

    def lend_to_native(self, may_lend: Callable[[], bool]) -> None:
        """Let C++ take free instances as long as nobody waits, from the next lease's end on.

        Args:
            may_lend: Whether C++ may run instances at this moment. It may turn false only while
                somebody has all instances.
        """
        self._may_lend = may_lend

    def stop_lending(self) -> None:
        """Keep all instances from C++ from now on; none may run there."""
        with self._lock:
            self._recall()
            self._may_lend = None

    def collect(self) -> None:
        """Take over what C++ has given back: to be called after each run in C++ if not lending.

        A run that ends while C++ may take no instance leaves its instance to somebody who waits.
        """
        with self._lock:
            self._recall()
            self._grant()
            self._lend()

    @contextlib.contextmanager
    def all_instances(self) -> Iterator[None]:
        """Wait until all runs that began before have ended, and keep later ones waiting.

        Raises:
            RunnerError: This thread is inside of a run, or this process was forked during runs.
        """
        lease = Lease(wants_all=True)
        try:
            try:
                with self._lock:
                    self._refuse_after_fork()
                    self.refuse_inside_of_a_run()
                    turn = self._enqueue(lease)
                    self._recall()  # Nobody lends an instance while somebody waits.
                    self._grant()
                turn.acquire()
                yield
            finally:
                self.give_back(lease)
        except BaseException:
            self.give_back(lease)  # Ctrl-C may have come while the lease was given back.
            raise

    def refuse_inside_of_a_run(self) -> None:
        """Raise if this thread holds an instance.

        To wait could be a deadlock: the thread that it waits for may wait for that instance.

        Raises:
            RunnerError: This thread holds an instance.
        """
        with self._lock:
            inside = self._holds(get_ident())
        if inside:
            raise RunnerError(
                f"{self._name}: inside of a run its thread can neither read nor change constants, "
                "nor close the runner"
            )

    def _holds(self, ident: int) -> bool:
        if any(holder is not None and holder.ident == ident for holder in self._holders):
            return True
        return ident in self.cells[: self.count]

    def _refuse_after_fork(self) -> None:
        if self._forked:
            raise RunnerError(
                f"{self._name}: this process was forked while another thread ran the library or "
                "changed its constants, and locks inside of it stay held; load it again here"
            )

    def _recall(self) -> None:
        """Keep C++ from taking instances, and take back those that are free; the lock is held."""
        if self._may_lend is None:
            return
        self.is_lending = False
        self.cells[self.count] = 0
        for instance in range(self.count):
            if self.cells[instance] == FREE:
                # No call between these steps, as in ``_take``.
                self.cells[instance] = 0
                self._available.append(instance)
        if self._forked:
            self._available.clear()

    def _lend(self) -> None:
        """Leave the free instances to C++, if it may take any; the lock is held."""
        if self._may_lend is None or self._waiters or self._forked or not self._may_lend():
            return
        while self._available:
            # No call between these steps, as in ``_take``.
            self.cells[self._available[0]] = FREE
            del self._available[0]
        self.is_lending = True
        self.cells[self.count] = 1

    def _enqueue(self, lease: Lease) -> threading.Lock:
        turn = threading.Lock()
        turn.acquire()
        lease.turn = turn
        self._waiters.append(lease)
        return turn

    def _take(self, lease: Lease) -> None:
        # No call between these steps, so no signal handler runs between them. A handler that raised
        # after the first step would leave an instance that is both free and held.
        instance = self._available[0]
        lease.instance = instance
        self._holders[instance] = lease
        del self._available[0]
        lease.granted = True

    def _grant(self) -> None:
        """Grant waiting leases in their order, as far as instances are free; the lock is held.

        Continues where an interrupted call stopped.
        """
        while self._waiters:
            lease = self._waiters[0]
            if not lease.granted:
                if lease.wants_all:
                    if len(self._available) < self.count:
                        return
                    available: deque[int] = deque()
                    self._holders, self._available = [lease] * self.count, available
                    lease.granted = True
                elif not self._available:
                    return
                else:
                    self._take(lease)
            if lease.turn is not None and lease.turn.locked():
                lease.turn.release()
            if self._waiters and self._waiters[0] is lease:
                self._waiters.popleft()


_pools: weakref.WeakSet[InstancePool] = weakref.WeakSet()


def _after_fork() -> None:
    # The threads that held instances, or waited, do not exist in this process.
    for pool in list(_pools):
        in_python = any(holder is not None for holder in pool._holders)
        in_cpp = any(cell > 0 for cell in pool.cells[: pool.count])
        pool._forked = pool._forked or in_python or in_cpp
        pool._reset()
        if pool._forked:
            pool._available.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
