"""Remainders and rounded quotients of floating-point numbers, as eager computes them. Worker only.

All are built on ``fmod``, which is exact: a rounded quotient may lie on the other side of a whole
number. Between tensors of half precision, eager rounds each step to half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
_FLOATS = (*_HALF, torch.float32, torch.float64)
# The ops that round their arguments or their steps to half precision.
_STEPS = ("div", "divide", "floor_divide", "fmod", "remainder")


def float_division() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions of remainders and rounded quotients, by overload."""
    table: dict[Any, Callable[..., Any]] = {
        _aten.fmod.Scalar: lambda x, other: _aten.fmod.Tensor(x, _rounded(other, x)),
        _aten.remainder.Scalar: lambda x, other: _aten.remainder.Tensor(x, _rounded(other, x)),
        _aten.remainder.Scalar_Tensor: lambda number, x: _aten.remainder.Tensor(
            _rounded(number, x), x
        ),
        _aten.fmod.Tensor: _of_one_dtype(_aten.fmod.Tensor),
        _aten.remainder.Tensor: _of_one_dtype(_aten.remainder.Tensor),
        _aten.div.Tensor_mode: _divide,
        _aten.div.Scalar_mode: _divide,
        _aten.floor_divide.default: lambda x, other: _divide(x, other, rounding_mode="floor"),
        _aten.floor_divide.Scalar: lambda x, other: _divide(x, other, rounding_mode="floor"),
    }
    return {op: _for_floats(function) for op, function in table.items()}


def _for_floats(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decomposition that leaves calls without floating-point results to Inductor.

    A first tensor of another dtype is converted to the result's dtype.
    """

    def decomposition(first: Any, other: Any, **kwargs: Any) -> Any:
        # The value of a number that is an input of the kernel does not change the result's dtype.
        plain = [1.0 if isinstance(one, torch.SymFloat) else one for one in (first, other)]
        dtype = torch.result_type(*plain)
        if dtype not in _FLOATS:
            return NotImplemented
        if isinstance(first, Tensor):
            first = first.to(dtype)
        return function(first, other, **kwargs)

    return decomposition


def _of_one_dtype(op: Any) -> Callable[..., Any]:
    """Return a decomposition of ``op`` that converts the second tensor to the first one's dtype."""

    def decomposition(x: Tensor, other: Tensor) -> Any:
        return NotImplemented if other.dtype is x.dtype else op(x, other.to(x.dtype))

    return decomposition


def step_rounding(op: str, dtypes: Sequence[torch.dtype]) -> dict[str, bool]:
    """Return the setting with which Inductor keeps a rounding to half precision between steps.

    Without the setting, Inductor drops the pair of a rounding and a widening.
    """
    name = op.partition("::")[2].partition(".")[0].rstrip("_")
    needed = name in _STEPS and any(one in _HALF for one in dtypes)
    return {"emulate_precision_casts": True} if needed else {}


def _rounded(number: Any, x: Tensor) -> Tensor:
    if x.dtype in _HALF and isinstance(number, int | float):
        number = float(torch.tensor(float(number)).to(x.dtype))
    return torch.full_like(x, number)


def _divide(x: Tensor, other: Any, *, rounding_mode: str | None) -> Any:
    if rounding_mode is None or not isinstance(x, Tensor):
        return NotImplemented
    # A single number is used as it is, and only the result is rounded.
    is_number = not isinstance(other, Tensor) or (
        isinstance(other.numel(), int) and other.numel() == 1
    )
    wide = x.to(torch.float32) if x.dtype in _HALF else x
    if not isinstance(other, Tensor):
        divisor = torch.full_like(wide, other)
    else:
        divisor = other.to(wide.dtype)
    steps_in = x.dtype if x.dtype in _HALF and not is_number else None

    def step(value: Tensor) -> Tensor:
        return value if steps_in is None else value.to(steps_in).to(torch.float32)

    function = _floor_quotient if rounding_mode == "floor" else _whole_quotient
    result = function(wide, divisor, step)
    # The result is laid out as the first tensor that is read for it, as eager's result is.
    return torch.where(wide == wide, result, result).to(x.dtype)


def _whole_quotient(x: Tensor, y: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.trunc(step(x / y))


def _floor_quotient(x: Tensor, y: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    quotient = step(x / y)
    modulus = torch.fmod(x, y)
    # Where the quotient is infinite, the remainder is meaningless.
    whole = torch.where(_is_infinite(quotient) & ~_is_infinite(x), x, step(x - modulus))
    result = step(whole / y)
    crosses = (modulus != 0) & ((y < 0) ^ (modulus < 0))
    result = torch.where(crosses, step(result - 1), result)
    floor = torch.floor(result)
    floor = torch.where(step(result - floor) > 0.5, step(floor + 1), floor)
    floor = torch.where(result == 0, torch.copysign(torch.zeros_like(x), quotient), floor)
    return torch.where(y == 0, quotient, floor)


def _is_infinite(x: Tensor) -> Tensor:
    return x.abs() == float("inf")  # Inductor has no vector code for torch.isinf.
