"""The precision of eager's kernels: half precision computed wide, numbers rounded. Worker only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
_FLOATS = (*HALF, torch.float32, torch.float64)
# A decomposition; ``NotImplemented`` leaves the call to Inductor.
Decomposition = Callable[..., Any]


def for_floats(function: Decomposition) -> Decomposition:
    """Return a function that leaves other dtypes, and calls with several dtypes, to Inductor."""

    @functools.wraps(function)
    def decomposition(*args: Any, **kwargs: Any) -> Any:
        args = _with_narrow_numbers(args)
        dtypes = {one.dtype for one in args if isinstance(one, Tensor)}
        if len(dtypes) != 1 or not dtypes <= set(_FLOATS):
            return NotImplemented
        return function(*args, **kwargs)

    return decomposition


def _with_narrow_numbers(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments with zero-dimensional float64 tensors as float32, beside float32 tensors.

    Eager's kernels take them so. A number in a tensor's place is such a tensor if it is an input.
    """
    tensors = [one for one in args if isinstance(one, Tensor)]
    numbers = [one for one in tensors if one.dim() == 0 and one.dtype is torch.float64]
    others = [one for one in tensors if not any(one is number for number in numbers)]
    rest = {one.dtype for one in others}
    # Without a tensor that has dimensions, the result takes the dtype of the wider one.
    if not numbers or rest != {torch.float32} or all(one.dim() == 0 for one in others):
        return args
    return tuple(
        one.to(torch.float32) if any(one is number for number in numbers) else one for one in args
    )


def wide(function: Decomposition) -> Decomposition:
    """Return a function that computes half precision as float32, and rounds its result once."""

    @functools.wraps(function)
    def decomposition(*args: Any, **kwargs: Any) -> Any:
        dtype = next(one.dtype for one in args if isinstance(one, Tensor))
        if dtype not in HALF:
            return function(*args, **kwargs)
        args = tuple(one.to(torch.float32) if isinstance(one, Tensor) else one for one in args)
        return function(*args, **kwargs).to(dtype)

    return decomposition


def with_numbers(function: Decomposition) -> Decomposition:
    """Return a function that takes a number in a tensor's place, as a tensor like the other one."""

    @functools.wraps(function)
    def decomposition(*args: Any) -> Any:
        like = next(one for one in args if isinstance(one, Tensor))
        return function(
            *(one if isinstance(one, Tensor) else number_like(one, like) for one in args)
        )

    return decomposition


def with_whole_number(op: Any) -> Decomposition:
    """Return a decomposition of ``op`` that does not round an input number to half precision."""

    def decomposition(x: Any, other: Any) -> Any:
        if isinstance(x, Tensor) and x.dtype in HALF and isinstance(other, torch.SymFloat):
            return op(x.to(torch.float32), other).to(x.dtype)
        return NotImplemented

    return decomposition


def rounded(number: Any, dtype: torch.dtype) -> Any:
    """Return a number rounded as by kernels that take numbers in the tensor's own dtype.

    Inductor itself rounds a number that is an input.
    """
    if dtype not in HALF or not isinstance(number, int | float):
        return number
    return float(torch.tensor(float(number)).to(dtype))


def number_like(number: Any, like: Tensor) -> Tensor:
    """Return a number as a tensor with the dtype and the value that eager's kernel uses."""
    return torch.full_like(like, rounded(number, like.dtype))


def is_one(number: Any) -> bool:
    """Return whether ``number`` is one, and known while tracing."""
    return isinstance(number, int | float) and number == 1
