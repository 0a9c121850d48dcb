"""When a kernel is asked for in the background: by what the calls of its key have taken so far."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats
from aoti_eager._compile_service import queue
from aoti_eager._dispatch import asking, rare_key
from aoti_eager._dispatch import payback as payback_module
from aoti_eager._dispatch import rare as rare_module
from aoti_eager._dispatch.dynamic_kernels import DynamicKernels
from aoti_eager._dispatch.kernel_cache import KernelCache
from aoti_eager._dispatch.kernel_request import KernelRequest
from aoti_eager._dispatch.key_state import COMPILING, RARE
from aoti_eager._dispatch.payback import COMPILE_S, SHARE, Payback
from aoti_eager._dispatch.rare import Rares
from aoti_eager._keys.dynamic_plan import Plan
from aoti_eager._registration import registry
from aoti_eager._store.store import Store

from ..conftest import assert_close

pytestmark = [pytest.mark.both_paths, pytest.mark.dynamic]

aten = torch.ops.aten
X = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))


class Clock:
    """A clock that the test sets; each call of an original takes ``call_s``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.call_s = 10e-6
        self._is_in_call = False

    def __call__(self) -> float:
        return self.now

    def thread_time(self) -> float:
        """Return the time: asked for once before and once after an original."""
        self.now += self.call_s * self._is_in_call
        self._is_in_call = not self._is_in_call
        return self.now


Asked = list[tuple[KernelRequest, Plan | None]]


@pytest.fixture(autouse=True)
def in_background() -> Iterator[None]:
    with aoti_eager.config.scope(mode="background"):
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("rare", "rare_key", "miss"):
        time = SimpleNamespace(thread_time=clock.thread_time, sleep=lambda s: None)
        monkeypatch.setattr(f"aoti_eager._dispatch.{module}.time", time)
    return clock


