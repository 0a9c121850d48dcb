"""A layer norm and its gradient, in steps that stay in the range of numbers. Worker only.

Inductor multiplies the gradient by a row's length before it subtracts sums, and normalizes each
element before the row's slope is known: either step leaves the range of numbers where eager does
not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .normalized_rows import gradient_of_x, moments, normalized

_HALF = (torch.float16, torch.bfloat16)


def layer_norm(
    x: Tensor,
    normalized_shape: list[Any],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Any:
    """Return the op's results: normalized tensor, mean and inverse deviation of each row.

    ``NotImplemented`` for double precision, and for tensors without elements.
    """
    if x.dtype is torch.float64 or 0 in x.shape:
        return NotImplemented
    x = x.contiguous()
    inner = list(range(x.dim() - len(normalized_shape), x.dim()))
    narrow = x.to(torch.float32)
    mean, var = moments(narrow, inner)
    # A mean of a row with an infinity becomes NaN, as eager's running mean does.
    mean = mean + (var - var)
    rstd = torch.rsqrt(var + eps)
    result = normalized(narrow, mean, rstd)
    if weight is not None:
        result = result * weight.to(torch.float32)
    if bias is not None:
        result = result + bias.to(torch.float32)
    return result.to(x.dtype), mean.to(x.dtype), rstd.to(x.dtype)


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: list[Any],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: list[bool],
) -> Any:
    """Return the gradients of ``x``, ``weight`` and ``bias``; arguments as of the op.

    ``NotImplemented`` for tensors without elements.
    """
    rows = x.dim() - len(normalized_shape)
    sizes = [size for size in x.shape if not isinstance(size, torch.SymInt)]
    if math.prod(sizes) == 0:
        return NotImplemented
    outer, inner = list(range(rows)), list(range(rows, x.dim()))
    wide = torch.float32 if x.dtype in _HALF else x.dtype
    grad_wide, x_wide = grad.to(wide), x.to(wide)
    mean, rstd = (one.reshape(*x.shape[:rows], *[1] * len(inner)).to(wide) for one in (mean, rstd))
    difference = x_wide - mean
    scaled = grad_wide if weight is None else grad_wide * weight.to(wide)
    of_x = of_weight = of_bias = None
    if output_mask[0]:
        of_x = gradient_of_x(scaled, difference, rstd, inner).to(x.dtype)
    if output_mask[1] and weight is not None:
        of_weight = _over_rows(grad_wide * (difference * rstd), outer).to(weight.dtype)
    if output_mask[2] and bias is not None:
        of_bias = _over_rows(grad_wide, outer).to(bias.dtype)
    return of_x, of_weight, of_bias


def _over_rows(values: Tensor, outer: list[int]) -> Tensor:
    return values.sum(outer) if outer else values.clone()
