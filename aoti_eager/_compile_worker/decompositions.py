"""Decompositions for ops for which Inductor's own give other results than eager. Worker only.

Each function computes as eager's CPU kernel: in its order, in its precision, with its comparisons
(the direction of a comparison decides the result for a NaN and for a zero of either sign). Numbers
beside half precision follow eager, too: some kernels round them to the tensor's dtype, other
kernels do not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .channel_norms import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
)
from .exact_sums import exact_sums
from .float_division import float_division
from .layer_norm import layer_norm, layer_norm_backward
from .result_layout import as_given, elementwise, first_last
from .special_functions import (
    in_scalar_code,
    of_quiet,
)

_aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
_FLOATS = (*_HALF, torch.float32, torch.float64)
_SQRT_HALF = 0.7071067811865476
_GELU_SCALE, _GELU_CUBE = 0.7978845608028654, 0.044715
# Three times ``_GELU_CUBE``, in single precision as in eager.
_GELU_SQUARE = 0.13414499163627625
_INF = float("inf")
# Inductor computes a whole power by products; each doubling of the exponent doubles the error.
_MOST_FACTORS = 4
# Kernels that take the op's tensors in another order than the op.
_ORDERS = {_aten.rsub.Tensor: first_last, _aten.smooth_l1_loss_backward.default: first_last}
Decomposition = Callable[..., Any]


def our_decompositions(fma: Callable[..., Tensor]) -> dict[Any, Decomposition]:
    """Return functions by overload for Inductor's table; ``NotImplemented`` means Inductor's own.

    Args:
        fma: Returns ``a * b + c`` of three tensors, rounded once.
    """
    table: dict[Any, Decomposition] = {
        _aten.elu.default: _wide(_elu),
        _aten.celu.default: _wide(_celu),
        _aten.selu.default: _wide(_selu),
        _aten.elu_backward.default: _wide(_elu_backward),
        _aten.sigmoid_backward.default: _wide(lambda grad, y: grad * (1 - y) * y),
        _aten.hardtanh_backward.default: _wide(_hardtanh_backward),
        _aten.hardswish_backward.default: _wide(_hardswish_backward),
        _aten.smooth_l1_loss_backward.default: _wide(_smooth_l1_loss_backward),
        _aten.gelu.default: _gelu_of(_gelu),
        _aten.gelu_backward.default: _gelu_of(_gelu_backward, _gelu_backward_of_half),
        _aten.logit.default: _logit,
        _aten.round.decimals: _wide(_round_decimals),
        _aten.clamp.default: _clamp,
        _aten.clamp_min.default: lambda x, low: _clamp(x, low),
        _aten.clamp_max.default: lambda x, high: _clamp(x, None, high),
        _aten.hardtanh.default: lambda x, low=-1.0, high=1.0: _clamp(x, low, high),
        _aten.pow.Tensor_Scalar: _pow,
        _aten.special_xlog1py.default: _wide(_xlog1py),
        _aten.special_xlog1py.self_scalar: _with_numbers(_wide(_xlog1py)),
        _aten.special_xlog1py.other_scalar: _with_numbers(_wide(_xlog1py)),
        _aten.logaddexp.default: in_scalar_code(_aten.logaddexp.default),
        _aten.logaddexp2.default: in_scalar_code(_aten.logaddexp2.default),
        _aten.fmax.default: of_quiet(lambda x, y: torch.isnan(y) | (y < x)),
        _aten.fmin.default: of_quiet(lambda x, y: torch.isnan(y) | (y > x)),
        _aten.erfinv.default: _erfinv,
        _aten.addcdiv.default: _wide(_addcdiv),
        _aten.copysign.Tensor: _copysign,
        **_fused(fma),
    }
    for op in (_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar):
        table[op] = _with_whole_number(op)
    elementwise_ops = {op: elementwise(f, _ORDERS.get(op, as_given)) for op, f in table.items()}
    smooth_l1 = _aten.smooth_l1_loss_backward.default
    elementwise_ops[smooth_l1] = _into_zeros(elementwise_ops[smooth_l1])
    others: dict[Any, Decomposition] = {
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
    checked = {op: _for_floats(function) for op, function in (elementwise_ops | others).items()}
    # The functions of ``float_division`` check dtypes themselves.
    return checked | {op: elementwise(function) for op, function in float_division().items()}


def kernel_formulas(fma: Callable[..., Tensor]) -> dict[Any, Decomposition]:
    """Return the CPU kernels' formulas for ops that tracing decomposes before it reads the table.

    ``NotImplemented`` leaves the op as it is. Args as for ``our_decompositions``.
    """

    @_wide
    def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
        share = torch.sigmoid(x)
        return grad * share * fma(x, 1 - share, torch.ones_like(x))

    table = {
        _aten.silu_backward.default: silu_backward,
        _aten.softshrink.default: _wide(_softshrink),
    }
    return {op: _for_floats(elementwise(function)) for op, function in table.items()}


def _for_floats(function: Decomposition) -> Decomposition:
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


def _wide(function: Decomposition) -> Decomposition:
    """Return a function that computes half precision as float32, and rounds its result once."""

    @functools.wraps(function)
    def decomposition(*args: Any, **kwargs: Any) -> Any:
        dtype = next(one.dtype for one in args if isinstance(one, Tensor))
        if dtype not in _HALF:
            return function(*args, **kwargs)
        args = tuple(one.to(torch.float32) if isinstance(one, Tensor) else one for one in args)
        return function(*args, **kwargs).to(dtype)

    return decomposition


def _with_numbers(function: Decomposition) -> Decomposition:
    """Return a function that takes a number in a tensor's place, as a tensor like the other one."""

    @functools.wraps(function)
    def decomposition(*args: Any) -> Any:
        like = next(one for one in args if isinstance(one, Tensor))
        return function(*(one if isinstance(one, Tensor) else _number(one, like) for one in args))

    return decomposition


