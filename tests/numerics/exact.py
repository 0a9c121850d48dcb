"""Exact values to hold results against, better than the results' dtype by far.

For results below double precision: eager in float64 (a test holds it to mpmath), or a formula where
eager's own loses digits there. For float64 results: long double, whose 64 bits are 11 more, where
numpy has the function; elsewhere eager stands for the exact value, so that compiled code may be
``FLOOR_ULP`` from it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor

from .bessel import bessel
from .calls import Call, Number, Slot
from .kernels import Kernel
from .laboratory import Exact

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]


def reference_of(call: Call, dtypes: Sequence[str]) -> tuple[str, Exact | None]:
    """Return the name of a call's reference and the function that computes it.

    Args:
        call: The call.
        dtypes: Of its tensors.
    """
    if call.reference == "eager":
        return "eager", None
    if any(dtype.startswith("complex") for dtype in dtypes):
        return "float64", lambda kernel, inputs: kernel.exact(inputs, torch.complex128)
    name = call.op.removeprefix("aten::")
    if "float64" in dtypes or any(one.kind == "float64[]" for one in call.numbers):
        plain = all(isinstance(value, Slot) for value in call.args) and not call.kwargs
        if plain and set(dtypes) == {"float64"} and name in LONG_DOUBLE:
            return "long double", _in_long_double(LONG_DOUBLE[name])
        if "float64" in dtypes:
            return "eager", None
    if name in FORMULAS and not any(isinstance(value, Number) for value in call.args):
        return "float64", _by_formula(FORMULAS[name], call.kwargs)
    return "float64", lambda kernel, inputs: kernel.exact(inputs)


def _by_formula(formula: Function, further: dict[str, Any]) -> Exact:
    def exact(kernel: Kernel, inputs: Sequence[Any]) -> Any:
        return [formula(*(one.double() for one in inputs), **further)]

    return exact


def _in_long_double(function: Function) -> Exact:
    def exact(kernel: Kernel, inputs: Sequence[Any]) -> Any:
        with np.errstate(all="ignore"):
            return [function(*(one.numpy().astype(np.longdouble) for one in inputs))]

    return exact


def _sinc(x: Tensor) -> Tensor:
    """Return sin(pi x) / (pi x); the nearest whole number goes first, exactly."""
    whole = torch.round(x)
    found = torch.sin(math.pi * (x - whole)) / (math.pi * x)
    found = torch.where(torch.fmod(whole, 2.0) == 0, found, -found)
    found = torch.where(x == 0, torch.ones_like(x), found)
    return torch.where(x.isinf(), torch.full_like(x, math.nan), found)


def _normal(x: Tensor) -> Tensor:
    """Return how much of the normal distribution is below x; eager's 1 + erf cancels."""
    return torch.special.erfc(-x / math.sqrt(2)) / 2


def _gelu_argument(x: Tensor) -> Tensor:
    """Return what the logistic function takes in the approximation by tanh: twice tanh's."""
    return 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return x * torch.sigmoid(_gelu_argument(x))
    return x * _normal(x)


def _gelu_backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        share = torch.sigmoid(_gelu_argument(x))
        other = torch.sigmoid(-_gelu_argument(x))
        slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        return grad * (share + x * share * other * slope)
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return grad * (_normal(x) + x * density)


def _digamma(x: Tensor) -> Tensor:
    """Return the digamma function; by its series beside the positive root."""
    root, rest, coefficients = _digamma_series()
    distance = (x - root) - rest
    series = torch.zeros_like(x)
    for one in reversed(coefficients):
        series = (series + one) * distance
    return torch.where(distance.abs() < 0.05, series, torch.special.digamma(x))


@functools.cache
def _digamma_series() -> tuple[float, float, list[float]]:
    """Return the positive root in two parts, and the coefficients of the series around it."""
    with mpmath.workdps(50):
        root = mpmath.findroot(mpmath.digamma, 1.4616321449683623)
        high = float(root)
        terms = [mpmath.polygamma(k, root) / mpmath.factorial(k) for k in range(1, 16)]
        return high, float(root - high), [float(one) for one in terms]


def _bessel(which: int) -> Function:
    """Return a Bessel function of the C library's; torch's in float64 has the digits of float32."""

    def function(x: Tensor) -> Tensor:
        return bessel(x.contiguous(), which)

    return function


# Where eager loses digits in float64, too.
FORMULAS: dict[str, Function] = {
    "sinc": _sinc,
    "special_sinc": _sinc,
    "gelu": _gelu,
    "gelu_backward": _gelu_backward,
    "infinitely_differentiable_gelu_backward": _gelu_backward,
    "special_ndtr": _normal,
    "special_digamma": _digamma,
    "special_psi": _digamma,
    **{
        f"special_bessel_{name}": _bessel(which)
        for which, name in enumerate(("j0", "j1", "y0", "y1"))
    },
}


_ONE = np.longdouble(1)
_PI = np.arctan(_ONE) * 4


def _sigmoid(x: Array) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, _ONE / (_ONE + small), small / (_ONE + small))


# By overload, the function on arrays of long double.
LONG_DOUBLE: dict[str, Function] = {
    **{name: getattr(np, f"arc{name[1:]}") for name in ("acos", "asin", "atan")},
    **{name: getattr(np, f"arc{name[1:]}") for name in ("acosh", "asinh", "atanh")},
    **{f"arc{name}": getattr(np, f"arc{name}") for name in ("cos", "sin", "tan")},
    **{f"arc{name}": getattr(np, f"arc{name}") for name in ("cosh", "sinh", "tanh")},
    **{name: getattr(np, name) for name in ("cos", "sin", "tan", "cosh", "sinh", "tanh")},
    **{name: getattr(np, name) for name in ("exp", "exp2", "expm1", "log", "log2", "log10")},
    **{name: getattr(np, name) for name in ("log1p", "sqrt", "reciprocal", "square")},
    **{f"special_{name}": getattr(np, name) for name in ("exp2", "expm1", "log1p")},
    "deg2rad": lambda x: x * (_PI / 180),
    "rad2deg": lambda x: x * (180 / _PI),
    "rsqrt": lambda x: _ONE / np.sqrt(x),
    "sigmoid": _sigmoid,
    "special_expit": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "log_sigmoid": lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
    "softplus": lambda x: np.where(x > 20, x, np.log1p(np.exp(x))),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "atan2": np.arctan2,
    "arctan2": np.arctan2,
    "hypot": np.hypot,
    "pow.Tensor_Tensor": np.power,
    "logaddexp": np.logaddexp,
    "logaddexp2": np.logaddexp2,
    "add.Tensor": np.add,
    "sub.Tensor": np.subtract,
    "mul.Tensor": np.multiply,
    "div.Tensor": np.divide,
    "sigmoid_backward": lambda g, y: g * (_ONE - y) * y,
    "tanh_backward": lambda g, y: g * (_ONE - y * y),
    "lerp.Tensor": lambda a, b, w: np.where(
        np.abs(w) < 0.5, a + w * (b - a), b - (b - a) * (1 - w)
    ),
    "addcmul": lambda a, b, c: a + b * c,
    "addcdiv": lambda a, b, c: a + b / c,
}
