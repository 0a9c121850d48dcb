"""Turns a pattern and its guards into the program that C++ runs (``csrc/pattern.h``). Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from .._base.data_class import dataclass
from .guards import Expression, Guards

_FIXED, _BINDS, _REPEATS, _FOLLOWS = range(4)
_END, _PUSH, _SYMBOL = range(3)
_BINARY = {
    "+": 3,
    "*": 4,
    "min": 5,
    "max": 6,
    "//": 7,
    "%": 8,
    "==": 9,
    "!=": 10,
    "<": 11,
    "<=": 12,
}
_NOT, _KEEP_IF_ZERO, _KEEP_IF_NOT, _TRUTH = range(13, 17)

# A pattern with more symbols is matched in Python only.
_MOST_SYMBOLS = 32


@dataclass(frozen=True, slots=True)
class NativePattern:
    """A program, and the name under which it is put into and removed from C++'s table."""

    name: bytes
    program: bytes


def pattern_program(words: Sequence[Expression], guards: Guards) -> bytes | None:
    """Return the program of a pattern with these words, as int64; ``None`` if C++ cannot run it."""
    numbers: dict[str, int] = {}
    code: list[int] = []
    kinds: list[int] = []
    for word in words:
        if isinstance(word, int):
            kinds += (_FIXED, word)
        elif isinstance(word, str):
            kinds += (
                _REPEATS if word in numbers else _BINDS,
                numbers.setdefault(word, len(numbers)),
            )
        else:
            kinds += (_FOLLOWS, 0)
    if set(guards.ranges) != set(numbers) or len(numbers) > _MOST_SYMBOLS:
        return None
    for index, word in enumerate(words):
        if not isinstance(word, int | str):
            kinds[2 * index + 1] = len(code)
            _write_whole(word, numbers, code)
    starts = []
    for condition in guards.conditions:
        starts.append(len(code))
        _write_whole(condition, numbers, code)
    ranges = [bound for name in numbers for bound in guards.ranges[name]]
    return array(
        "q", [len(words), len(numbers), len(starts), *kinds, *ranges, *starts, *code]
    ).tobytes()


def _write_whole(expression: Expression, numbers: dict[str, int], code: list[int]) -> None:
    _write(expression, numbers, code)
    code.append(_END)


def _write(expression: Expression, numbers: dict[str, int], code: list[int]) -> None:
    if isinstance(expression, str):
        code += (_SYMBOL, numbers[expression])
        return
    if isinstance(expression, int):
        code += (_PUSH, int(expression))
        return
    operator, *operands = expression
    if operator in ("and", "or"):
        _write_logic(operator, operands, numbers, code)
        return
    _write(operands[0], numbers, code)
    if operator == "not":
        code.append(_NOT)
    for operand in operands[1:]:
        _write(operand, numbers, code)
        code.append(_BINARY[operator])


def _write_logic(
    operator: str, operands: Sequence[Expression], numbers: dict[str, int], code: list[int]
) -> None:
    jump = _KEEP_IF_ZERO if operator == "and" else _KEEP_IF_NOT
    places = []
    for operand in operands[:-1]:
        _write(operand, numbers, code)
        code += (jump, 0)
        places.append(len(code) - 1)
    _write(operands[-1], numbers, code)
    for place in places:
        code[place] = len(code)
    code.append(_TRUTH)