@pytest.fixture
def rares(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Rares:
    """Keys that are counted, without a thread, and a rule that has seen no compile."""
    rule = Payback()
    for module in (rare_module, rare_key):
        monkeypatch.setattr(module, "payback", rule)
    made = Rares(clock, has_thread=False)
    monkeypatch.setattr(rare_module, "rares", made)
    return made


@pytest.fixture
def asked(rares: Rares, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the workers are asked for; they never answer."""
    asked: Asked = []

    def compile_later(
        call: KernelRequest, found: None, plan: Plan | None, backend: Any, calls: int
    ) -> bool:
        if plan is not None:
            call.table.dynamic.begin(plan)
        call.decline(COMPILING, "asked", is_dynamic=plan is not None)
        asked.append((call, plan))
        return True

    monkeypatch.setattr(asking, "compile_later", compile_later)
    return asked


def stats(op: str = "aten::silu") -> OpStats:
    return aoti_eager.stats().get(op, OpStats())


def look(rares: Rares, clock: Clock) -> None:
    clock.now += 10.0
    rares.look()


def kernels() -> KernelCache:
    """Return what is registered for ``silu``."""
    cache = registry.find_cache(aten.silu.default, "CPU")
    assert cache is not None
    return cache


def rows(number: int, columns: int = 8) -> torch.Tensor:
    return torch.ones(number, columns)


# -- the rule --


def test_a_call_that_came_once_is_never_due_however_long_it_took() -> None:
    assert Payback().missing(1, 3600.0) == 1.0
    assert Payback().missing(2, 3600.0) == 0.0


@pytest.mark.parametrize(("call_s", "most"), [(5e-6, 1000), (100e-6, 50), (1e-3, 5), (1.0, 2)])
def test_a_key_is_due_when_its_calls_have_taken_a_share_of_a_compile(
    call_s: float, most: int
) -> None:
    payback = Payback()
    due = next(n for n in itertools.count(1) if not payback.missing(n, n * call_s))
    assert due == most
    assert payback.missing(1, call_s) == pytest.approx(most - 1)


def test_the_cost_is_what_compiles_take_here_within_bounds() -> None:
    payback = Payback()
    assert payback.spent_s == COMPILE_S * SHARE
    for _ in range(50):
        payback.observe(3.0)
    assert payback.spent_s == pytest.approx(3.0 * SHARE, rel=1e-3)
    for _ in range(50):  # A worker that waited for a core for an hour.
        payback.observe(3600.0)
    assert payback.spent_s == pytest.approx(6.0 * SHARE, rel=1e-3)
    for _ in range(50):
        payback.observe(0.0)
    assert payback.spent_s == pytest.approx(0.75 * SHARE, rel=1e-3)


def test_a_number_of_calls_is_taken_by_its_word() -> None:
    with aoti_eager.config.scope(compile_after=3):
        assert [payback_module.payback.missing(n, 1e-9) for n in range(5)] == [3, 2, 1, 0, 0]


# -- keys --


def test_one_call_is_counted_and_asks_for_nothing(asked: Asked, rares: Rares, clock: Clock) -> None:
    with aoti_eager.register("aten::silu"):
        clock.call_s = 100.0
        assert_close(aten.silu(X), X * torch.sigmoid(X))
        look(rares, clock)
        assert asked == []
        assert stats() == OpStats(misses=1)
        assert stats().rare == 1
        explained = aoti_eager.explain("aten::silu", X)
        assert explained.verdict == "miss"
        assert explained.message.startswith("rare, called 1 times: ")


def test_the_second_of_two_long_calls_asks(asked: Asked, clock: Clock) -> None:
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 2
        aten.silu(X), aten.silu(X)
        assert [call.key.op for call, _ in asked] == ["aten::silu"]
        aten.silu(X)
        assert len(asked) == 1


def test_short_calls_are_asked_for_by_the_look_after_enough_of_them(
    asked: Asked, rares: Rares, clock: Clock
) -> None:
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 20
        for _ in range(19):
            aten.silu(X)
        look(rares, clock)
        assert asked == []
        assert stats().rare == stats().misses == 19
        aten.silu(X)
        look(rares, clock)
        assert len(asked) == 1
        assert len(rares) == 0
        assert stats().misses == 20


def test_the_shorter_of_two_timed_calls_counts(asked: Asked, rares: Rares, clock: Clock) -> None:
    with aoti_eager.register("aten::silu"):
        clock.call_s = 1.0  # The first call of all loads and makes things.
        aten.silu(X)
        clock.call_s = 1e-6
        aten.silu(X)
        look(rares, clock)
        assert asked == []


@pytest.mark.native
def test_only_two_calls_of_a_rare_key_are_pythons(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    with aoti_eager.register("aten::silu"):
        cache = kernels()
        entered = []
        miss = type(cache).miss
        monkeypatch.setattr(type(cache), "miss", lambda *a: entered.append(1) or miss(*a))
        for _ in range(10):
            aten.silu(X)
        assert len(entered) == 2
        assert stats().rare == 10


def test_calls_of_earlier_runs_count(asked: Asked, rares: Rares, clock: Clock) -> None:
    known: list[tuple[str, str]] = []

    def calls_before(op: str, digest: str) -> int:
        known.append((op, digest))
        return 100

    rares.calls_before = calls_before
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 100
        aten.silu(X)
        assert [(call.key.op, call.key.digest) for call, _ in asked] == known


def test_a_number_of_calls_of_a_key(asked: Asked, rares: Rares, clock: Clock) -> None:
    with aoti_eager.config.scope(compile_after=3), aoti_eager.register("aten::silu"):
        aten.silu(X), aten.silu(X)
        look(rares, clock)
        assert asked == []
        aten.silu(X)
        look(rares, clock)
        assert len(asked) == 1


def test_the_first_call_asks_where_one_is_enough(asked: Asked, rares: Rares) -> None:
    with aoti_eager.config.scope(compile_after=1), aoti_eager.register("aten::silu"):
        aten.silu(X)
        assert len(asked) == 1
        assert len(rares) == 0


def test_who_waits_for_kernels_gets_those_of_keys_that_came_once(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
        assert asked == []
        assert aoti_eager.wait(60.0)
        assert len(asked) == 1


def test_an_original_that_raises_on_the_second_call_says_nothing(
    asked: Asked, clock: Clock
) -> None:
    with aoti_eager.register("aten::embedding"):
        weight, good, bad = torch.ones(4, 3), torch.tensor([1, 2]), torch.tensor([1, 9])
        clock.call_s = 1.0
        aten.embedding(weight, good)
        with pytest.raises(IndexError):
            aten.embedding(weight, bad)
        assert asked == []


def test_no_kernel_is_asked_for_in_a_mode_that_makes_none(
    asked: Asked, rares: Rares, clock: Clock
) -> None:
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 3
        for _ in range(4):
            aten.silu(X)
        with aoti_eager.config.scope(mode="cache_only"):
            look(rares, clock)
        assert asked == []
        look(rares, clock)
        assert len(asked) == 1


def test_a_key_of_another_cache_directory_waits_for_its_scope_to_end(
    asked: Asked, rares: Rares, clock: Clock, tmp_path: Any
) -> None:
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 3
        for _ in range(4):
            aten.silu(X)
        with aoti_eager.config.scope(cache_dir=tmp_path / "other"):
            look(rares, clock)
            assert asked == []
        look(rares, clock)
        assert len(asked) == 1


def test_a_look_that_fails_is_no_reason_not_to_look_at_the_others(
    asked: Asked, rares: Rares, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = DynamicKernels.find

    def fail_once(dynamic: Any, schema: Any, key: Any, backend: Any) -> Any:
        monkeypatch.setattr(DynamicKernels, "find", find)
        raise OSError("made up")

    with aoti_eager.register(["aten::silu", "aten::tanh"]):
        clock.call_s = COMPILE_S * SHARE / 3
        for _ in range(4):
            aten.silu(X), aten.tanh(X)
        monkeypatch.setattr(DynamicKernels, "find", fail_once)
        look(rares, clock)
        assert [call.key.op for call, _ in asked] == ["aten::tanh"]
        look(rares, clock)
        assert [call.key.op for call, _ in asked] == ["aten::tanh", "aten::silu"]


def test_no_file_is_read_under_the_lock_that_all_calls_take(
    asked: Asked, rares: Rares, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Store.find_dynamic
    reads: list[bool] = []

    def seen(*args: Any) -> Any:
        reads.append(rares._changed._is_owned())  # type: ignore[attr-defined]
        return find(*args)

    monkeypatch.setattr(Store, "find_dynamic", seen)
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 3
        dynamic = kernels().table.dynamic
        aten.silu(X)
        dynamic.kernels.look_again()  # A worker has brought something.
        aten.silu(X)
        dynamic.kernels.look_again()
        aten.silu(X), aten.silu(X)
        look(rares, clock)
        assert len(asked) == 1
        aten.silu(torch.ones(5))  # Of another family: it is not due yet.
        dynamic.kernels.look_again()
        rares.ask_for_all()
        assert len(asked) == 2
    assert len(reads) == 4
    assert not any(reads)


def test_unregistering_lets_go_of_its_keys(asked: Asked, rares: Rares) -> None:
    with aoti_eager.register("aten::silu"):
        for number in range(1, 5):
            aten.silu(rows(number))
        assert len(rares) == 4
    assert len(rares) == 0


def test_a_full_queue_leaves_a_key_to_the_next_look(
    asked: Asked, rares: Rares, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with aoti_eager.register("aten::silu"), monkeypatch.context() as patched:
        patched.setattr(asking, "compile_later", lambda *a: False)
        clock.call_s = 1.0
        aten.silu(X), aten.silu(X)
        look(rares, clock)
        assert len(rares) == 1
        patched.undo()


def test_new_keys_without_end_take_no_more_memory(
    asked: Asked, rares: Rares, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rare_module, "RARES_LIMIT", 8)
    with aoti_eager.register("aten::silu"):
        cache = kernels()
        hot = rows(1)
        for number in range(2, 60):
            aten.silu(rows(number))
            aten.silu(hot)
            assert len(rares) <= 8
            look(rares, clock)
        assert len(cache.table.declines) <= 8
        assert len(cache.counters._counting) <= 8
        assert cache.table.declines[cache.key(hot)].reason == RARE  # What comes again is kept.
        assert stats().misses == 2 * 58


# -- families --


def test_sizes_that_come_once_each_share_a_kernel_when_they_are_worth_one(
    asked: Asked, rares: Rares, clock: Clock
) -> None:
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 4
        for number in (5, 6, 7):
            aten.silu(rows(number))
        assert asked == []
        aten.silu(rows(9))
        ((call, plan),) = asked
        assert plan is not None
        assert list(plan.dims) == [(0, 0)]
        cache = kernels()
        # All of them wait for it: those that came, and those that come.
        aten.silu(rows(10))
        reasons = {one.reason for one in cache.table.declines.values()}
        assert reasons == {COMPILING}
        assert len(cache.table.declines) == 5
        assert len(asked) == 1
        call.table.dynamic.end(plan, call.table.forget_decline)
        assert cache.table.declines.keys() == {call.table_key}


def test_a_key_that_comes_again_after_another_size_asks_for_one_kernel_for_both(
    asked: Asked, clock: Clock
) -> None:
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 3
        aten.silu(rows(5)), aten.silu(rows(6)), aten.silu(rows(6))
        assert [plan is not None for _, plan in asked] == [True]


def test_a_size_that_never_changes_gets_a_kernel_of_its_own(asked: Asked, clock: Clock) -> None:
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 2
        aten.silu(rows(5)), aten.silu(rows(5))
        assert [plan for _, plan in asked] == [None]


# -- the thread, and all of it --


def test_the_thread_asks_for_what_has_become_due(
    monkeypatch: pytest.MonkeyPatch, machine: Any
) -> None:
    done = threading.Event()
    monkeypatch.setattr(rare_module, "rares", Rares())

    def compile_later(call: KernelRequest, *rest: Any) -> bool:
        call.decline(COMPILING, "asked")
        done.set()
        return True

    monkeypatch.setattr(asking, "compile_later", compile_later)
    with aoti_eager.register("aten::silu"):
        while not done.wait(0.0):  # However fast this machine is, they take 5 ms at some time.
            aten.silu(X)
        assert stats().calls > 2


@pytest.mark.full
def test_a_key_that_is_called_gets_its_kernel_by_default() -> None:
    assert aoti_eager.config.lookup("compile_after") == ("auto", "default")
    with aoti_eager.register("aten::silu"):
        x = torch.randn(9, 11)
        while not (stats().hits or stats().declines):
            assert_close(aten.silu(x), x * torch.sigmoid(x))
        assert stats().rare >= 2
        assert stats().declines == 0
    assert queue.background.wait(60.0)


def test_a_child_process_keeps_originals(asked: Asked) -> None:
    with aoti_eager.register("aten::silu"):
        for _ in range(3):
            aten.silu(X)
        cache = kernels()
        cache.after_fork()
        assert {one.reason for one in cache.table.declines.values()} == {"forked"}


def test_the_store_is_read_before_the_lock_is_taken(
    asked: Asked, rares: Rares, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of all ops wait for that lock."""
    free = []

    def try_lock() -> None:
        free.append(rares._changed.acquire(timeout=0))
        if free[-1]:
            rares._changed.release()

    def watched(read: Any) -> Any:
        def reading(*args: Any) -> Any:
            other = threading.Thread(target=try_lock)
            other.start()
            other.join()
            return read(*args)

        return reading

    monkeypatch.setattr(Store, "find_dynamic", watched(Store.find_dynamic))
    rares.calls_before = watched(rares.calls_before)
    with aoti_eager.register("aten::silu"):
        clock.call_s = COMPILE_S * SHARE / 20
        for again in (lambda: aten.silu(X), lambda: look(rares, clock), rares.ask_for_all):
            kernels().table.dynamic.kernels.look_again()
            aten.silu(X)
            kernels().table.dynamic.kernels.look_again()
            again()
        assert len(asked) == 1
    assert len(free) >= 4
    assert all(free)