def _with_whole_number(op: Any) -> Decomposition:
    """Return a decomposition of ``op`` that does not round an input number to half precision."""

    def decomposition(x: Any, other: Any) -> Any:
        if isinstance(x, Tensor) and x.dtype in _HALF and isinstance(other, torch.SymFloat):
            return op(x.to(torch.float32), other).to(x.dtype)
        return NotImplemented

    return decomposition


def rounded(number: Any, dtype: torch.dtype) -> Any:
    """Return a number rounded as by kernels that take numbers in the tensor's own dtype.

    Inductor itself rounds a number that is an input.
    """
    if dtype not in _HALF or not isinstance(number, int | float):
        return number
    return float(torch.tensor(float(number)).to(dtype))


def _fused(fma: Callable[..., Tensor]) -> dict[Any, Decomposition]:
    """Return the ops whose kernels multiply and add in one step."""

    @_wide
    def multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Any:
        return fma(*torch.broadcast_tensors(a, b, c))  # type: ignore[no-untyped-call]

    def add(x: Tensor, other: Any, *, alpha: Any = 1) -> Any:
        if not isinstance(other, Tensor):
            other = rounded(other, x.dtype)
            if _is_one(alpha):
                is_half = x.dtype in _HALF and not isinstance(other, torch.SymFloat)
                return _wide(lambda one: one + other)(x) if is_half else NotImplemented
            other = torch.full_like(x, other)
        elif _is_one(alpha):
            return NotImplemented
        return multiply_add(other, _number(alpha, x), x)

    def sub(x: Tensor, other: Any, *, alpha: Any = 1) -> Any:
        if not isinstance(other, Tensor):
            return add(x, -other, alpha=alpha)
        return NotImplemented if _is_one(alpha) else add(x, other, alpha=-alpha)

    def rsub(x: Tensor, other: Any, alpha: Any = 1) -> Any:
        if not isinstance(other, Tensor):
            other = _number(other, x)
        if _is_one(alpha):
            return torch.sub(other, x)
        return multiply_add(x, _number(-alpha, x), other)

    @_wide
    def addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Any:
        return multiply_add(a if _is_one(value) else value * a, b, x)

    @_wide
    def tanh_backward(grad: Tensor, y: Tensor) -> Any:
        return grad * multiply_add(-y, y, torch.ones_like(y))

    @_wide
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


def _number(number: Any, like: Tensor) -> Tensor:
    """Return a number as a tensor with the dtype and the value that eager's kernel uses."""
    return torch.full_like(like, rounded(number, like.dtype))


def _is_one(number: Any) -> bool:
    return isinstance(number, int | float) and number == 1


