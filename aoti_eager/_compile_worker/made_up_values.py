"""Numbers of each dtype that code may treat specially; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# At most so many of a call's own numbers get neighbouring values.
_MOST_OWN = 12


def float_values(dtype: torch.dtype, own: Sequence[float] = ()) -> list[float]:
    """Return structured values of a floating-point dtype.

    Args:
        dtype: float16, bfloat16, float32 or float64.
        own: The call's own numbers: thresholds lie at them.
    """
    fi = torch.finfo(dtype)
    smallest = fi.smallest_normal * fi.eps
    root = math.sqrt(fi.max)
    values = [
        *(0.0, -0.0, math.nan, math.inf, -math.inf, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5),
        *(1.5, -1.5, 2.5, -2.5, 10.0, 0.1, -0.1, 6.0, -7.3, 123.456, math.pi, 2 * math.pi),
        # At the last one, exp overflows in float32 and cosh does not.
        *(20.0, -20.0, 88.5, 89.2, -89.2, math.log(fi.max) * 1.004, -math.log(fi.max) * 1.02),
        *(1e-8, -1e-8, 1e-3, fi.eps, 1 + fi.eps, 1 - fi.eps / 2, -1 + fi.eps / 2, 0.5 - fi.eps / 4),
        *(smallest, -smallest, fi.smallest_normal, -fi.smallest_normal / 2),
        # Numbers whose squares overflow and underflow, whole numbers too large for a fraction.
        *(1.5 * root, -1.5 * root, 0.7 / root, -0.7 / root, 1 / fi.eps + 1, 0.25 / fi.eps + 0.5),
        *(fi.max, -fi.max, fi.max / 2, min(1e4, fi.max / 8), -min(1e6, fi.max / 16)),
    ]
    for number in own[:_MOST_OWN]:
        if math.isfinite(number) and abs(number) < fi.max:
            step = abs(number) * fi.eps
            values += [number, number + step, number - step, -number]
    return _distinct(torch.tensor(values, dtype=torch.float64).to(dtype))


def int_values(dtype: torch.dtype, own: Sequence[float] = ()) -> list[int]:
    """Return structured values of an integer dtype.

    The least integer is left out: divided by -1 it ends the process, in the original too.
    """
    ii = torch.iinfo(dtype)
    values = [0, 1, -1, 2, -2, 3, 4, 5, 7, -7, 8, 9, 10, 100]
    values += [
        n + d for n in (16, 32, 64, 128, 256, 32768, 65536, 1 << 31, 1 << 32) for d in (-1, 0)
    ]
    values += [math.isqrt(ii.max), math.isqrt(ii.max) + 1, -math.isqrt(ii.max) - 1, ii.max // 3]
    values += [ii.max, ii.max - 1, ii.max // 2, ii.max // 2 + 1, ii.min + 1, ii.min // 2]
    values += [n for one in own[:_MOST_OWN] if float(one).is_integer() for n in _beside(int(one))]
    return sorted({value for value in values if ii.min < value <= ii.max or value == 0})


def number_values(kind: str) -> list[Any]:
    """Return the values that a number in a Tensor slot takes, an ordinary one first."""
    values: dict[str, list[Any]] = {
        "bool": [True, False],
        "int": [2, 3, -1, 0, 1, 7, -5, 1 << 20],
        "float": [1.5, -2.5, 0.1, 0.0, 3.0, -0.0, 1e-8, 0.5, 1e20, math.inf, -1.0, math.nan, 1.0],
        "complex": [1.5 + 0.5j, -2.0 + 0j, 0.5 - 1.5j, 0j],
    }
    return values[kind]


def numbers_within(value: Any) -> Iterator[float]:
    """Give the finite numbers in arguments, or in a function's document."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, (int, float)):
        if math.isfinite(value):
            yield float(value)
    elif isinstance(value, Mapping):
        for kind, one in value.items():
            if kind == "float" and isinstance(one, str):
                yield from numbers_within(float.fromhex(one))
            elif not isinstance(one, str):
                yield from numbers_within(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from numbers_within(one)


def distinct_numbers(values: Iterable[float]) -> tuple[float, ...]:
    """Return numbers, each once, in their order."""
    return tuple(dict.fromkeys(float(one) for one in values))


def _beside(number: int) -> tuple[int, int, int]:
    return number - 1, number, number + 1


def _distinct(values: Tensor) -> list[float]:
    found: dict[str, float] = {}
    for value in values.tolist():
        found.setdefault(str(value), float(value))
    return list(found.values())
