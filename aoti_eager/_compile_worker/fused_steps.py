"""Ops whose kernels multiply and add in one step, rounded once. Worker only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .eager_precision import HALF, Decomposition, is_one, number_like, rounded, wide

_aten = torch.ops.aten


def fused(fma: Callable[..., Tensor]) -> dict[Any, Decomposition]:
    """Return the ops whose kernels multiply and add in one step."""

    @wide
    def multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Any:
        return fma(*torch.broadcast_tensors(a, b, c))  # type: ignore[no-untyped-call]

    def add(x: Tensor, other: Any, *, alpha: Any = 1) -> Any:
        if not isinstance(other, Tensor):
            other = rounded(other, x.dtype)
            if is_one(alpha):
                is_half = x.dtype in HALF and not isinstance(other, torch.SymFloat)
                return wide(lambda one: one + other)(x) if is_half else NotImplemented
            other = torch.full_like(x, other)
        elif is_one(alpha):
            return NotImplemented
        return multiply_add(other, number_like(alpha, x), x)

    def sub(x: Tensor, other: Any, *, alpha: Any = 1) -> Any:
        if not isinstance(other, Tensor):
            return add(x, -other, alpha=alpha)
        return NotImplemented if is_one(alpha) else add(x, other, alpha=-alpha)

    def rsub(x: Tensor, other: Any, alpha: Any = 1) -> Any:
        if not isinstance(other, Tensor):
            other = number_like(other, x)
        if is_one(alpha):
            return torch.sub(other, x)
        return multiply_add(x, number_like(-alpha, x), other)

    @wide
    def addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Any:
        return multiply_add(a if is_one(value) else value * a, b, x)

    @wide
    def tanh_backward(grad: Tensor, y: Tensor) -> Any:
        return grad * multiply_add(-y, y, torch.ones_like(y))

    @wide
    def lerp(start: Tensor, end: Tensor, weight: Any) -> Any:
        # The weight is rounded to the precision in which eager computes, then subtracted from one.
        if start.dtype is torch.float32:
            weight = float(torch.tensor(float(weight), dtype=torch.float32))
        is_small = abs(weight) < 0.5
        step = torch.full_like(start, weight if is_small else weight - 1)
        return multiply_add(step, end - start, start if is_small else end)

    return {
        _aten.lerp.Scalar: lambda start, end, weight: (
            NotImplemented if isinstance(weight, torch.SymFloat) else lerp(start, end, weight)
        ),
        _aten.add.Tensor: add,
        _aten.sub.Tensor: sub,
        _aten.rsub.Tensor: lambda x, other, *, alpha=1: rsub(x, other, alpha),
        _aten.rsub.Scalar: rsub,
        _aten.addcmul.default: addcmul,
        _aten.tanh_backward.default: tanh_backward,
    }
