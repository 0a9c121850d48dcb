"""Every op of one tensor that the compiler has code of its own for, with the arguments to try.

A reviewed table: the enumeration's test fails when an op is in no family.
"""

from __future__ import annotations

import math

import torch

from .calls import Call, X, calls

NAN, INF = math.nan, math.inf

# Functions of real numbers: an exact value is what float64 gives.
FUNCTIONS = """
    acos acosh angle arccos arccosh arcsin arcsinh arctan arctanh asin asinh atan atanh cos cosh
    deg2rad erf erfc erfinv exp exp2 expm1 hardsigmoid hardswish i0 lgamma log log10 log1p log2
    log_sigmoid log_sigmoid_forward mish rad2deg reciprocal rsqrt selu sigmoid silu sin sinc sinh
    special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_digamma
    special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit
    special_expm1 special_gammaln special_i0 special_i1 special_log1p special_log_ndtr
    special_modified_bessel_i0 special_modified_bessel_i1 special_ndtr special_psi special_sinc
    sqrt square tan tanh
""".split()  # noqa: SIM905 - a list of names to read, not to parse

# These select or round: eager's value is the exact one.
SELECTIONS = """
    abs absolute bitwise_not ceil chalf conj_physical fix floor frac frexp.Tensor isfinite isinf
    isnan isneginf isposinf isreal logical_not neg negative relu relu6 round sgn sign signbit trunc
    _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short
""".split()  # noqa: SIM905 - a list of names to read, not to parse

_COMPARED = ((0.0,), (-0.0,), (0.1,), (3,), (NAN,), (INF,), (True,))
_DIVISORS = (2 * math.pi, 0.1, 1e-3, 3.0, -2.5, 1e10, INF, NAN, 0.0, 7, -3)
_EXPONENTS = (0.5, 2.0, 3.0, -1.0, -0.5, 0.0, 1.0, 2.5, -2.0, 4.0, 1 / 3, 10.0, -1.5, INF, NAN)
_WORDS = (0, 1, -1, 5, 127, True)
_SHIFTS = (0, 1, 7, 8, 31, 32, 63, 64, -1)
_CLAMPS = (
    {"min": 0.0},
    {"min": -0.0},
    {"max": 0.0},
    {"max": -0.0},
    {"min": -1.0, "max": 1.0},
    {"min": 0.1, "max": 0.2},
    {"min": 2.0, "max": -2.0},
    {"min": NAN},
    {"min": 0, "max": 6},
)


def _each(op: str, values: tuple[object, ...], reference: str = "float64") -> list[Call]:
    return calls(op, *((value,) for value in values), reference=reference)


def _scalar_first(op: str, values: tuple[object, ...], reference: str = "float64") -> list[Call]:
    return [Call(f"aten::{op}", (value, X), reference=reference) for value in values]


def _modes(op: str) -> list[Call]:
    found = [
        Call(f"aten::{op}", (X, value), {"rounding_mode": mode}, "eager")
        for value in (0.1, 2 * math.pi, 3.0, -2.5, 0.0, INF, 7)
        for mode in ("trunc", "floor")
    ]
    return [*found, Call(f"aten::{op}", (X, 0.1), {"rounding_mode": None})]


def _with_arguments() -> list[Call]:
    found: list[Call] = []
    found += calls("elu", (), (0.5,), (1.6732632423543772, 1.0507009873554805), (1.0, 1.0, 0.3))
    found += calls("celu", (), (0.5,), (-0.7,))
    found += calls("leaky_relu", (), (0.2,), (-0.5,), (0.0,))
    found += calls("softplus", (), (2, 10), (0.5, 20.0))
    found += calls("gelu", (), reference="float64")
    found += [Call("aten::gelu", (X,), {"approximate": "tanh"})]
    for name, options in (("logit", (None, 1e-6, 0.25)), ("special_logit", (None, 1e-6))):
        found += _each(name, options)
    found += calls("threshold", (0.0, 0.0), (0.1, 20.0), (0, -0.0), reference="eager")
    found += calls("hardtanh", (), (0.0, 6.0), (-0.5, 0.1), (-0.0, 1.0), reference="eager")
    found += calls("hardshrink", (), (0.1,), (0.0,), reference="eager")
    found += calls("softshrink", (), (0.1,), (0.0,))
    for name in ("clamp", "clip"):
        found += [Call(f"aten::{name}", (X,), one, "eager") for one in _CLAMPS]
    for name in ("clamp_min", "clamp_max"):
        found += _each(name, (0.0, -0.0, 0.1, NAN, 2), "eager")
    found += calls("nan_to_num", (), (0.5, 1e4, -1e4), (-0.0, None, 0.0), reference="eager")
    found += [Call("aten::round.decimals", (X,), {"decimals": d}, "eager") for d in (0, 2, -2, 5)]
    found += [Call("aten::special_round", (X,), {"decimals": d}, "eager") for d in (0, 2)]
    found += [Call("aten::mvlgamma", (X, p)) for p in (1, 2, 3)]
    found += [Call("aten::special_multigammaln", (X, p)) for p in (2,)]
    found += [Call("aten::special_polygamma", (n, X)) for n in (0, 1)]
    # Below, eager counts up to 9 by steps of 1, from -1e30 say.
    found += [Call("aten::special_polygamma", (n, X), least=-50.0) for n in (2, 3)]
    found += [Call("aten::_saturate_weight_to_fp16", (X,), {}, "eager")]
    quantisations = ((0.1, 0, -128, 127), (0.013, 3, 0, 255))
    found += calls("fake_quantize_per_tensor_affine", *quantisations, reference="eager")
    names = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16")
    for name in (*names, "float32", "float64"):
        # Of what does not fit an integer, C++ says nothing, and eager's own code differs by path.
        found.append(Call("aten::_to_copy", (X,), {"dtype": getattr(torch, name)}, "eager"))
    return found


