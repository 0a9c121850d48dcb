"""Guards: the conditions under which a dynamic specialisation may serve a call. Pure.

A dynamic specialisation is compiled for a *pattern*: a key in which some sizes, strides and numbers
are symbols, or expressions of symbols. AOTInductor's libraries do not check their inputs, so a call
is served only if its key is an instance of the pattern and the *guards* hold: each symbol is within
its range, and every condition that the compiler relied on is true.

Calls and patterns are compared by their words (``key_words``), in the same way in Python and in
C++. Values are 64-bit integers; an expression that overflows or divides by zero is no match.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._base.data_class import dataclass

# A symbol's name, an int, or a list with an operator and its operands: ["*", "s0", 4].
Expression = Any

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1

# Operator -> number of its operands; 0 means two or more.
OPERATORS = {
    "+": 0,
    "*": 0,
    "min": 0,
    "max": 0,
    "and": 0,
    "or": 0,
    "//": 2,
    "%": 2,
    "==": 2,
    "!=": 2,
    "<": 2,
    "<=": 2,
    "not": 1,
}


class NoValueError(Exception):
    """An expression has no value in 64 bits: it overflows, divides by zero or lacks a symbol."""


@dataclass(frozen=True, slots=True)
class Guards:
    """The ranges and conditions that the symbols of a pattern must meet.

    Attributes:
        ranges: Lowest and highest value of each symbol, both included, by name.
        conditions: Expressions whose values must not be zero.
    """

    ranges: Mapping[str, tuple[int, int]]
    conditions: tuple[Expression, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the guards as JSON values, for an entry."""
        return {
            "ranges": {name: list(bounds) for name, bounds in sorted(self.ranges.items())},
            "conditions": list(self.conditions),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Guards:
        """Return the guards that ``to_json`` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: ``values`` are no guards.
        """
        ranges = {}
        for name, (low, high) in values["ranges"].items():
            if not (_is_int(low) and _is_int(high) and low >= INT64_MIN and high <= INT64_MAX):
                raise ValueError(f"range of {name}: {low!r}, {high!r}")
            ranges[name] = (low, high)
        conditions = values["conditions"]
        if not isinstance(conditions, list):
            raise TypeError(f"conditions: {conditions!r}")
        guards = cls(ranges, tuple(conditions))
        for condition in conditions:
            guards.check(condition)
        return guards

    def check(self, expression: Expression) -> None:
        """Raise unless ``expression`` is a valid expression of symbols that have a range.

        Raises:
            ValueError, TypeError: ``expression`` is not valid, or a symbol has no range.
        """
        missing = set(symbols_of(expression)) - set(self.ranges)
        if missing:
            raise ValueError(f"symbols without a range: {sorted(missing)}")

    def hold(self, symbols: Mapping[str, int]) -> bool:
        """Return whether the symbols' values are within their ranges and meet all conditions."""
        try:
            if not all(low <= symbols[name] <= high for name, (low, high) in self.ranges.items()):
                return False
            return all(evaluate(condition, symbols) for condition in self.conditions)
        except (NoValueError, KeyError):
            return False


def match(
    call: Sequence[int], pattern: Sequence[Expression], guards: Guards
) -> dict[str, int] | None:
    """Return the values of a pattern's symbols in a call, or ``None`` if the call is no instance.

    The first word of the pattern that is a symbol's name binds the symbol; at further words with
    the same name, the call must have the same value.

    Args:
        call: The words of the call's key, as signed integers.
        pattern: The words of the pattern: ints, symbols and expressions of symbols.
        guards: The guards that the symbols' values must meet.
    """
    if len(call) != len(pattern):
        return None
    symbols: dict[str, int] = {}
    derived: list[tuple[int, Expression]] = []
    for value, word in zip(call, pattern, strict=True):
        if isinstance(word, int):
            if value != word:
                return None
        elif isinstance(word, str):
            if symbols.setdefault(word, value) != value:
                return None
        else:
            derived.append((value, word))
    if not guards.hold(symbols):
        return None
    try:
        if all(evaluate(expression, symbols) == value for value, expression in derived):
            return symbols
    except NoValueError:
        pass
    return None


def evaluate(expression: Expression, symbols: Mapping[str, int]) -> int:
    """Return the value of ``expression``; comparisons and logic give 0 or 1.

    Raises:
        NoValueError: The expression has no value in 64 bits.
    """
    if isinstance(expression, str):
        try:
            return symbols[expression]
        except KeyError as error:
            raise NoValueError(expression) from error
    if isinstance(expression, int):
        return _checked(int(expression))
    operator, *operands = expression
    if operator == "and":  # As in C++, operands after a false one need not have a value.
        return int(all(evaluate(one, symbols) for one in operands))
    if operator == "or":
        return int(any(evaluate(one, symbols) for one in operands))
    values = [evaluate(one, symbols) for one in operands]
    return _checked(_apply(operator, values))


def _apply(operator: str, values: list[int]) -> int:
    if operator in ("min", "max"):
        return min(values) if operator == "min" else max(values)
    if operator == "not":
        return int(not values[0])
    result, *others = values
    for value in others:
        if operator == "+":
            result = _checked(result + value)
        elif operator == "*":
            result = _checked(result * value)
        elif operator in ("//", "%"):
            if value == 0:
                raise NoValueError("division by zero")
            result = result // value if operator == "//" else result % value
        else:
            result = _COMPARISONS[operator](result, value)
    return result


_COMPARISONS = {
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "<": lambda a, b: int(a < b),
    "<=": lambda a, b: int(a <= b),
}


def symbols_of(expression: Expression) -> Iterator[str]:
    """Give the symbols in ``expression``, each as often as it occurs.

    Raises:
        ValueError: ``expression`` is no valid expression.
    """
    if isinstance(expression, str):
        yield expression
    elif isinstance(expression, list | tuple):
        if not expression or str(expression[0]) not in OPERATORS:
            raise ValueError(f"no expression: {expression!r}")
        operator, *operands = expression
        wanted = OPERATORS[operator]
        if len(operands) != wanted if wanted else len(operands) < 2:
            raise ValueError(f"{operator} of {len(operands)} operands")
        for operand in operands:
            yield from symbols_of(operand)
    elif not _is_int(expression):
        raise ValueError(f"no expression: {expression!r}")


def text(expression: Expression) -> str:
    """Return ``expression`` as people write it."""
    if not isinstance(expression, list | tuple):
        return str(expression)
    operator, *operands = expression
    texts = [text(one) for one in operands]
    if operator in ("min", "max"):
        return f"{operator}({', '.join(texts)})"
    if operator == "not":
        return f"(not {texts[0]})"
    return "(" + f" {operator} ".join(texts) + ")"


def _checked(value: int) -> int:
    if not INT64_MIN <= value <= INT64_MAX:
        raise NoValueError("overflow")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
