"""The laboratory's references, held to mpmath, which computes with as many digits as it is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from ..numerics import values
from ..numerics.exact import FORMULAS, LONG_DOUBLE

# What the references may be off, in units of the results that they are for.
FLOAT64_ULP = 2.0**-6
LONG_DOUBLE_ULP = 2.0**-6

Function = Callable[..., Any]


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


def _gelu(x: Any) -> Any:
    return x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2


FUNCTIONS: dict[str, Function] = {
    **{name: getattr(mpmath, name) for name in ("acos", "asin", "atan", "acosh", "asinh", "atanh")},
    **{name: getattr(mpmath, name) for name in ("cos", "sin", "tan", "cosh", "sinh", "tanh")},
    **{name: getattr(mpmath, name) for name in ("exp", "expm1", "log10", "log1p", "sqrt", "erf")},
    "log": mpmath.log,
    "erfc": mpmath.erfc,
    "exp2": lambda x: mpmath.power(2, x),
    "log2": lambda x: mpmath.log(x, 2),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "sinc": lambda x: mpmath.sincpi(x),
    "lgamma": lambda x: mpmath.log(abs(mpmath.gamma(x))),
    "log_sigmoid": lambda x: -mpmath.log1p(mpmath.exp(-x)),
    "softplus": lambda x: x if x > 20 else mpmath.log1p(mpmath.exp(x)),
    "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    "mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "i0": lambda x: mpmath.besseli(0, x),
    "special_i1": lambda x: mpmath.besseli(1, x),
    "special_bessel_j0": lambda x: mpmath.besselj(0, x),
    "special_bessel_j1": lambda x: mpmath.besselj(1, x),
    "special_bessel_y0": lambda x: mpmath.bessely(0, x),
    "special_digamma": mpmath.digamma,
    "special_ndtr": mpmath.ncdf,
    "special_log_ndtr": lambda x: mpmath.log(mpmath.ncdf(x)),
    "special_entr": lambda x: -x * mpmath.log(x),
    "special_erfcx": lambda x: mpmath.exp(x * x) * mpmath.erfc(x),
    "erfinv": mpmath.erfinv,
}


def _inputs(name: str, dtype: str) -> list[float]:
    found = values.structured(dtype, 700).double()
    limits = {"i0": 80.0, "lgamma": 1e6, "exp": 1e3, "cosh": 1e3, "sinh": 1e3, "gelu": 37.0}
    limits |= {"special_i1": 80.0, "special_digamma": 1e6, "special_ndtr": 36.0}
    limits |= {"special_erfcx": 25.0, "special_log_ndtr": 36.0}
    limits |= {f"special_bessel_{one}": 1e3 for one in ("j0", "j1", "y0")}
    found = found[found.isfinite() & (found.abs() < limits.get(name, 1e30))]
    return [float(value) for value in found[:: max(1, len(found) // 250)]]


def _errors(name: str, inputs: list[float], got: list[Any], digits: int) -> dict[float, float]:
    """Return by input how many units of a format with so many bits a value is off."""
    found = {}
    with mpmath.workdps(60):
        for value, mine in zip(inputs, got, strict=True):
            try:
                exact = FUNCTIONS[name](mpmath.mpf(value))
            except (ValueError, ZeroDivisionError, OverflowError):
                continue  # A pole.
            if isinstance(exact, mpmath.mpc) or not mpmath.isfinite(exact) or exact == 0:
                continue
            exponent = max(mpmath.frexp(exact)[1] - 1, -126 if digits == 24 else -1022)
            if exponent > (127 if digits == 24 else 1023) or not np.isfinite(mine):
                continue
            ulp = mpmath.ldexp(1, exponent - digits + 1)
            # In two parts, without its exponent: mpmath takes a long double for a double.
            fraction, power = np.frexp(mine)
            high = float(fraction)
            low = float(fraction - type(fraction)(high))
            distance = mpmath.ldexp(mpmath.mpf(high) + mpmath.mpf(low), int(power)) - exact
            found[value] = float(abs(distance) / ulp)
    assert len(found) > 40, name
    return found


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_float64_is_exact_beside_float32(name: str) -> None:
    inputs = _inputs(name, "float32")
    function = FORMULAS.get(name) or getattr(
        torch.ops.aten, name if name != "log_sigmoid" else "log_sigmoid_forward"
    )
    got = function(torch.tensor(inputs, dtype=torch.float64))
    got = got[0] if isinstance(got, tuple) else got
    errors = _errors(name, inputs, list(got.numpy()), 24)
    worst = max(errors, key=lambda one: errors[one])
    assert errors[worst] < FLOAT64_ULP, (worst, errors[worst])


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() & LONG_DOUBLE.keys()))
def test_long_double_is_exact_beside_float64(name: str) -> None:
    inputs = _inputs(name, "float64")
    with np.errstate(all="ignore"):
        got = LONG_DOUBLE[name](np.array(inputs, dtype=np.longdouble))
    errors = _errors(name, inputs, list(got), 53)
    worst = max(errors, key=lambda one: errors[one])
    assert errors[worst] < LONG_DOUBLE_ULP, (worst, errors[worst])


def test_sinc_is_zero_at_whole_numbers() -> None:
    x = torch.tensor([0.0, 1.0, -3.0, 4285239.0, math.inf, math.nan], dtype=torch.float64)
    found = FORMULAS["sinc"](x)
    assert found[:4].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found[4:].isnan().all()
