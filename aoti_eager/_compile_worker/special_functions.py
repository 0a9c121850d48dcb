"""Functions of two numbers that eager computes more exactly than Inductor's code. Worker only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

# By dtype: an integer dtype of its size, the bits of infinity, and the bits of the least quiet NaN.
_QUIET_BITS = {
    torch.float32: (torch.int32, 0x7F800000, 0x7FC00000),
    torch.float64: (torch.int64, 0x7FF << 52, 0xFFF << 51),
}


def in_scalar_code(op: Any) -> Callable[..., Any]:
    """Return ``op`` in double precision for float32 tensors that differ in strides.

    Eager computes these number by number, with functions that are more exact than the functions for
    vectors. Near a result of zero, every digit counts.
    """

    def decomposition(x: Tensor, other: Tensor) -> Any:
        if x.dtype is not torch.float32 or x.shape != other.shape:
            return NotImplemented
        pairs = zip(x.stride(), other.stride(), strict=True)
        if all(statically_known_true(mine == theirs) for mine, theirs in pairs):
            return NotImplemented
        return op(x.double(), other.double()).to(x.dtype)

    return decomposition


def of_quiet(takes_first: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """Return a function that returns one of two numbers, and NaN for a signalling NaN.

    Args:
        takes_first: Returns where the first number is the result.
    """

    def decomposition(x: Tensor, other: Tensor) -> Any:
        if x.dtype not in _QUIET_BITS:
            return NotImplemented
        result = torch.where(takes_first(x, other), x, other)
        return torch.where(_signals(x) | _signals(other), float("nan"), result)

    return decomposition


def _signals(x: Tensor) -> Tensor:
    """Return where numbers are signalling NaN: without the bit that makes a NaN quiet."""
    whole, infinity, quiet = _QUIET_BITS[x.dtype]
    magnitude = x.view(whole) & torch.iinfo(whole).max
    return (magnitude > infinity) & (magnitude < quiet)
