"""Decompositions for ops for which Inductor's own give other results than eager. Worker only.

Each function computes as eager's CPU kernel: in its order, in its precision, with its comparisons
(the direction of a comparison decides the result for a NaN and for a zero of either sign). Numbers
beside half precision follow eager, too: some kernels round them to the tensor's dtype, other
kernels do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .activations import (
    celu,
    elu,
    elu_backward,
    gelu,
    gelu_backward,
    gelu_backward_of_half,
    gelu_of,
    hardswish_backward,
    hardtanh_backward,
    into_zeros,
    logit,
    selu,
    smooth_l1_loss_backward,
    softshrink,
)
from .channel_norms import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
)
from .eager_precision import (
    Decomposition,
    for_floats,
    is_one,
    rounded,
    wide,
    with_numbers,
    with_whole_number,
)
from .exact_sums import exact_sums
from .float_division import float_division
from .fused_steps import fused
from .layer_norm import layer_norm, layer_norm_backward
from .result_layout import as_given, elementwise, first_last
from .special_functions import (
    in_scalar_code,
    of_quiet,
)

_aten = torch.ops.aten
_INF = float("inf")
# Inductor computes a whole power by products; each doubling of the exponent doubles the error.
_MOST_FACTORS = 4
# Kernels that take the op's tensors in another order than the op.
_ORDERS = {_aten.rsub.Tensor: first_last, _aten.smooth_l1_loss_backward.default: first_last}


def our_decompositions(fma: Callable[..., Tensor]) -> dict[Any, Decomposition]:
    """Return functions by overload for Inductor's table; ``NotImplemented`` means Inductor's own.

    Args:
        fma: Returns ``a * b + c`` of three tensors, rounded once.
    """
    ours = _elementwise(fma) | _of_rows()
    checked = {op: for_floats(function) for op, function in ours.items()}
    # The functions of ``float_division`` check dtypes themselves.
    return checked | {op: elementwise(function) for op, function in float_division().items()}


def _elementwise(fma: Callable[..., Tensor]) -> dict[Any, Decomposition]:
    """Return the elementwise ops, with results laid out as eager's."""
    table: dict[Any, Decomposition] = {
        _aten.elu.default: wide(elu),
        _aten.celu.default: wide(celu),
        _aten.selu.default: wide(selu),
        _aten.elu_backward.default: wide(elu_backward),
        _aten.sigmoid_backward.default: wide(lambda grad, y: grad * (1 - y) * y),
        _aten.hardtanh_backward.default: wide(hardtanh_backward),
        _aten.hardswish_backward.default: wide(hardswish_backward),
        _aten.smooth_l1_loss_backward.default: wide(smooth_l1_loss_backward),
        _aten.gelu.default: gelu_of(gelu),
        _aten.gelu_backward.default: gelu_of(gelu_backward, gelu_backward_of_half),
        _aten.logit.default: logit,
        _aten.round.decimals: wide(_round_decimals),
        _aten.clamp.default: _clamp,
        _aten.clamp_min.default: lambda x, low: _clamp(x, low),
        _aten.clamp_max.default: lambda x, high: _clamp(x, None, high),
        _aten.hardtanh.default: lambda x, low=-1.0, high=1.0: _clamp(x, low, high),
        _aten.pow.Tensor_Scalar: _pow,
        _aten.special_xlog1py.default: wide(_xlog1py),
        _aten.special_xlog1py.self_scalar: with_numbers(wide(_xlog1py)),
        _aten.special_xlog1py.other_scalar: with_numbers(wide(_xlog1py)),
        _aten.logaddexp.default: in_scalar_code(_aten.logaddexp.default),
        _aten.logaddexp2.default: in_scalar_code(_aten.logaddexp2.default),
        _aten.fmax.default: of_quiet(lambda x, y: torch.isnan(y) | (y < x)),
        _aten.fmin.default: of_quiet(lambda x, y: torch.isnan(y) | (y > x)),
        _aten.erfinv.default: _erfinv,
        _aten.addcdiv.default: wide(_addcdiv),
        _aten.copysign.Tensor: _copysign,
        **fused(fma),
    }
    for op in (_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar):
        table[op] = with_whole_number(op)
    elementwise_ops = {op: elementwise(f, _ORDERS.get(op, as_given)) for op, f in table.items()}
    smooth_l1 = _aten.smooth_l1_loss_backward.default
    elementwise_ops[smooth_l1] = into_zeros(elementwise_ops[smooth_l1])
    return elementwise_ops


