"""Normalization to a mean of zero and a deviation of one, and its gradient. Worker only.

Layer norm, group norm and batch norm differ in the numbers that they normalize together. All steps
stay in the range of numbers: the variance of large float32 numbers is above float32's range, and
the inverse of its root below; such numbers are scaled by a power of two, which rounds nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers with a smaller inverse deviation are scaled.
_SMALL, _SCALE = 2.0**-50, 2.0**-64


def moments(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Return mean and variance along ``dims``, which keep size 1, in double precision.

    Args:
        x: float32, any strides.
        dims: Non-negative dimensions.
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

    All tensors broadcast with ``x``.

    Args:
        x: float32.
        mean: Mean of each row, float64.
        rstd: Inverse deviation of each row, float64.
        weight: The same for all numbers that lie side by side, any dtype.
        bias: The same for all numbers that lie side by side, any dtype.
    """
    one = torch.ones((), dtype=torch.float64)  # A Python number would have the default dtype.
    scale = torch.where(rstd < _SMALL, _SCALE * one, one)
    middle, factor = mean * scale, rstd / scale
    if weight is not None:
        factor = factor * weight.double()
    # In two parts: float32 cannot hold the mean of large numbers that hardly differ.
    near = middle.to(torch.float32)
    shift = (near.double() - middle) * factor
    if bias is not None:
        shift = shift + bias.double()
    scale, near, factor, shift = (
        made(part.to(torch.float32)) for part in (scale, near, factor, shift)
    )
    return (x * scale - near) * factor + shift


def made(one: Tensor) -> Tensor:
    """Return the tensor so that its elements are computed once, before the code that uses them."""
    return one.as_strided(one.shape, one.stride())


def gradient_of_x(scaled: Tensor, difference: Tensor, rstd: Tensor, dims: list[int]) -> Tensor:
    """Return the gradient of the normalized input, where weights differ within rows.

    Args:
        scaled: The gradient of the result times the weight, float32 or float64.
        difference: The normalized input, less its mean; of the same dtype.
        rstd: Inverse deviation, of the same dtype.
        dims: The dimensions along which moments were taken.
    """
    average = scaled.mean(dims, keepdim=True)
    # Single products of three large or small numbers may leave the range; the slope does not.
    slope = (scaled.double() * difference.double()).mean(dims, keepdim=True)
    slope = (slope * rstd.double() ** 3).to(scaled.dtype)
    return rstd * (scaled - average) - slope * difference
