"""Group norm, batch norm and their gradients, by the steps of ``normalized_rows``. Worker only.

Inductor's variances of large numbers are infinite; its group norm multiplies the mean by the weight
before subtracting it from a number; its batch norm by running statistics normalizes before it
multiplies by the weight. Each of these leaves the range of numbers where the result, or eager, does
not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .normalized_rows import made, moments, normalized
from .result_layout import laid_out

_HALF = (torch.float16, torch.bfloat16)


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    samples: Any,
    channels: Any,
    pixels: Any,
    groups: Any,
    eps: float,
) -> Any:
    """Return the op's results: normalized tensor, mean and inverse deviation of each group.

    ``NotImplemented`` for double precision, and for tensors without elements.
    """
    if x.dtype is torch.float64 or _is_empty(x):
        return NotImplemented
    rows = x.to(torch.float32).reshape(samples, groups, channels // groups, pixels)
    mean, var = moments(rows, [2, 3])
    # A mean of a group with an infinity becomes NaN, as eager's running mean does.
    mean = mean + (var - var)
    rstd = torch.rsqrt(var + eps)
    weight, bias = (
        None if one is None else one.reshape(1, groups, channels // groups, 1)
        for one in (weight, bias)
    )
    result = normalized(rows, mean, rstd, weight, bias).to(x.dtype).reshape(x.shape)
    of_groups = (one.to(x.dtype).reshape(samples, groups) for one in (mean, rstd))
    return laid_out(result, [x]), *of_groups


def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    samples: Any,
    channels: Any,
    pixels: Any,
    groups: Any,
    output_mask: list[bool],
) -> Any:
    """Return the gradients of ``x``, weight and bias; arguments as of the op.

    ``NotImplemented`` for tensors without elements.
    """
    if _is_empty(x):
        return NotImplemented
    wide, per_group = torch.float32 if x.dtype in _HALF else x.dtype, channels // groups
    grad_rows, x_rows = (
        one.to(wide).reshape(samples, groups, per_group, pixels) for one in (grad, x)
    )
    mean, rstd = (one.to(wide).reshape(samples, groups, 1, 1) for one in (mean, rstd))
    difference = x_rows - mean
    slope = (grad_rows * difference).double().sum(3, keepdim=True)
    total = grad_rows.double().sum(3, keepdim=True)
    dtype = x.dtype if weight is None else weight.dtype
    of_x = of_weight = of_bias = None
    if output_mask[0]:
        factor = None if weight is None else weight.double().reshape(1, groups, per_group, 1)
        of_rows = _gradient_of_x(grad_rows, difference, total, slope, rstd, factor, [2])
        of_x = laid_out(of_rows.to(x.dtype).reshape(x.shape), [x])
    if output_mask[1]:
        of_weight = (slope * rstd.double()).sum(0).reshape(channels).to(dtype)
    if output_mask[2]:
        of_bias = total.sum(0).reshape(channels).to(dtype)
    return of_x, of_weight, of_bias


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    """Return the op's results: normalized tensor, mean and inverse deviation of each channel.

    ``NotImplemented`` for double precision, for tensors without elements, and where running
    statistics are written to.
    """
    has_statistics = running_mean is not None and running_var is not None
    if x.dtype is torch.float64 or _is_empty(x) or training == has_statistics:
        return NotImplemented
    narrow = x.to(torch.float32)
    weight, bias = (None if one is None else _by_channel(one, x) for one in (weight, bias))
    if not training:
        assert running_mean is not None
        assert running_var is not None
        nothing = x.new_zeros((0,))
        scale = torch.rsqrt(_by_channel(running_var, x).double() + eps)
        if weight is not None:
            scale = scale * weight.double()
        shift = -_by_channel(running_mean, x).double() * scale
        if bias is not None:
            shift = shift + bias.double()
        result = narrow * made(scale.to(torch.float32)) + made(shift.to(torch.float32))
        return result.to(x.dtype), nothing, nothing.clone()
    mean, var = moments(narrow, _all_but_channels(x))
    shifted = var + eps
    # Where the deviation is zero, the op takes zero for its inverse.
    rstd = torch.where(shifted == 0, torch.zeros_like(shifted), torch.rsqrt(shifted))
    result = normalized(narrow, mean, rstd, weight, bias).to(x.dtype)
    return result, *(one.to(x.dtype).reshape(x.shape[1]) for one in (mean, rstd))


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_rstd: Tensor | None,
    training: bool,
    eps: float,
    output_mask: list[bool],
) -> Any:
    """Return the gradients of ``x``, weight and bias; arguments as of the op.

    ``NotImplemented`` for tensors without elements.
    """
    mean, of_deviation = (save_mean, save_rstd) if training else (running_mean, running_var)
    if _is_empty(x) or mean is None or of_deviation is None:
        return NotImplemented
    wide = torch.float32 if x.dtype in _HALF else x.dtype
    rstd = _by_channel(of_deviation, x)
    rstd = (rstd if training else torch.rsqrt(rstd.double() + eps)).to(wide)
    grad_wide, difference = grad.to(wide), x.to(wide) - _by_channel(mean, x).to(wide)
    dims, dtype = _all_but_channels(x), x.dtype if weight is None else weight.dtype
    slope = (grad_wide * difference).double().sum(dims, keepdim=True)
    total = grad_wide.double().sum(dims, keepdim=True)
    factor = None if weight is None else _by_channel(weight, x).double()
    of_x = of_weight = of_bias = None
    if output_mask[0] and training:
        of_x = _gradient_of_x(grad_wide, difference, total, slope, rstd, factor, []).to(x.dtype)
    elif output_mask[0]:
        scale = rstd.double() if factor is None else rstd.double() * factor
        of_x = (grad_wide * made(scale.to(wide))).to(x.dtype)
    if output_mask[1]:
        of_weight = (slope * rstd.double()).reshape(x.shape[1]).to(dtype)
    if output_mask[2]:
        of_bias = total.reshape(x.shape[1]).to(dtype)
    return of_x, of_weight, of_bias


def _gradient_of_x(
    grad: Tensor,
    difference: Tensor,
    total: Tensor,
    slope: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    dims: list[int],
) -> Tensor:
    """Return the gradient of the normalized input, in float32 or float64.

    Args:
        grad: The gradient of the result.
        difference: The normalized input, less its mean.
        total: Each channel's sum of ``grad``, float64.
        slope: Each channel's sum of ``grad * difference``, float64.
        rstd: Inverse deviation.
        weight: Of each channel, float64.
        dims: The dimensions of channels that were normalized together.
    """
    count = grad.numel() // total.numel()
    inverse = rstd.double()
    scale = inverse
    if weight is not None:
        scale, total, slope = inverse * weight, total * weight, slope * weight
    if dims:
        total, slope = total.mean(dims, keepdim=True), slope.mean(dims, keepdim=True)
    shift, of_difference = total / count * inverse, slope / count * inverse**3
    scale, shift, of_difference = (
        made(one.to(grad.dtype)) for one in (scale, shift, of_difference)
    )
    return grad * scale - shift - of_difference * difference


def _is_empty(x: Tensor) -> bool:
    return math.prod(size for size in x.shape if not isinstance(size, torch.SymInt)) == 0


def _by_channel(one: Tensor, x: Tensor) -> Tensor:
    return one.reshape(1, x.shape[1], *[1] * (x.dim() - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]
