"""Activations and their gradients as eager computes them. Worker only."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .eager_precision import HALF, Decomposition, rounded, wide

_SQRT_HALF = 0.7071067811865476
_GELU_SCALE, _GELU_CUBE = 0.7978845608028654, 0.044715
# Three times ``_GELU_CUBE``, in single precision as in eager.
_GELU_SQUARE = 0.13414499163627625
_INF = float("inf")
# Eager leaves gelu to oneDNN on some CPUs, those with AVX-512 among them: there, the result for
# infinity is not a number, and results are infinite from half of the largest number on.
_IS_ONEDNN = bool(torch.isnan(torch.nn.functional.gelu(torch.full((2,), _INF))[0]))


def elu(x: Tensor, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Tensor:
    """Return ``aten::elu``."""
    below = torch.expm1(x * input_scale) * _product(alpha, scale, x)
    return torch.where(x >= 0, x * scale, below)


def _product(a: Any, b: Any, like: Tensor) -> Tensor:
    """Return the product of two numbers, each rounded to the tensor's dtype first, as in eager."""
    return torch.mul(torch.full_like(like, a), b)


def celu(x: Tensor, alpha: Any = 1.0) -> Tensor:
    """Return ``aten::celu``."""
    return elu(x, alpha, 1.0, 1.0 / alpha)


def selu(x: Tensor) -> Tensor:
    """Return ``aten::selu``."""
    return elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def elu_backward(
    grad: Tensor, alpha: Any, scale: Any, input_scale: Any, is_result: bool, x: Tensor
) -> Tensor:
    """Return ``aten::elu_backward``; ``x`` is the result of ``elu`` if ``is_result``."""
    below = grad * input_scale
    if is_result:
        below = below * (x + _product(alpha, scale, x))
    else:
        below = below * _product(alpha, scale, x) * torch.exp(x * input_scale)
    return torch.where(x > 0, grad * scale, below)


def hardtanh_backward(grad: Tensor, x: Tensor, low: Any, high: Any) -> Tensor:
    """Return ``aten::hardtanh_backward``."""
    return torch.where((x > low) & (x < high), grad, 0.0)


def hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Return ``aten::hardswish_backward``."""
    inner = torch.where(x >= 3, grad, grad * ((x / 3) + 0.5))
    return torch.where(x <= -3, 0.0, inner)


def smooth_l1_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, beta: Any
) -> Tensor:
    """Return ``aten::smooth_l1_loss_backward``."""
    norm = 1.0 / x.numel() if reduction == 1 else 1.0
    difference = x - target
    outer = norm * grad
    inner = norm * difference * grad / beta
    return torch.where(difference <= -beta, -outer, torch.where(difference >= beta, outer, inner))


def into_zeros(function: Decomposition) -> Decomposition:
    """Return a function whose result is contiguous unless it is larger than the second tensor.

    Eager's kernel writes to zeros of the second tensor's sizes.
    """

    @functools.wraps(function)
    def decomposition(grad: Tensor, x: Tensor, *args: Any) -> Any:
        result = function(grad, x, *args)
        return result.contiguous() if result.shape == x.shape else result

    return decomposition


def gelu_of(function: Decomposition, half: Decomposition | None = None) -> Decomposition:
    """Return a function that leaves half precision to ``half``, or to Inductor without it."""

    @functools.wraps(function)
    def decomposition(*args: Any, approximate: str = "none") -> Any:
        if approximate == "none" and args[0].dtype in HALF:
            # In half precision erfc would save no digits, and erfc is slow.
            return NotImplemented if half is None else half(*args)
        return wide(function)(*args, approximate=approximate)

    return decomposition


def gelu(x: Tensor, *, approximate: str = "none") -> Any:
    """Return ``aten::gelu`` of single and double precision."""
    # One minus a number close to one would leave no digits.
    if approximate == "none":
        erfc = torch.special.erfc(x * -_SQRT_HALF)
        if not _IS_ONEDNN:
            return 0.5 * x * erfc
        is_single = x.dtype is torch.float32 and x.is_contiguous() and x.numel() != 1
        # The factor 0.5 last: eager, too, is infinite from half of the largest number on.
        result = x * erfc * 0.5
        return torch.where(x == _INF, float("nan"), result) if is_single else result
    return 0.5 * x * (1 + torch.tanh(_gelu_inner(x)))


def _gelu_inner(x: Tensor) -> Tensor:
    return _GELU_SCALE * (x + _GELU_CUBE * (x * x * x))


def gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Any:
    """Return ``aten::gelu_backward`` of single and double precision."""
    if approximate == "none":
        below = 0.5 * torch.special.erfc(x * -_SQRT_HALF)
        return grad * (below + x * (_GELU_SCALE * 0.5 * torch.exp(x * x * -0.5)))
    tanh = torch.tanh(_gelu_inner(x))
    square = x * x
    inner = _GELU_SCALE * (1 + _GELU_SQUARE * square)
    right = 0.5 * x * (1 - tanh * tanh) * inner
    return grad * (0.5 * (1 + tanh) + right)


@wide
def gelu_backward_of_half(grad: Tensor, x: Tensor) -> Tensor:
    """Return ``aten::gelu_backward`` of half precision, for ``approximate="none"``."""
    below = 0.5 * (1 + torch.erf(x * _SQRT_HALF))
    return grad * (below + x * (_GELU_SCALE * 0.5 * torch.exp(x * x * -0.5)))


def softshrink(x: Tensor, lambd: Any = 0.5) -> Tensor:
    """Return ``aten::softshrink``."""
    rest = torch.where(x != x, x, 0.0)
    return torch.where(x > lambd, x - lambd, torch.where(x < -lambd, x + lambd, rest))


def logit(x: Tensor, eps: Any = None) -> Any:
    """Return ``aten::logit``."""
    if isinstance(eps, torch.SymFloat):
        return NotImplemented

    def function(one: Tensor) -> Tensor:
        if eps is not None:
            low = rounded(eps, x.dtype)
            # Near one, half precision has no number but one itself.
            high = rounded(1.0 - low, x.dtype)
            one = torch.where(one < low, low, torch.where(one > high, high, one))
        return torch.log(one / (1 - one))

    return wide(function)(x)
