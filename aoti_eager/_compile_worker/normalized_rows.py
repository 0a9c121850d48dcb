"""Numbers taken to a mean of zero and a deviation of one, and the gradient of that. Worker only.

Layer norm, group norm and batch norm differ in what they take together. All steps stay in the range
of numbers: the variance of large float32 numbers is beyond float32, and the inverse of its root
below; such numbers are scaled by a power of two, which rounds nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What has a smaller inverse deviation is scaled.
_SMALL, _SCALE = 2.0**-50, 2.0**-64


def moments(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Return mean and variance along ``dims``, which stay as 1, in double precision.

    Args:
        x: float32, any strides.
        dims: None of them negative.
    """
    wide = x.double()
    mean = wide.mean(dims, keepdim=True)
    difference = wide - mean
    return mean, (difference * difference).mean(dims, keepdim=True)


def normalized(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return ``(x - mean) * rstd * weight + bias`` in float32, in two steps that round.

    Args:
        x: float32.
        mean: Of each row, float64; it broadcasts with ``x``, as the others do.
        rstd: Inverse deviation of each row, float64.
        weight: One for all numbers that lie side by side, any dtype.
        bias: Likewise.
    """
    one = torch.ones((), dtype=torch.float64)  # A number would have the default dtype.
    scale = torch.where(rstd < _SMALL, _SCALE * one, one)
    middle, factor = mean * scale, rstd / scale
    if weight is not None:
        factor = factor * weight.double()
    # In two parts: the mean of large numbers that hardly differ is no float32 number.
    near = middle.to(torch.float32)
    shift = (near.double() - middle) * factor
    if bias is not None:
        shift = shift + bias.double()
    scale, near, factor, shift = (
        made(part.to(torch.float32)) for part in (scale, near, factor, shift)
    )
    return (x * scale - near) * factor + shift


def made(one: Tensor) -> Tensor:
    """Return the tensor, computed before what uses it, once for each of its elements."""
    return one.as_strided(one.shape, one.stride())


def gradient_of_x(scaled: Tensor, difference: Tensor, rstd: Tensor, dims: list[int]) -> Tensor:
    """Return the gradient of what was normalized, where weights differ within rows.

    Args:
        scaled: The gradient of the result times the weight, float32 or float64.
        difference: What was normalized, less its mean; of the same dtype.
        rstd: Inverse deviation, of the same dtype.
        dims: Along which moments were taken.
    """
    average = scaled.mean(dims, keepdim=True)
    # The product of three large or small numbers, which the slope as a whole is not.
    slope = (scaled.double() * difference.double()).mean(dims, keepdim=True)
    slope = (slope * rstd.double() ** 3).to(scaled.dtype)
    return rstd * (scaled - average) - slope * difference
