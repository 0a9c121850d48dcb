"""Sums, means and variances that are accumulated in double precision. Worker only.

Eager adds float32 in cascades and computes variances in double precision. Inductor adds number to
number in float32, so that its error grows with the count of numbers and with the distance of their
mean from zero. In double precision, every result is as exact as its dtype allows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

_aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)
_NARROW = (*_HALVES, torch.float32)
_INF = float("inf")
# So many float32 numbers can be added up in float32, with a sum for each lane of a vector.
_FEW = 1 << 12


def exact_sums() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions of reductions of floating-point tensors, by overload."""
    sums = (
        *(_aten.sum.default, _aten.sum.dim_IntList),
        *(_aten.mean.default, _aten.mean.dim),
        *(_aten.prod.default, _aten.prod.dim_int),
    )
    table: dict[Any, Callable[..., Any]] = {op: _in_double(op) for op in sums}
    table[_aten.linalg_vector_norm.default] = _vector_norm
    table[_aten.var.correction] = _var
    table[_aten.std.correction] = _std
    table[_aten.var_mean.correction] = _var_mean
    table[_aten.std_mean.correction] = _std_mean
    return table


def _in_double(op: Any) -> Callable[..., Any]:
    def decomposition(
        x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        result = dtype or x.dtype
        if _plain.get() or x.dtype not in _NARROW or result not in _NARROW:
            return NotImplemented
        if result.itemsize < x.dtype.itemsize:
            x = x.to(result)  # Eager sums numbers of the requested dtype.
        return op(_in_double_precision(x), *args, **kwargs).to(result)

    return decomposition


def _in_double_precision(x: Tensor) -> Tensor:
    if x.dtype not in _NARROW:
        return x
    # In two steps: Inductor has no vector code for the direct conversion.
    return x.to(torch.float32).to(torch.float64)


# True while sums keep their own precision.
_plain: ContextVar[bool] = ContextVar("plain_sums", default=False)


def with_plain_sums(function: Callable[..., Any], where: Callable[..., bool]) -> Callable[..., Any]:
    """Return a decomposition whose sums stay in float32 where eager's kernel sums in float32, too.

    Args:
        function: Inductor's decomposition.
        where: Returns whether sums stay in float32, from the call's arguments.
    """

    @functools.wraps(function)
    def decomposition(*args: Any, **kwargs: Any) -> Any:
        if args[0].dtype not in _NARROW or not where(*args):
            return function(*args, **kwargs)
        token = _plain.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _plain.reset(token)

    return decomposition


def adds_neighbours(x: Tensor, dim: int, *_: Any) -> bool:
    """Return whether the numbers to add along ``dim`` lie side by side, and are not too many.

    For numbers side by side, generated code has a sum for each lane of a vector, as eager's code.
    Otherwise generated code adds number to number, while eager works on a copy whose numbers lie
    side by side. With very many numbers, a lane's sum is inexact, too.
    """
    if x.dim() == 0 or x.dtype in _HALVES:
        return True
    # Where sizes vary, a kernel serves either the short rows or the long rows.
    return statically_known_true(x.stride(dim) == 1) and bool(x.shape[dim] <= _FEW)


def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """Return a norm of another order than 0, 1, 2 and infinity.

    Powers are float32, as eager's: a power that overflows is infinite. The sum and its root are
    double precision, and infinite where the sum is beyond float32.
    """
    result = dtype or x.dtype
    usual = ord in (0.0, 1.0, 2.0, _INF, -_INF)
    if usual or not x.dim() or x.dtype not in _NARROW or result not in _NARROW:
        return NotImplemented
    if result.itemsize < x.dtype.itemsize:
        x = x.to(result)
    dims = [one % x.dim() for one in dim] if dim else list(range(x.dim()))
    powers = x.to(torch.float32).abs() ** ord
    total = powers.double().sum(dims, keepdim=keepdim)
    total = torch.where(total > torch.finfo(torch.float32).max, _INF, total)
    return (total ** (1.0 / ord)).to(result)


def _var_mean(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    var, mean = _moments(x, dim, correction, keepdim)
    return var.to(x.dtype), mean.to(x.dtype)


def _std_mean(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    var, mean = _moments(x, dim, correction, keepdim)
    return var.sqrt().to(x.dtype), mean.to(x.dtype)


def _var(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _var_mean(x, *args, **kwargs)[0]  # type: ignore[no-any-return]


def _std(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # The root of the variance in double precision: the variance may be infinite in float32.
    return _std_mean(x, *args, **kwargs)[0]  # type: ignore[no-any-return]


def _moments(
    x: Tensor, dim: Sequence[int] | None, correction: float | None, keepdim: bool
) -> tuple[Tensor, Tensor]:
    """Return variance and mean in double precision, in two passes."""
    dims = [one % x.dim() for one in dim] if dim else list(range(x.dim()))
    wide = _in_double_precision(x)
    mean = wide.mean(dims, keepdim=True)
    difference = wide - mean
    total = (difference * difference).sum(dims, keepdim=keepdim)
    count: Any = 1
    for one in dims:
        count = count * x.shape[one]
    left = count - (1 if correction is None else correction)
    var = total / torch.sym_max(left, 0)  # type: ignore[no-untyped-call]
    mean = _mean_of_eager(x, mean, dims)
    return var, mean if keepdim else mean.squeeze(dims)


def _mean_of_eager(x: Tensor, mean: Tensor, dims: Sequence[int]) -> Tensor:
    """Return a mean that is NaN where eager's running mean has met an infinity on its way."""
    last = x
    for one in dims:
        last = last.narrow(one, x.shape[one] - 1, 1)
    # Inductor has no vector code for torch.isinf.
    infinite = (x.abs() == _INF).to(torch.float32).sum(list(dims), keepdim=True)
    only_last = torch.isinf(last) & (infinite == 1)
    return torch.where(torch.isinf(mean) & ~only_last, float("nan"), mean)
