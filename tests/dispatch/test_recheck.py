"""A second look at work: which calls are compared, what comes of a difference, what stays."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats
from aoti_eager._dispatch import recheck
from aoti_eager._native import library as native_library_module
from aoti_eager._registration import registry
from aoti_eager.errors import AotiEagerWarning

from ..conftest import MakeOp
from ..support.wrong_library import cache_of, put_library_of, rechecks

pytestmark = pytest.mark.both_paths

aten = torch.ops.aten
GOOD = torch.arange(24.0).reshape(4, 6)
BAD = GOOD - 5


def stats(op: str) -> OpStats:
    return aoti_eager.stats().get(op, OpStats())


def equal(got: torch.Tensor, want: torch.Tensor) -> bool:
    return bool(got.numpy().tobytes() == want.numpy().tobytes())


def counted_looks(op: str, calls: int, call: Any) -> list[int]:
    """Return which of ``calls`` served calls were compared."""
    found = []
    for number in range(1, calls + 1):
        before = rechecks(op)
        call()
        if rechecks(op) > before:
            found.append(number)
    return found


@pytest.fixture
def wrong_relu() -> Iterator[None]:
    """``relu`` with a kernel that is right for numbers that are not negative."""
    with aoti_eager.register(["aten::relu", "aten::abs"]):
        for op in (aten.relu, aten.abs):
            op(GOOD)
        put_library_of(cache_of("aten::abs"), cache_of("aten::relu"))
        yield


def test_which_calls_are_looked_at() -> None:
    numbers = [0]
    while numbers[-1] < 200_000:
        numbers.append(recheck.next_look(max(numbers[-1], 1)))
    assert numbers[1:] == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 65536, 131072, 196608, 262144]


@pytest.mark.native
def test_cpp_looks_at_the_same_calls(native_library: None) -> None:
    next_look = native_library_module.functions().ae_next_look
    for number in (*range(1, 3000), 65535, 65536, 65537, 1 << 20):
        assert next_look(number) == recheck.next_look(number)


@pytest.mark.native
def test_cpp_puts_looks_off_for_as_many_calls(native_library: None) -> None:
    put_off = native_library_module.functions().ae_put_off
    for number in (*range(1, 3000), 65535, 65536, 65537, 1 << 20):
        assert put_off(number) == recheck.put_off(number)


def test_a_look_that_is_put_off_for_ever_costs_few_calls() -> None:
    """Of a million calls, one in two thousand at most asks whether there is time."""
    number, asked = 2, 0
    while number < 1_000_000:
        asked += 1
        number += recheck.put_off(number)
    assert asked < 500


def test_calls_2_4_8_of_a_key_are_compared() -> None:
    with aoti_eager.register("aten::relu"):
        aten.relu(GOOD)
        hits = stats("aten::relu").hits
        assert counted_looks("aten::relu", 40, lambda: aten.relu(BAD)) == [2, 4, 8, 16, 32]
        assert stats("aten::relu").hits - hits == 40
        aten.relu(GOOD[:2])
        assert counted_looks("aten::relu", 5, lambda: aten.relu(BAD[:2])) == [2, 4]


def test_a_call_that_is_compared_is_in_a_profile_as_any_other() -> None:
    with aoti_eager.register("aten::relu"):
        aten.relu(GOOD)
        aten.relu(GOOD)
        before = rechecks("aten::relu")
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            aten.relu(BAD)
        assert rechecks("aten::relu") == before + 1
        names = {event.key for event in profile.key_averages()}
        assert {"aten::relu", "aoti_eager::aten::relu"} <= names


@pytest.mark.usefixtures("wrong_relu")
def test_a_kernel_that_turns_wrong_is_quarantined_with_both_values() -> None:
    assert equal(aten.relu(GOOD), GOOD)
    before = stats("aten::relu")
    with pytest.warns(AotiEagerWarning) as given:
        assert equal(aten.relu(BAD), BAD.clamp(min=0))
        assert equal(aten.relu(BAD), BAD.clamp(min=0))
    after = stats("aten::relu")
    (warning,) = given
    text = str(warning.message)
    assert "aten::relu (key " in text
    assert "5.0 instead of 0.0, element 0" in text
    assert after.declined["mismatch"] - before.declined.get("mismatch", 0) == 2
    assert after.hits == before.hits
    cache = cache_of("aten::relu")
    (decline,) = (d for d in cache.table.declines.values() if d.reason == "mismatch")
    assert "a served call differs" in decline.message
    aoti_eager.wait()
    statuses = [e.status for e in aoti_eager.cache.list() if e.op == "aten::relu"]
    assert "quarantined" in [str(getattr(s, "value", s)) for s in statuses]


@pytest.mark.usefixtures("wrong_relu")
def test_calls_that_are_not_looked_at_are_the_kernels() -> None:
    """Proof that the fixture's kernel is wrong, and what a look is for."""
    assert equal(aten.relu(BAD), BAD.abs())
    aten.relu(GOOD)
    assert equal(aten.relu(BAD), BAD.abs())  # number 3


