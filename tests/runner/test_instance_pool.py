"""The pool: who gets an instance, in which order, and that none is lost."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType

import pytest

from aoti_eager._runner.instance_pool import InstancePool, Lease
from aoti_eager.errors import RunnerError

from ..support.runner_libraries import TIMEOUT_S, eventually


class Borrower:
    """A thread that borrows an instance, and keeps it until it is told to give it back."""

    def __init__(self, pool: InstancePool, threads: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._may_end = threading.Event()
        self._borrowed: Future[int] = Future()
        self._ended = threads.submit(self._hold)

    def _hold(self) -> None:
        lease = Lease()
        try:
            self._borrowed.set_result(self._pool.borrow(lease))
            assert self._may_end.wait(TIMEOUT_S)
        finally:
            self._pool.give_back(lease)

    @property
    def waits(self) -> bool:
        """Return whether it has no instance yet."""
        return not self._borrowed.done()

    def instance(self) -> int:
        """Return its instance; wait until it has one."""
        return self._borrowed.result(TIMEOUT_S)

    def end(self) -> None:
        """Have it give its instance back."""
        self._may_end.set()
        self._ended.result(TIMEOUT_S)


class Owner:
    """A thread that takes all instances, and keeps them until it is told to free them."""

    def __init__(self, pool: InstancePool, threads: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._may_end = threading.Event()
        self.has_all = threading.Event()
        self._ended = threads.submit(self._hold)

    def _hold(self) -> None:
        with self._pool.all_instances():
            self.has_all.set()
            assert self._may_end.wait(TIMEOUT_S)

    def end(self) -> None:
        """Have it free them."""
        self._may_end.set()
        self._ended.result(TIMEOUT_S)


def waiting(pool: InstancePool) -> int:
    """Return how many wait."""
    return len(pool._waiters)


def borrow_and_give_back(pool: InstancePool) -> int:
    lease = Lease()
    try:
        return pool.borrow(lease)
    finally:
        pool.give_back(lease)


def test_all_instances_are_free_at_first() -> None:
    assert InstancePool(3, "x.so").available == 3


def test_each_borrower_has_an_instance_of_its_own(threads: ThreadPoolExecutor) -> None:
    pool = InstancePool(3, "x.so")
    borrowers = [Borrower(pool, threads) for _ in range(3)]
    assert {borrower.instance() for borrower in borrowers} == {0, 1, 2}
    assert pool.available == 0
    for borrower in borrowers:
        borrower.end()
    assert pool.available == 3


def test_the_instance_that_was_given_back_longest_ago_is_borrowed_first() -> None:
    pool = InstancePool(3, "x.so")
    assert [borrow_and_give_back(pool) for _ in range(4)] == [0, 1, 2, 0]


def test_a_borrower_past_the_last_instance_waits_until_one_is_given_back(
    threads: ThreadPoolExecutor,
) -> None:
    pool = InstancePool(1, "x.so")
    first = Borrower(pool, threads)
    assert first.instance() == 0
    second = Borrower(pool, threads)
    eventually(lambda: waiting(pool) == 1)
    assert second.waits
    first.end()
    assert second.instance() == 0
    second.end()


def test_those_who_wait_are_served_in_their_order(threads: ThreadPoolExecutor) -> None:
    pool = InstancePool(1, "x.so")
    borrowers = [Borrower(pool, threads)]
    borrowers[0].instance()
    for count in range(1, 5):
        borrowers.append(Borrower(pool, threads))
        eventually(lambda count=count: waiting(pool) == count)  # type: ignore[misc]
    for now, later in itertools.pairwise(borrowers):
        now.end()
        later.instance()
        assert waiting(pool) == len(borrowers) - borrowers.index(later) - 1
    borrowers[-1].end()
    assert pool.available == 1


def test_who_wants_all_waits_for_those_who_borrowed_before(threads: ThreadPoolExecutor) -> None:
    pool = InstancePool(2, "x.so")
    borrower = Borrower(pool, threads)
    borrower.instance()
    owner = Owner(pool, threads)
    eventually(lambda: waiting(pool) == 1)
    assert not owner.has_all.is_set()
    borrower.end()
    assert owner.has_all.wait(TIMEOUT_S)
    assert pool.available == 0
    owner.end()
    assert pool.available == 2


def test_later_borrowers_wait_behind_one_who_wants_all(threads: ThreadPoolExecutor) -> None:
    pool = InstancePool(2, "x.so")
    before = Borrower(pool, threads)
    before.instance()
    owner = Owner(pool, threads)
    eventually(lambda: waiting(pool) == 1)
    later = Borrower(pool, threads)
    eventually(lambda: waiting(pool) == 2)  # though an instance is free
    before.end()
    assert owner.has_all.wait(TIMEOUT_S)
    assert later.waits
    owner.end()
    later.instance()
    later.end()


def test_who_wants_all_is_not_starved_by_borrowers_that_keep_coming(
    threads: ThreadPoolExecutor,
) -> None:
    pool = InstancePool(2, "x.so")
    stop = threading.Event()

    def keep_coming() -> int:
        count = 0
        while not stop.is_set():
            borrow_and_give_back(pool)
            count += 1
        return count

    borrowers = [threads.submit(keep_coming) for _ in range(4)]
    for _ in range(100):
        owner = Owner(pool, threads)
        assert owner.has_all.wait(TIMEOUT_S)
        owner.end()
    stop.set()
    assert all(borrower.result(TIMEOUT_S) > 0 for borrower in borrowers)
    assert pool.available == 2


def test_a_holder_gets_a_free_instance_before_those_who_wait(threads: ThreadPoolExecutor) -> None:
    """Or a run inside of a run would wait for one who waits for the outer run."""
    pool = InstancePool(2, "x.so")
    outer, inner = Lease(), Lease()
    pool.borrow(outer)
    owner = Owner(pool, threads)
    eventually(lambda: waiting(pool) == 1)
    assert pool.borrow(inner) == 1
    pool.give_back(inner)
    pool.give_back(outer)
    assert owner.has_all.wait(TIMEOUT_S)
    owner.end()


def test_a_holder_is_refused_where_it_would_wait_for_itself() -> None:
    pool = InstancePool(1, "x.so")
    outer, inner = Lease(), Lease()
    pool.borrow(outer)
    with pytest.raises(RunnerError, match="x.so: a run inside of a run .* all 1 are in use"):
        pool.borrow(inner)
    pool.give_back(inner)
    assert pool.available == 0
    pool.give_back(outer)
    assert pool.available == 1


def test_a_holder_cannot_have_all() -> None:
    pool = InstancePool(2, "x.so")
    lease = Lease()
    pool.borrow(lease)
    with pytest.raises(RunnerError, match="inside of a run"), pool.all_instances():
        pass
    assert waiting(pool) == 0
    pool.give_back(lease)
    with pool.all_instances():
        assert pool.available == 0


def test_who_has_all_can_neither_borrow_nor_have_all_again() -> None:
    pool = InstancePool(2, "x.so")
    lease = Lease()
    with pool.all_instances():
        with pytest.raises(RunnerError, match="inside of a run"):
            pool.borrow(lease)
        pool.give_back(lease)
        with pytest.raises(RunnerError, match="inside of a run"), pool.all_instances():
            pass
    assert pool.available == 2


def test_an_exception_of_who_has_all_frees_them() -> None:
    pool = InstancePool(2, "x.so")
    with pytest.raises(KeyError), pool.all_instances():
        raise KeyError
    assert pool.available == 2


def test_giving_back_twice_does_nothing() -> None:
    pool = InstancePool(2, "x.so")
    first, second = Lease(), Lease()
    pool.borrow(first)
    pool.give_back(first)
    pool.borrow(second)
    pool.give_back(first)
    assert pool.available == 1
    pool.give_back(second)
    assert sorted([borrow_and_give_back(pool), borrow_and_give_back(pool)]) == [0, 1]


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


def take_all(pool: InstancePool) -> None:
    with pool.all_instances():
        pass


@pytest.mark.parametrize("use", [borrow_and_give_back, take_all])
def test_an_interrupt_while_waiting_loses_nothing(
    use: Callable[[InstancePool], object], threads: ThreadPoolExecutor
) -> None:
    """Signal handlers run in the main thread; those behind it in the queue go on."""
    pool = InstancePool(2, "x.so")
    borrowers = [Borrower(pool, threads) for _ in range(2)]
    behind: list[Borrower] = []
    for borrower in borrowers:
        borrower.instance()

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def send() -> None:
        eventually(lambda: waiting(pool) == 1)
        behind.append(Borrower(pool, threads))
        eventually(lambda: waiting(pool) == 2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        sender = threads.submit(send)
        with pytest.raises(Interrupted):
            use(pool)
        sender.result(TIMEOUT_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert waiting(pool) == 1
    for borrower in borrowers:
        borrower.end()
    behind[0].instance()
    behind[0].end()
    assert pool.available == 2


def test_one_that_was_granted_and_interrupted_is_passed_on(threads: ThreadPoolExecutor) -> None:
    """The waiter was given its instance, but an exception came before it knew."""
    pool = InstancePool(1, "x.so")
    holder = Borrower(pool, threads)
    holder.instance()
    lease = Lease()
    with pool._lock:
        pool._enqueue(lease)
    behind = Borrower(pool, threads)
    eventually(lambda: waiting(pool) == 2)
    holder.end()
    assert behind.waits
    pool.give_back(lease)
    behind.instance()
    behind.end()
    assert pool.available == 1


@pytest.mark.parametrize("count", [1, 3])
def test_threads_that_borrow_and_take_all_lose_nothing(
    count: int, threads: ThreadPoolExecutor
) -> None:
    pool = InstancePool(count, "x.so")
    users = [0] * count
    inside = threading.Semaphore(count)

    def use(turns: int) -> None:
        for _ in range(turns):
            lease = Lease()
            try:
                instance = pool.borrow(lease)
                assert inside.acquire(blocking=False), "more users than instances"
                users[instance] += 1
                assert users[instance] == 1, "two threads have the same instance"
                users[instance] -= 1
                inside.release()
            finally:
                pool.give_back(lease)

    def use_all(turns: int) -> None:
        for _ in range(turns):
            with pool.all_instances():
                assert pool.available == 0
                assert users == [0] * count

    futures = [threads.submit(use, 1000) for _ in range(8)]
    futures += [threads.submit(use_all, 200) for _ in range(2)]
    for future in futures:
        future.result(TIMEOUT_S)
    assert pool.available == count
    assert waiting(pool) == 0
