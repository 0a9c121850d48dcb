"""The circuit breaker, with a clock of the test's own."""

from __future__ import annotations

import pytest

from aoti_eager._remote import breaker as breaker_module
from aoti_eager._remote.breaker import CLOSED, HALF_OPEN, OPEN, Breaker

FIRST, LONGEST = breaker_module.FIRST_REST_S, breaker_module.LONGEST_REST_S


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def open_it(breaker: Breaker) -> None:
    for _ in range(breaker_module.MOST_FAILURES):
        assert breaker.allows()
        breaker.failed()


def test_failures_in_turn_open_it(breaker: Breaker) -> None:
    assert breaker.state == CLOSED
    open_it(breaker)
    assert breaker.state == OPEN
    assert not breaker.allows()


def test_an_answer_in_between_begins_the_count_anew(breaker: Breaker) -> None:
    for _ in range(5):
        for _ in range(breaker_module.MOST_FAILURES - 1):
            breaker.failed()
        breaker.succeeded()
    assert breaker.state == CLOSED


def test_after_the_rest_one_request_goes_through(breaker: Breaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += FIRST
    assert breaker.state == HALF_OPEN
    assert breaker.allows()
    assert not breaker.allows()
    breaker.succeeded()
    assert breaker.state == CLOSED
    assert breaker.allows()


def test_a_probe_that_fails_doubles_the_rest_up_to_the_longest(
    breaker: Breaker, clock: Clock
) -> None:
    open_it(breaker)
    rest = FIRST
    for _ in range(12):
        clock.now += rest - 0.5
        assert not breaker.allows()
        clock.now += 0.5
        assert breaker.allows()
        breaker.failed()
        rest = min(2 * rest, LONGEST)
        assert breaker.state == OPEN
    assert rest == LONGEST
    clock.now += LONGEST
    assert breaker.allows()
    breaker.succeeded()
    open_it(breaker)
    clock.now += FIRST
    assert breaker.allows()