def test_two_threads(wrong_relu: None) -> None:
    """Each thread has right results from its first call that is compared on, at the latest."""
    barrier = threading.Barrier(2)
    problems: list[str] = []

    def calls() -> None:
        barrier.wait()
        wrong = 0
        for _ in range(64):
            if not equal(aten.relu(BAD), BAD.clamp(min=0)):
                wrong += 1
        if wrong > 8:
            problems.append(f"{wrong} wrong results")
        if not equal(aten.relu(BAD), BAD.clamp(min=0)):
            problems.append("still wrong")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AotiEagerWarning)
        threads = [threading.Thread(target=calls) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    counts = stats("aten::relu")
    assert counts.declined.get("mismatch", 0) > 0


@pytest.mark.usefixtures("wrong_relu")
def test_no_call_is_served_once_the_decision_against_a_kernel_can_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread may call between any two steps of the one that decides."""
    table = cache_of("aten::relu").table
    seen: list[bool] = []
    count = table._count

    def calls(*arguments: Any) -> None:
        seen.extend(equal(aten.relu(BAD), BAD.clamp(min=0)) for _ in range(8))
        count(*arguments)

    aten.relu(GOOD)
    monkeypatch.setattr(table, "_count", calls)
    with pytest.warns(AotiEagerWarning):
        aten.relu(BAD)
    assert seen == [True] * 8


def test_arguments_that_are_written_to_get_the_originals_values() -> None:
    with aoti_eager.register(["aten::relu_", "aten::abs_"]):
        for op in (aten.relu_, aten.abs_):
            op(GOOD.clone())
        put_library_of(cache_of("aten::abs_"), cache_of("aten::relu_"))
        aten.relu_(GOOD.clone())
        x = BAD.clone()
        version = x._version
        with pytest.warns(AotiEagerWarning, match="argument 'self'"):
            assert aten.relu_(x) is x
        assert equal(x, BAD.clamp(min=0))
        assert x._version == version + 1


def test_a_look_leaves_versions_and_random_numbers_alone() -> None:
    with aoti_eager.register("aten::relu_"):
        aten.relu_(GOOD.clone())
        torch.manual_seed(3)
        state = torch.get_rng_state()
        before = rechecks("aten::relu_")
        for _ in range(4):
            x = BAD.clone()
            aten.relu_(x)
            assert x._version == 1
            assert equal(x, BAD.clamp(min=0))
        assert rechecks("aten::relu_") - before == 2
        assert torch.equal(torch.get_rng_state(), state)


def test_nan_equals_nan() -> None:
    x = GOOD.clone()
    x[0, 0], x[1, 1] = torch.nan, -torch.inf
    with aoti_eager.register("aten::relu"):
        aten.relu(GOOD)
        before = rechecks("aten::relu")
        for _ in range(4):
            torch.testing.assert_close(aten.relu(x), x.clamp(min=0), equal_nan=True)
        assert rechecks("aten::relu") - before == 2


def test_gradients_are_the_same() -> None:
    with aoti_eager.register("aten::relu"):
        aten.relu(GOOD)
        before = rechecks("aten::relu")
        for _ in range(4):
            x = BAD.clone().requires_grad_()
            y = torch.relu(x)
            y.sum().backward()
            assert y.grad_fn is not None
            assert x.grad is not None
            assert equal(x.grad, (BAD > 0).float())
        assert rechecks("aten::relu") - before == 2


def test_functions_of_the_users(make_op: MakeOp) -> None:
    scale = torch.full((6,), 2.0)

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * scale + 1

    op = make_op(scaled, mutates_args=())
    op(GOOD)
    before = rechecks("aetest::scaled")
    for number in range(1, 5):
        scale.fill_(number)
        assert torch.equal(op(GOOD), GOOD * number + 1)
    assert rechecks("aetest::scaled") - before == 2


@pytest.mark.dynamic
def test_a_dynamic_kernel_is_looked_at_whatever_the_sizes() -> None:
    """In C++ its calls are counted together, in Python those of each size."""
    with aoti_eager.register("aten::relu"):
        for rows in range(2, 6):
            aten.relu(torch.randn(rows, 7)), aten.relu(torch.randn(rows, 7))
        before = rechecks("aten::relu")
        hits = stats("aten::relu").hits
        for rows in range(20, 30):
            x = torch.randn(rows, 7)
            for _ in range(4):
                assert torch.equal(aten.relu(x), x.clamp(min=0))
        assert stats("aten::relu").hits > hits
        assert rechecks("aten::relu") > before


@pytest.mark.parametrize("setting", [{"recheck": False}, {"check": False}])
def test_nothing_is_looked_at_where_that_is_switched_off(
    wrong_relu: None, setting: dict[str, bool]
) -> None:
    before = rechecks("aten::relu")
    with aoti_eager.config.scope(**setting):
        for _ in range(9):
            assert equal(aten.relu(BAD), BAD.abs())
    assert rechecks("aten::relu") == before


def test_looks_rest_when_they_have_taken_their_share(
    wrong_relu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are made up for: after 64 calls it is seen whether there is time again."""
    before = rechecks("aten::relu")
    monkeypatch.setattr(recheck, "_used_until_ns", time.monotonic_ns() + (1 << 50))
    recheck.publish()
    for _ in range(40):
        assert equal(aten.relu(BAD), BAD.abs())
    assert rechecks("aten::relu") == before
    monkeypatch.setattr(recheck, "_used_until_ns", 0)
    recheck.publish()
    assert len(counted_looks("aten::relu", 64, lambda: aten.relu(GOOD))) == 1


def test_looks_take_a_thousandth_of_any_time_and_little_is_saved_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that has run for an hour must not look at each of the next thousands of calls."""
    monkeypatch.setattr(recheck, "PARTS", 1000)
    now, used, looks = 3600 * 10**9, 0, []
    end = now + 2 * 10**9
    while now < end:
        if now >= used:
            used = recheck.used_until_ns(used, now, 40_000)
            looks.append(now)
            now += 40_000
        now += 1_000
    at_once = [one for one in looks if one < looks[0] + 2 * 10**6]
    assert 20 <= len(at_once) <= 26  # 1 ms of 40 us each
    assert 40_000 * (len(looks) - len(at_once)) <= 2 * 10**6


def test_large_calls_are_not_looked_at() -> None:
    x = torch.randn(1 << 9, (1 << 8) + 1)
    with aoti_eager.register("aten::relu"):
        aten.relu(x)
        assert counted_looks("aten::relu", 9, lambda: aten.relu(x)) == []


def test_long_calls_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recheck, "LIMIT_S", 0.0)
    with aoti_eager.register("aten::relu"):
        aten.relu(GOOD)
        hits = stats("aten::relu").hits
        assert counted_looks("aten::relu", 70, lambda: aten.relu(BAD)) == []
        assert stats("aten::relu").hits - hits == 70


def test_what_the_original_raises_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with aoti_eager.register("aten::relu"):
        aten.relu(GOOD), aten.relu(GOOD)
        cache = cache_of("aten::relu")
        original = cache.original

        def refuses(*args: Any) -> Any:
            raise ValueError("not these numbers")

        monkeypatch.setattr(cache, "original", refuses)
        with (
            pytest.warns(AotiEagerWarning, match="the original raises ValueError"),
            pytest.raises(ValueError, match="not these numbers"),
        ):
            aten.relu(GOOD)
        monkeypatch.setattr(cache, "original", original)
        assert stats("aten::relu").declined["mismatch"] >= 1


def test_an_error_of_the_moment_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with aoti_eager.register("aten::relu"):
        aten.relu(GOOD), aten.relu(GOOD)

        def full(*args: Any) -> Any:
            raise MemoryError

        hits = stats("aten::relu").hits
        monkeypatch.setattr(cache_of("aten::relu"), "original", full)
        assert equal(aten.relu(BAD), BAD.clamp(min=0))
        assert stats("aten::relu").hits == hits + 1


def test_an_error_of_ours_costs_the_looks_and_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with aoti_eager.register("aten::relu"):
        aten.relu(GOOD), aten.relu(GOOD)

        def broken(*args: object, **kwargs: object) -> None:
            raise ZeroDivisionError("ours")

        monkeypatch.setattr(recheck, "differences", broken)
        with pytest.warns(AotiEagerWarning, match="could not be compared"):
            assert equal(aten.relu(BAD), BAD.clamp(min=0))
        for _ in range(9):
            assert equal(aten.relu(BAD), BAD.clamp(min=0))


def test_a_switch_to_cpp_says_when_served_calls_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C++ compares no call before; ``wait`` switches ops that were registered before the build."""
    told: list[bool] = []
    monkeypatch.setattr(recheck, "publish_first", lambda: told.append(True))
    monkeypatch.setattr(registry, "_may_switch", True)
    registry.switch_to_native()
    assert told