def _with_numbers() -> list[Call]:
    found: list[Call] = []
    found += _each("pow.Tensor_Scalar", (*_EXPONENTS, 2, 3, -1, 0))
    found += _each("float_power.Tensor_Scalar", (0.5, 2, 2.5, -1.0, 0.0))
    found += _scalar_first("pow.Scalar", (2, 0.5, 10.0, 0.0, 1.0, -2.0, math.e, INF))
    found += _scalar_first("float_power.Scalar", (2, 0.5, -2.0))
    for name in ("remainder.Scalar", "fmod.Scalar"):
        found += _each(name, _DIVISORS, "eager")
    found += _each("floor_divide.Scalar", _DIVISORS, "eager")
    found += _scalar_first(
        "remainder.Scalar_Tensor", (2 * math.pi, 0.1, 3, -7.0, 0.0, INF), "eager"
    )
    for name in ("div.Scalar", "divide.Scalar", "true_divide.Scalar"):
        few = name != "div.Scalar"
        found += _each(name, (0.1, 3) if few else (0.1, 3.0, 0.0, -0.0, 7, INF, NAN, 1e-40, 1e300))
    found += _modes("div.Scalar_mode") + _modes("divide.Scalar_mode")[:3]
    for name in ("mul.Scalar", "multiply.Scalar"):
        found += _each(name, (0.1, 3, 0.0, -0.0, INF, 1e-40, 1e300, True))
    for name in ("add.Scalar", "sub.Scalar", "rsub.Scalar", "subtract.Scalar"):
        found += calls(name, (0.1,), (3,), (-0.0,), (INF,), (0.1, 3), (0.3, 0.1), (1, 2))
    found += _each("copysign.Scalar", (1.0, -1.0, -0.0, 0, NAN), "eager")
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        found += calls(f"{name}.Scalar", *_COMPARED, reference="eager")
    for name in ("greater", "greater_equal", "less", "less_equal", "not_equal"):
        found += calls(f"{name}.Scalar", (0.1,), (3,), reference="eager")
    for name in ("bitwise_and.Scalar", "bitwise_or.Scalar", "bitwise_xor.Scalar"):
        found += _each(name, _WORDS, "eager")
        found += _scalar_first(f"{name}_Tensor", _WORDS[:4], "eager")
    for name in ("__and__.Scalar", "__or__.Scalar", "__xor__.Scalar"):
        found += _each(name, (5, -1), "eager")
    for name in ("bitwise_left_shift", "bitwise_right_shift"):
        found += _each(f"{name}.Tensor_Scalar", _SHIFTS, "eager")
        found += _scalar_first(f"{name}.Scalar_Tensor", (1, -1, 5), "eager")
    for name in ("__lshift__.Scalar", "__rshift__.Scalar"):
        found += _each(name, (1, 7, 64, -1), "eager")
    for name in ("xlogy.Scalar_Other", "special_xlogy.other_scalar"):
        found += _each(name, (2.0, 0.0, -1.0, NAN))
    found += _each("special_xlog1py.other_scalar", (2.0, 0.0, -1.0, NAN))
    for name in ("xlogy.Scalar_Self", "special_xlogy.self_scalar", "special_xlog1py.self_scalar"):
        found += _scalar_first(name, (2.0, 0.0, -1.5, NAN))
    return found


def unary_calls() -> list[Call]:
    """Return every call of one tensor that is compared."""
    found = [Call(f"aten::{name}", (X,)) for name in FUNCTIONS]
    found += [Call(f"aten::{name}", (X,), {}, "eager") for name in SELECTIONS]
    return found + _with_arguments() + _with_numbers()
