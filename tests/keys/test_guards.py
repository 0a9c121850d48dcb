"""Guards: expressions with a value in 64 bits or none, and calls that match a pattern."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aoti_eager._keys.guards import (
    INT64_MAX,
    INT64_MIN,
    OPERATORS,
    Expression,
    Guards,
    NoValueError,
    evaluate,
    match,
    symbols_of,
    text,
)

WIDE = Guards({"s0": (2, INT64_MAX), "s1": (2, INT64_MAX), "t0": (2, INT64_MAX)})
SYMBOLS = ("s0", "s1", "t0")

# Small numbers, and those near the ends of 64 bits, where everything overflows.
NUMBERS = st.integers(-9, 9) | st.sampled_from([INT64_MIN, INT64_MIN + 1, INT64_MAX, 1 << 32])


def _applied(children: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    def operands(name: str) -> st.SearchStrategy[Expression]:
        wanted = OPERATORS[name]
        least, most = (wanted, wanted) if wanted else (2, 4)
        return st.lists(children, min_size=least, max_size=most).map(lambda ones: [name, *ones])

    return st.sampled_from(sorted(OPERATORS)).flatmap(operands)


EXPRESSIONS = st.recursive(st.sampled_from(SYMBOLS) | NUMBERS, _applied, max_leaves=12)
VALUES = st.fixed_dictionaries(dict.fromkeys(SYMBOLS, NUMBERS))

_FOLDS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    "min": min,
    "max": max,
}


def meaning(expression: Expression, values: dict[str, int]) -> int | None:
    """Return what ``expression`` means, or ``None`` for no value: an account of its own."""
    if not isinstance(expression, list):
        return values[expression] if isinstance(expression, str) else expression
    name, *operands = expression
    if name in ("and", "or"):
        for one in operands:
            value = meaning(one, values)
            if value is None:
                return None
            if bool(value) is (name == "or"):
                return int(name == "or")
        return int(name == "and")
    found = [meaning(one, values) for one in operands]
    if None in found:
        return None
    if name == "not":
        return int(found[0] == 0)

    def fold(left: int | None, right: int) -> int | None:
        if left is None or (name in ("//", "%") and right == 0):
            return None
        result = int(_FOLDS[name](left, right))
        return result if INT64_MIN <= result <= INT64_MAX else None

    return functools.reduce(fold, found)  # type: ignore[arg-type]


@given(EXPRESSIONS, VALUES)
@example(["//", INT64_MIN, -1], dict.fromkeys(SYMBOLS, 0))
@example(["+", INT64_MAX, 1, -1], dict.fromkeys(SYMBOLS, 0))  # From left to right, as C++ adds.
@example(["or", ["==", "s0", 0], ["<", ["//", 8, "s0"], 3]], dict.fromkeys(SYMBOLS, 0))
def test_an_expression_has_its_value_or_none(
    expression: Expression, values: dict[str, int]
) -> None:
    expected = meaning(expression, values)
    if expected is None:
        with pytest.raises(NoValueError):
            evaluate(expression, values)
    else:
        got = evaluate(expression, values)
        assert (type(got), got) == (int, expected)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (["//", 7, 2], 3),
        (["//", -7, 2], -4),
        (["%", -7, 2], 1),
        (["%", 7, -2], -1),
        (["%", INT64_MIN, -1], 0),
        (["min", 3, 1, 2], 1),
        (["max", 3, 1, 2], 3),
        (["*", 2, 3, 4], 24),
        (["not", 5], 0),
        (["not", 0], 1),
        (["and", 3, 5], 1),
        (["or", 0, 5], 1),
    ],
)
def test_operators_mean_what_pythons_do(expression: Expression, value: int) -> None:
    assert evaluate(expression, {}) == value


@pytest.mark.parametrize(
    "expression",
    [
        ["+", "s0", 1],
        ["*", "s0", 2],
        ["*", "s0", "s0", 0],
        ["//", INT64_MIN, ["+", -2, 1]],
        INT64_MAX + 1,
        INT64_MIN - 1,
    ],
)
def test_what_overflows_has_no_value(expression: Expression) -> None:
    with pytest.raises(NoValueError, match="overflow"):
        evaluate(expression, {"s0": INT64_MAX})


@pytest.mark.parametrize("name", ["//", "%"])
def test_a_zero_divisor_has_no_value(name: str) -> None:
    with pytest.raises(NoValueError, match="division by zero"):
        evaluate([name, 4, "s0"], {"s0": 0})


def test_an_unknown_symbol_has_no_value() -> None:
    with pytest.raises(NoValueError, match="s7"):
        evaluate(["+", "s0", "s7"], {"s0": 1})


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (["and", 0, ["//", 1, 0]], 0),
        (["or", 2, ["//", 1, 0]], 1),
        (["and", 1, 0, "unknown"], 0),
        (["or", 0, 1, "unknown"], 1),
    ],
)
def test_what_comes_after_the_answer_needs_no_value(expression: Expression, value: int) -> None:
    assert evaluate(expression, {}) == value


@pytest.mark.parametrize("expression", [["and", 1, ["//", 1, 0]], ["or", 0, ["//", 1, 0]]])
def test_what_the_answer_depends_on_needs_one(expression: Expression) -> None:
    with pytest.raises(NoValueError):
        evaluate(expression, {})


# -- guards --


def test_ranges_include_both_ends() -> None:
    guards = Guards({"s0": (2, 4096)})
    assert [guards.hold({"s0": n}) for n in (1, 2, 3, 4095, 4096, 4097)] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]


def test_every_condition_must_hold() -> None:
    guards = Guards({"s0": (0, 100)}, (["==", ["%", "s0", 4], 0], ["<", "s0", 50]))
    assert [n for n in range(101) if guards.hold({"s0": n})] == list(range(0, 50, 4))


def test_a_number_other_than_zero_is_true() -> None:
    assert Guards({"s0": (0, 9)}, (["%", "s0", 4],)).hold({"s0": 7})
    assert not Guards({"s0": (0, 9)}, (["%", "s0", 4],)).hold({"s0": 8})


@pytest.mark.parametrize(
    "condition", [["==", ["//", 8, "s0"], 2], ["<", ["*", "s0", INT64_MAX], 5], ["==", "s1", 1]]
)
def test_a_condition_without_a_value_does_not_hold(condition: Expression) -> None:
    assert not Guards({"s0": (0, 9)}, (condition,)).hold({"s0": 0 if "//" in str(condition) else 9})


def test_a_symbol_without_a_value_does_not_hold() -> None:
    assert not WIDE.hold({"s0": 5})


@given(st.dictionaries(st.sampled_from(SYMBOLS), st.tuples(NUMBERS, NUMBERS)), st.data())
def test_guards_survive_json(ranges: dict[str, tuple[int, int]], data: st.DataObject) -> None:
    known = st.sampled_from(sorted(ranges)) if ranges else st.just(1)
    expressions = st.recursive(known | NUMBERS, _applied, max_leaves=6)
    conditions = data.draw(st.lists(expressions, max_size=3))
    guards = Guards(ranges, tuple(conditions))
    assert Guards.from_json(json.loads(json.dumps(guards.to_json()))) == guards


GOOD: dict[str, Any] = {"ranges": {"s0": [2, 9]}, "conditions": [["<", "s0", 5]]}


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"ranges": {}},
        {"conditions": []},
        {**GOOD, "ranges": []},
        {**GOOD, "ranges": {"s0": 2}},
        {**GOOD, "ranges": {"s0": [2]}},
        {**GOOD, "ranges": {"s0": [2, 9, 9]}},
        {**GOOD, "ranges": {"s0": [2.0, 9]}},
        {**GOOD, "ranges": {"s0": ["2", 9]}},
        {**GOOD, "ranges": {"s0": [True, 9]}},
        {**GOOD, "ranges": {"s0": [None, 9]}},
        {**GOOD, "ranges": {"s0": [2, 1 << 63]}},
        {**GOOD, "ranges": {"s0": [-(1 << 63) - 1, 2]}},
        {**GOOD, "conditions": None},
        {**GOOD, "conditions": ""},
        {**GOOD, "conditions": {"s0": 1}},
        {**GOOD, "conditions": [["<", "s1", 5]]},
        {**GOOD, "conditions": [[]]},
        {**GOOD, "conditions": [["**", "s0", 2]]},
        {**GOOD, "conditions": [[["<"], "s0", 2]]},
        {**GOOD, "conditions": [["<", "s0"]]},
        {**GOOD, "conditions": [["<", "s0", 1, 2]]},
        {**GOOD, "conditions": [["not", "s0", 1]]},
        {**GOOD, "conditions": [["+", "s0"]]},
        {**GOOD, "conditions": [["+", "s0", 1.5]]},
        {**GOOD, "conditions": [["+", "s0", True]]},
        {**GOOD, "conditions": [["+", "s0", None]]},
        {**GOOD, "conditions": [["+", "s0", {"a": 1}]]},
    ],
    ids=str,
)
def test_json_that_is_no_guards_is_refused(values: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        Guards.from_json(values)


# -- match --


def test_a_word_is_a_number_a_symbol_or_derived() -> None:
    pattern = [7, "s0", "s1", ["*", "s0", "s1"], "s1", 1]
    assert match([7, 3, 5, 15, 5, 1], pattern, Guards({"s0": (2, 9), "s1": (2, 9)})) == {
        "s0": 3,
        "s1": 5,
    }


@pytest.mark.parametrize(
    "call",
    [
        [8, 3, 5, 15, 5, 1],  # another number
        [7, 3, 5, 15, 6, 1],  # a symbol that is not the same again
        [7, 3, 5, 16, 5, 1],  # not what it is derived from
        [7, 1, 5, 5, 5, 1],  # below its range
        [7, 10, 5, 50, 5, 1],  # above
        [7, 3, 5, 15, 5],
        [7, 3, 5, 15, 5, 1, 1],
        [],
    ],
)
def test_a_call_that_is_no_instance_does_not_match(call: list[int]) -> None:
    pattern = [7, "s0", "s1", ["*", "s0", "s1"], "s1", 1]
    assert match(call, pattern, Guards({"s0": (2, 9), "s1": (2, 9)})) is None


def test_a_derived_word_may_come_before_its_symbol() -> None:
    guards = Guards({"s0": (2, 9)})
    assert match([12, 3], [["*", "s0", 4], "s0"], guards) == {"s0": 3}
    assert match([13, 3], [["*", "s0", 4], "s0"], guards) is None


def test_a_derived_word_that_overflows_does_not_match() -> None:
    huge = 1 << 62
    for word in (0, huge * 4, INT64_MIN):
        assert match([huge, word], ["s0", ["*", "s0", 4]], WIDE) is None
    assert match([huge, 0], ["s0", ["//", "s0", 0]], Guards({"s0": (2, INT64_MAX)})) is None


def test_a_condition_decides_too() -> None:
    guards = Guards({"s0": (2, 99)}, (["==", ["%", "s0", 8], 0],))
    assert match([16], ["s0"], guards) == {"s0": 16}
    assert match([17], ["s0"], guards) is None


def test_a_range_of_a_symbol_that_the_pattern_lacks_never_holds() -> None:
    assert match([5], ["s0"], Guards({"s0": (2, 9), "s1": (2, 9)})) is None


@given(
    st.lists(st.sampled_from(SYMBOLS) | st.integers(-3, 3), max_size=8),
    st.fixed_dictionaries(dict.fromkeys(SYMBOLS, st.integers(2, 5))),
    st.data(),
)
def test_a_call_matches_exactly_if_its_words_are_the_patterns_with_values(
    plain: list[Expression], values: dict[str, int], data: st.DataObject
) -> None:
    used = sorted({word for word in plain if isinstance(word, str)})
    derived = [["*", one, other] for one in used for other in used]
    pattern = data.draw(st.permutations([*plain, *derived[:3]]))
    guards = Guards(dict.fromkeys(used, (2, 5)))
    words = [evaluate(word, values) for word in pattern]
    assert match(words, pattern, guards) == {name: values[name] for name in used}
    if words:
        place = data.draw(st.integers(0, len(words) - 1))
        words[place] += data.draw(st.sampled_from([-1, 1, 100]))
        found = match(words, pattern, guards)
        # Only another value of a symbol that stands alone makes it another instance.
        assert found is None or [evaluate(word, found) for word in pattern] == words


# -- in words --


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("s0", "s0"),
        (4, "4"),
        (["*", "s0", 4], "(s0 * 4)"),
        (["+", "s0", "s1", 1], "(s0 + s1 + 1)"),
        (["<=", "s0", 4096], "(s0 <= 4096)"),
        (["==", ["%", "s0", 8], 0], "((s0 % 8) == 0)"),
        (["max", "s0", ["//", "s1", 2]], "max(s0, (s1 // 2))"),
        (["not", ["<", "s0", 5]], "(not (s0 < 5))"),
        (["==", ["not", "s0"], "s1"], "((not s0) == s1)"),
        (["or", ["and", "s0", "s1"], 0], "((s0 and s1) or 0)"),
    ],
)
def test_an_expression_in_words(expression: Expression, words: str) -> None:
    assert text(expression) == words


@given(EXPRESSIONS, VALUES)
def test_the_words_say_what_the_expression_means(
    expression: Expression, values: dict[str, int]
) -> None:
    expected = meaning(expression, values)
    if expected is None:
        return
    names = {**values, "min": min, "max": max}
    # Python's "and" gives an operand, ours 0 or 1: only whether they are true is compared.
    logical = any(f" {name} " in text(expression) for name in ("and", "or"))
    if not logical:
        assert eval(text(expression), names) == expected
    assert text(expression).count("(") == text(expression).count(")")


@given(EXPRESSIONS)
def test_the_symbols_of_an_expression(expression: Expression) -> None:
    found = set(symbols_of(expression))
    assert found == {name for name in SYMBOLS if name in text(expression)}
