"""Sums, means and variances that are accumulated in double precision. Worker only.

Eager adds float32 in cascades and computes variances in double precision; Inductor adds number to
number in float32, so that its error grows with their count, and with how far their mean is from
zero. In double precision, every result is as exact as its dtype can say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_NARROW = (torch.float16, torch.bfloat16, torch.float32)


def exact_sums() -> dict[Any, Callable[..., Any]]:
    """Return how reductions of floating-point tensors are taken apart, by overload."""
    sums = (
        *(_aten.sum.default, _aten.sum.dim_IntList),
        *(_aten.mean.default, _aten.mean.dim),
        *(_aten.prod.default, _aten.prod.dim_int),
    )
    table: dict[Any, Callable[..., Any]] = {op: _in_double(op) for op in sums}
    table[_aten.var.correction] = _var
    table[_aten.std.correction] = _std
    table[_aten.var_mean.correction] = _var_mean
    table[_aten.std_mean.correction] = _std_mean
    return table


def _in_double(op: Any) -> Callable[..., Any]:
    def decomposition(x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        result = dtype or x.dtype
        if x.dtype not in _NARROW or result not in _NARROW:
            return NotImplemented
        if result.itemsize < x.dtype.itemsize:
            x = x.to(result)  # What is summed are numbers of the dtype that was asked for.
        return op(x.to(torch.float64), *args, **kwargs).to(result)

    return decomposition


def _var_mean(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    if x.dtype not in _NARROW:
        return NotImplemented
    wide = x.to(torch.float64)
    var, mean = _aten.var_mean.correction(wide, dim, correction=correction, keepdim=keepdim)
    return var.to(x.dtype), _mean_of_eager(x, mean, dim, keepdim).to(x.dtype)


def _mean_of_eager(x: Tensor, mean: Tensor, dim: Sequence[int] | None, keepdim: bool) -> Tensor:
    """Return a mean that is NaN where eager's running mean has met an infinity on its way."""
    if x.dim() == 0:
        return mean
    last = x
    for one in dim or range(x.dim()):
        last = last.narrow(one, -1, 1)
    if not keepdim:
        last = last.squeeze(list(dim or range(x.dim())))
    return torch.where(torch.isinf(mean) & ~torch.isinf(last), float("nan"), mean)


def _var(x: Tensor, dim: Sequence[int] | None = None, **kwargs: Any) -> Any:
    if x.dtype not in _NARROW:
        return NotImplemented
    return _aten.var.correction(x.to(torch.float64), dim, **kwargs).to(x.dtype)


def _std(x: Tensor, dim: Sequence[int] | None = None, **kwargs: Any) -> Any:
    # The root of the variance in double precision: in float32 that may be infinite.
    wide = x.to(torch.float64)
    return _aten.var.correction(wide, dim, **kwargs).sqrt().to(x.dtype)


def _std_mean(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    wide = x.to(torch.float64)
    var, mean = _aten.var_mean.correction(wide, dim, correction=correction, keepdim=keepdim)
    mean = _mean_of_eager(x, mean, dim, keepdim)
    return var.sqrt().to(x.dtype), mean.to(x.dtype)
