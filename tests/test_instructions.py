"""Instructions of a call, as the benchmark of a call's cost counts them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from .benchmarks import instructions

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="steps are counted by a flag of x86-64"
)


def test_the_same_call_takes_the_same_number_and_a_longer_one_more(tmp_path: Path) -> None:
    count = instructions.counter(instructions.build(tmp_path))
    numbers = (1.5, 2.5, 3.5)

    def short() -> float:
        return numbers[0] * numbers[1]

    def long() -> float:
        return numbers[0] * numbers[1] * numbers[2]

    for _ in range(100):  # What Python specialises.
        short(), long()
    assert count(short) == count(short) > 0
    assert count(short) < count(long) < 2 * count(short)


def test_a_call_that_raises_is_an_error(tmp_path: Path) -> None:
    count = instructions.counter(instructions.build(tmp_path))
    with pytest.raises(ZeroDivisionError):
        count(lambda: 1 / 0)
