"""Who wins: the times of a variant's calls, plain and served in turn."""

from __future__ import annotations

from collections.abc import Iterator

from aoti_eager._regions.call_times import _TIMED, CallTimes
from aoti_eager._regions.stop import Stop


def run(times: CallTimes, plain: Iterator[float], served: Iterator[float]) -> Stop | None:
    """Add times as calls do, until enough were timed; return why serving ends."""
    stop = None
    while stop is None and not times.is_complete:
        if times.wants_plain:
            assert times.add(next(plain), served=False) is None
        else:
            stop = times.add(next(served), served=True)
    return stop


def test_three_calls_of_each_kind_show_that_a_library_wins() -> None:
    times = CallTimes()
    assert run(times, iter([2.0] * 3), iter([1.0] * 3)) is None
    assert times.is_complete
    assert times.speed == 2.0


def test_a_library_whose_first_calls_are_slow_wins_in_later_ones() -> None:
    times = CallTimes()
    assert run(times, iter([2.0] * 12), iter([2.1, 2.0, 2.2, 2.0, 1.2, 1.1])) is None
    assert times.is_complete
    assert times.served_s == 1.1


def test_a_library_that_loses_is_given_up_after_the_last_number() -> None:
    times, served = CallTimes(), iter([1.0] * 20)
    stop = run(times, iter([1.0] * 20), served)
    assert stop is not None
    assert stop.reason == "slower"
    assert len(list(served)) == 20 - _TIMED[-1]


def test_a_library_that_is_far_off_is_given_up_at_once() -> None:
    times, served = CallTimes(), iter([3.0] * 20)
    stop = run(times, iter([1.0] * 20), served)
    assert stop is not None
    assert stop.reason == "slower"
    assert len(list(served)) == 20 - _TIMED[0]


def test_the_forward_counts_by_its_last_calls() -> None:
    times = CallTimes()
    for _ in range(50):  # While the library is being made, with another load on the machine.
        times.add(1.0, served=False)
    assert run(times, iter([4.0] * 3), iter([2.0] * 12)) is not None
    times = CallTimes()
    for one in [1.0] * 50 + [4.0] * 3:
        times.add(one, served=False)
    assert run(times, iter([]), iter([2.0] * 3)) is None