def _of_rows() -> dict[Any, Decomposition]:
    """Return the norms and sums, whose elements depend on many of an argument's."""
    return {
        _aten.native_layer_norm.default: layer_norm,
        _aten.native_layer_norm_backward.default: layer_norm_backward,
        _aten.native_group_norm.default: group_norm,
        _aten.native_group_norm_backward.default: group_norm_backward,
        _aten.native_batch_norm.default: batch_norm,
        _aten.native_batch_norm_backward.default: batch_norm_backward,
        _aten._native_batch_norm_legit.no_stats: lambda x, weight, bias, *rest: batch_norm(
            x, weight, bias, None, None, *rest
        ),
        _aten._native_batch_norm_legit_no_training.default: (
            lambda x, weight, bias, mean, var, *rest: batch_norm(
                x, weight, bias, mean, var, False, *rest
            )
        ),
        **exact_sums(),
    }


def kernel_formulas(fma: Callable[..., Tensor]) -> dict[Any, Decomposition]:
    """Return the CPU kernels' formulas for ops that tracing decomposes before it reads the table.

    ``NotImplemented`` leaves the op as it is. Args as for ``our_decompositions``.
    """

    @wide
    def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
        share = torch.sigmoid(x)
        return grad * share * fma(x, 1 - share, torch.ones_like(x))

    table = {
        _aten.silu_backward.default: silu_backward,
        _aten.softshrink.default: wide(softshrink),
    }
    return {op: for_floats(elementwise(function)) for op, function in table.items()}


def _round_decimals(x: Tensor, *, decimals: int) -> Tensor:
    if decimals == 0:
        return torch.round(x)
    ten = 10.0 ** abs(decimals)
    return torch.round(x * ten) / ten if decimals > 0 else torch.round(x / ten) * ten


def _clamp(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    # The number is the first argument: of two zeros, vector code takes the second.
    if low is not None:
        x = torch.maximum(torch.full_like(x, low), x)
    if high is not None:
        x = torch.minimum(torch.full_like(x, high), x)
    return x


def _pow(x: Tensor, exponent: Any) -> Any:
    if isinstance(exponent, torch.SymFloat):
        return NotImplemented
    power = rounded(exponent, x.dtype)
    if power == -0.5 and x.dtype is not torch.float16:
        return wide(torch.rsqrt)(x)
    if power == 0.5 and x.dtype is torch.float16:
        # The power 0.5, not the root: infinity for minus infinity, and zero for minus zero.
        return torch.where(x == -_INF, _INF, torch.sqrt(x) + 0.0)
    if float(power).is_integer() and abs(power) > _MOST_FACTORS:
        return wide(_aten.pow.Tensor_Tensor)(x, torch.full_like(x, power))
    return NotImplemented if power == exponent else _aten.pow.Tensor_Scalar(x, power)


def _xlog1py(x: Tensor, y: Tensor) -> Tensor:
    # Vector code flushes the logarithm's smallest values to zero.
    logarithm = torch.where(y.abs() < 1e-30, y, torch.log1p(y))
    return torch.where(y != y, y, torch.where(x == 0, 0.0, x * logarithm))


def _erfinv(x: Tensor) -> Any:
    # The usual steps lose half of the digits where the result is large.
    if x.dtype is torch.float64:
        return NotImplemented
    return torch.erfinv(x.to(torch.float64)).to(x.dtype)


def _copysign(x: Tensor, sign: Tensor) -> Tensor:
    magnitude = x.abs()
    return torch.where(torch.signbit(sign), -magnitude, magnitude)


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Tensor:
    return x + (a if is_one(value) else value * a) / b
