"""Patterns in C++: the same answers as in Python, for programs and words of every kind."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoti_eager._keys.guards import (
    INT64_MAX,
    INT64_MIN,
    Guards,
    match,
)
from aoti_eager._keys.pattern_program import pattern_program
from aoti_eager._native import op_kernel

pytestmark = pytest.mark.native

NAMES = ["s0", "s1", "s2"]
EDGES = [0, 1, -1, 2, 3, 7, INT64_MAX, INT64_MIN, INT64_MAX - 1, 1 << 32, -(1 << 62)]
ANY_NUMBER = ["+", "*", "min", "max", "and", "or"]
NUMBERS = st.one_of(st.sampled_from(EDGES), st.integers(-20, 20))


def combined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        st.builds(
            lambda name, ones: [name, *ones],
            st.sampled_from(["+", "*", "min", "max", "and", "or"]),
            several,
        ),
        st.builds(
            lambda name, one, other: [name, one, other],
            st.sampled_from(["//", "%", "==", "!=", "<", "<="]),
            inner,
            inner,
        ),
        st.builds(lambda one: ["not", one], inner),
    )


EXPRESSIONS = st.recursive(st.one_of(st.sampled_from(NAMES), NUMBERS), combined, max_leaves=8)
WORDS = st.lists(st.one_of(NUMBERS, st.sampled_from(NAMES), EXPRESSIONS), max_size=4)


def both(call: list[int], pattern: list[Any], guards: Guards) -> bool:
    """Return what both say, which is the same."""
    program = pattern_program(pattern, guards)
    assert program is not None
    native = op_kernel.matches(program, struct.pack(f"={len(call)}q", *call))
    assert native == (match(call, pattern, guards) is not None)
    return native


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_cpp_and_python_say_the_same(data: st.DataObject) -> None:
    pattern = [*NAMES, *data.draw(WORDS)]
    ranges = {name: tuple(sorted(data.draw(st.tuples(NUMBERS, NUMBERS)))) for name in NAMES}
    guards = Guards(ranges, tuple(data.draw(st.lists(EXPRESSIONS, max_size=2))))
    call = [data.draw(st.one_of(NUMBERS, st.sampled_from(ranges[name]))) for name in NAMES]
    values = dict(zip(NAMES, call, strict=True))
    for word in pattern[3:]:
        follows = values[word] if isinstance(word, str) else word if isinstance(word, int) else None
        if follows is None:
            from aoti_eager._keys.guards import NoValueError, evaluate

            try:
                follows = evaluate(word, values)
            except NoValueError:
                follows = 0
        call.append(data.draw(st.sampled_from([follows, follows, follows, 5])))
    both(call, pattern, guards)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (["==", ["//", -7, 2], -4], True),
        (["==", ["%", -7, 2], 1], True),
        (["==", ["%", 7, -2], -1], True),
        (["//", 1, 0], False),
        (["//", INT64_MIN, -1], False),
        (["==", ["%", INT64_MIN, -1], 0], True),
        (["+", INT64_MAX, 1], False),
        (["or", 1, ["//", 1, 0]], True),
        (["and", 0, ["//", 1, 0]], False),
        (["not", ["and", 0, ["//", 1, 0]]], True),
        (["==", ["and", 5, 7], 1], True),
        (["min", "s0", 3], True),
    ],
)
def test_corner_cases(condition: Any, holds: bool) -> None:
    assert both([8], ["s0"], Guards({"s0": (2, INT64_MAX)}, (condition,))) is holds


def test_lengths_and_ranges_count() -> None:
    guards = Guards({"s0": (2, 5)})
    assert both([2, 9], ["s0", 9], guards)
    assert both([5, 9], ["s0", 9], guards)
    assert not both([1, 9], ["s0", 9], guards)
    assert not both([6, 9], ["s0", 9], guards)
    assert not both([2, 9, 9], ["s0", 9], guards)
    assert not both([2], ["s0", 9], guards)


def test_a_symbol_that_no_word_shows_is_for_nobody() -> None:
    assert pattern_program([["+", "s0", 1]], Guards({"s0": (2, 5)})) is None