def _elu(x: Tensor, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Tensor:
    below = torch.expm1(x * input_scale) * _product(alpha, scale, x)
    return torch.where(x >= 0, x * scale, below)


def _product(a: Any, b: Any, like: Tensor) -> Tensor:
    """Return the product of two numbers, each rounded to the tensor's dtype first, as in eager."""
    return torch.mul(torch.full_like(like, a), b)


def _celu(x: Tensor, alpha: Any = 1.0) -> Tensor:
    return _elu(x, alpha, 1.0, 1.0 / alpha)


def _selu(x: Tensor) -> Tensor:
    return _elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def _elu_backward(
    grad: Tensor, alpha: Any, scale: Any, input_scale: Any, is_result: bool, x: Tensor
) -> Tensor:
    below = grad * input_scale
    if is_result:
        below = below * (x + _product(alpha, scale, x))
    else:
        below = below * _product(alpha, scale, x) * torch.exp(x * input_scale)
    return torch.where(x > 0, grad * scale, below)


def _hardtanh_backward(grad: Tensor, x: Tensor, low: Any, high: Any) -> Tensor:
    return torch.where((x > low) & (x < high), grad, 0.0)


def _hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    inner = torch.where(x >= 3, grad, grad * ((x / 3) + 0.5))
    return torch.where(x <= -3, 0.0, inner)


def _smooth_l1_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, beta: Any
) -> Tensor:
    norm = 1.0 / x.numel() if reduction == 1 else 1.0
    difference = x - target
    outer = norm * grad
    inner = norm * difference * grad / beta
    return torch.where(difference <= -beta, -outer, torch.where(difference >= beta, outer, inner))


def _into_zeros(function: Decomposition) -> Decomposition:
    """Return a function whose result is contiguous unless it is larger than the second tensor.

    Eager's kernel writes to zeros of the second tensor's sizes.
    """

    @functools.wraps(function)
    def decomposition(grad: Tensor, x: Tensor, *args: Any) -> Any:
        result = function(grad, x, *args)
        return result.contiguous() if result.shape == x.shape else result

    return decomposition


def _gelu_of(function: Decomposition, half: Decomposition | None = None) -> Decomposition:
    @functools.wraps(function)
    def decomposition(*args: Any, approximate: str = "none") -> Any:
        if approximate == "none" and args[0].dtype in _HALF:
            # In half precision erfc would save no digits, and erfc is slow.
            return NotImplemented if half is None else half(*args)
        return _wide(function)(*args, approximate=approximate)

    return decomposition


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    # One minus a number close to one would leave no digits.
    if approximate == "none":
        # The factor 0.5 last: eager, too, is infinite from half of the largest number on.
        result = x * torch.special.erfc(x * -_SQRT_HALF) * 0.5
        is_onednn = x.dtype is torch.float32 and x.is_contiguous() and x.numel() != 1
        return torch.where(x == _INF, float("nan"), result) if is_onednn else result
    return 0.5 * x * (1 + torch.tanh(_gelu_inner(x)))


def _gelu_inner(x: Tensor) -> Tensor:
    return _GELU_SCALE * (x + _GELU_CUBE * (x * x * x))


def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Any:
    if approximate == "none":
        below = 0.5 * torch.special.erfc(x * -_SQRT_HALF)
        return grad * (below + x * (_GELU_SCALE * 0.5 * torch.exp(x * x * -0.5)))
    tanh = torch.tanh(_gelu_inner(x))
    square = x * x
    inner = _GELU_SCALE * (1 + _GELU_SQUARE * square)
    right = 0.5 * x * (1 - tanh * tanh) * inner
    return grad * (0.5 * (1 + tanh) + right)


@_wide
def _gelu_backward_of_half(grad: Tensor, x: Tensor) -> Tensor:
    below = 0.5 * (1 + torch.erf(x * _SQRT_HALF))
    return grad * (below + x * (_GELU_SCALE * 0.5 * torch.exp(x * x * -0.5)))


def _softshrink(x: Tensor, lambd: Any = 0.5) -> Tensor:
    rest = torch.where(x != x, x, 0.0)
    return torch.where(x > lambd, x - lambd, torch.where(x < -lambd, x + lambd, rest))


def _logit(x: Tensor, eps: Any = None) -> Any:
    if isinstance(eps, torch.SymFloat):
        return NotImplemented

    def function(one: Tensor) -> Tensor:
        if eps is not None:
            low = rounded(eps, x.dtype)
            # Near one, half precision has no number but one itself.
            high = rounded(1.0 - low, x.dtype)
            one = torch.where(one < low, low, torch.where(one > high, high, one))
        return torch.log(one / (1 - one))

    return _wide(function)(x)


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
        return _wide(torch.rsqrt)(x)
    if power == 0.5 and x.dtype is torch.float16:
        # The power 0.5, not the root: infinity for minus infinity, and zero for minus zero.
        return torch.where(x == -_INF, _INF, torch.sqrt(x) + 0.0)
    if float(power).is_integer() and abs(power) > _MOST_FACTORS:
        return _wide(_aten.pow.Tensor_Tensor)(x, torch.full_like(x, power))
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
    return x + (a if _is_one(value) else value * a) / b
