"""Every op of two or three tensors, element by element, with the arguments to try.

Numbers in a Tensor slot, and tensors without dimensions, are inputs of the kernel; they are written
as ``Number`` and take each of ``NUMBERS`` in turn. A reviewed table: the enumeration's test fails
when an op is in no family.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .calls import (
    Call,
    Number,
    Slot,
    X,
    Y,
    Z,
)

INF, NAN = math.inf, math.nan

_FLOATS = (0.1, 2 * math.pi, 1e-3, 3.0, -2.5, 0.0, -0.0, 0.5, 1e30, 1e-40, 1e300, INF, NAN)
_INTS = (0, 1, -1, 2, 3, 7, -5, 31, 64, 1000, 16777217, (1 << 62) + 1)

# Values of a number in a Tensor slot, by its kind; one kernel serves all of a kind.
NUMBERS: dict[str, tuple[Any, ...]] = {
    "float": _FLOATS,
    "int": _INTS,
    "bool": (False, True),
    "float64[]": tuple(torch.tensor(value, dtype=torch.float64) for value in _FLOATS),
    "float32[]": tuple(torch.tensor(value, dtype=torch.float32) for value in _FLOATS),
    "int64[]": tuple(torch.tensor(value) for value in _INTS),
}

# Functions of real numbers: an exact value is what float64 gives.
FUNCTIONS = """
    add.Tensor sub.Tensor subtract.Tensor rsub.Tensor mul.Tensor multiply.Tensor div.Tensor
    divide.Tensor true_divide.Tensor atan2 arctan2 hypot pow.Tensor_Tensor float_power.Tensor_Tensor
    logaddexp logaddexp2 xlogy.Tensor special_xlogy special_xlog1py ldexp.Tensor
    _prelu_kernel special_gammainc special_gammaincc
    sigmoid_backward tanh_backward silu_backward mish_backward hardsigmoid_backward
    hardswish_backward infinitely_differentiable_gelu_backward
""".split()  # noqa: SIM905 - a list of names to read, not to parse

# These select or round: eager's value is the exact one.
SELECTIONS = """
    maximum minimum max.other min.other fmax fmin clamp_min.Tensor clamp_max.Tensor copysign.Tensor
    nextafter heaviside fmod.Tensor remainder.Tensor floor_divide lcm
    bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor __and__.Tensor __or__.Tensor
    __xor__.Tensor bitwise_left_shift.Tensor bitwise_right_shift.Tensor __lshift__.Tensor
    __rshift__.Tensor eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor greater.Tensor
    greater_equal.Tensor less.Tensor less_equal.Tensor not_equal.Tensor logical_and logical_or
    logical_xor
""".split()  # noqa: SIM905 - a list of names to read, not to parse

_TERNARY = "addcmul addcdiv lerp.Tensor _prelu_kernel_backward"

# Ops that take a number in a Tensor slot; others have an overload for numbers.
_WITH_NUMBERS = ("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "floor_divide")

# Ops of which people write one operand as a tensor without dimensions.
_WITH_SCALAR_TENSORS = """
    add.Tensor sub.Tensor mul.Tensor div.Tensor atan2 pow.Tensor_Tensor maximum fmod.Tensor
    remainder.Tensor floor_divide copysign.Tensor eq.Tensor lt.Tensor
""".split()  # noqa: SIM905 - a list of names to read, not to parse

# Pairs of dtypes that promote to each other's.
MIXED = (
    ("float32", "int64"),
    ("int64", "float32"),
    ("bfloat16", "float32"),
    ("float16", "bfloat16"),
    ("float32", "float64"),
    ("int32", "int64"),
    ("uint8", "int8"),
    ("bool", "float32"),
    ("bool", "int64"),
)
MIXED_OPS = """
    add.Tensor sub.Tensor mul.Tensor div.Tensor pow.Tensor_Tensor maximum fmod.Tensor
    remainder.Tensor floor_divide atan2 eq.Tensor lt.Tensor bitwise_xor.Tensor copysign.Tensor
    where.self logical_and
""".split()  # noqa: SIM905 - a list of names to read, not to parse


def _two(name: str, reference: str, *further: object, **kwargs: object) -> Call:
    return Call(f"aten::{name}", (X, Y, *further), dict(kwargs), reference)


def _with_alpha() -> list[Call]:
    found = [
        _two(f"{name}.Tensor", "float64", alpha=alpha)
        for name in ("add", "sub", "rsub")
        for alpha in (2, 0.1, -1.5, 0)
    ]
    found += [Call("aten::addcmul", (X, Y, Z), {"value": v}) for v in (0.5, -2.0)]
    found += [Call("aten::addcdiv", (X, Y, Z), {"value": v}) for v in (0.5, -2.0)]
    return found


def _with_arguments() -> list[Call]:
    found = [
        _two(f"{name}.Tensor_mode", "eager", rounding_mode=mode)
        for name in ("div", "divide")
        for mode in ("trunc", "floor")
    ]
    found.append(_two("div.Tensor_mode", "float64", rounding_mode=None))
    found += [_two("lerp.Scalar", "float64", weight) for weight in (0.3, 0.5, 0.9, 2.0)]
    found += [_two("threshold_backward", "eager", value) for value in (0, 0.1)]
    found += [_two("leaky_relu_backward", "float64", 0.01, False), _two("gelu_backward", "float64")]
    found.append(_two("leaky_relu_backward", "float64", 0.2, True))
    found.append(_two("gelu_backward", "float64", approximate="tanh"))
    found += [_two("hardtanh_backward", "eager", *one) for one in ((-1, 1), (0.0, 6.0))]
    found += [_two("softplus_backward", "float64", *one) for one in ((1, 20), (0.5, 20.0))]
    found += [_two("logit_backward", "float64", eps) for eps in (None, 0.1)]
    for is_result in (False, True):
        arguments = (1.0, 1.0, 1.0, is_result)
        found.append(Call("aten::elu_backward", (X, *arguments, Y)))
        found.append(Call("aten::elu_backward", (X, 0.7, 1.1, 0.9, is_result, Y)))
    found.append(_two("isclose", "eager"))
    found.append(_two("isclose", "eager", 0.1, 1e-3, True))
    found.append(Call("aten::log_sigmoid_backward", (X, Y, Z)))
    return found


def _with_masks() -> list[Call]:
    mask, third = Slot(0, "bool"), Slot(2, "bool")
    return [
        Call("aten::where.self", (mask, Y, Z), {}, "eager"),
        Call("aten::where.ScalarOther", (mask, Y, 0.1), {}, "eager"),
        Call("aten::where.ScalarSelf", (mask, 0.1, Y), {}, "eager"),
        Call("aten::where.Scalar", (mask, 0.1, -0.0), {}, "eager"),
        Call("aten::masked_fill.Scalar", (X, Slot(1, "bool"), 0.1), {}, "eager"),
        Call("aten::masked_fill.Scalar", (X, Slot(1, "bool"), -INF), {}, "eager"),
        Call("aten::masked_fill.Tensor", (X, Slot(1, "bool"), Number("float64[]")), {}, "eager"),
        Call("aten::native_dropout_backward", (X, Slot(1, "bool"), 1 / 0.9)),
        Call("aten::rrelu_with_noise_backward", (X, Y, Z, 0.125, 1 / 3, True, False)),
        Call("aten::rrelu_with_noise_backward", (X, Y, Z, 0.125, 1 / 3, False, False)),
        Call("aten::clamp.Tensor", (X, Y, Z), {}, "eager"),
        Call("aten::clip.Tensor", (X, Y, Z), {}, "eager"),
        Call("aten::clamp.Tensor", (X, Y, None), {}, "eager"),
        Call("aten::fake_quantize_per_tensor_affine_cachemask_backward", (X, third), {}, "eager"),
    ]


def _with_wrapped_numbers() -> list[Call]:
    found = []
    for name in _WITH_NUMBERS:
        reference = "eager" if name in SELECTIONS else "float64"
        found += [
            Call(f"aten::{name}", (X, Number(kind)), {}, reference)
            for kind in ("float", "int", "bool")
        ]
        if name in ("sub.Tensor", "div.Tensor"):
            found.append(Call(f"aten::{name}", (Number("float"), X), {}, reference))
    for name in _WITH_SCALAR_TENSORS:
        reference = "eager" if name in SELECTIONS else "float64"
        for kind in ("float64[]", "float32[]", "int64[]"):
            found.append(Call(f"aten::{name}", (X, Number(kind)), {}, reference))
        found.append(Call(f"aten::{name}", (Number("float64[]"), X), {}, reference))
    for mode in ("trunc", "floor"):
        for kind in ("float", "float64[]"):
            call = Call(
                "aten::div.Tensor_mode", (X, Number(kind)), {"rounding_mode": mode}, "eager"
            )
            found.append(call)
    return found


def binary_calls() -> list[Call]:
    """Return every call of two or three tensors, or of a tensor and a number."""
    found = [_two(name, "float64") for name in FUNCTIONS]
    found += [_two(name, "eager") for name in SELECTIONS]
    found += [Call(f"aten::{name}", (X, Y, Z)) for name in _TERNARY.split()]
    found += _with_alpha() + _with_arguments() + _with_masks() + _with_wrapped_numbers()
    return found


def mixed_calls() -> list[Call]:
    """Return the calls that are compared for tensors of different dtypes, too."""
    plain = {call.op: call for call in binary_calls() if not call.variant}
    where = Call("aten::where.self", (Slot(2, "bool"), X, Y), {}, "eager")
    return [plain.get(f"aten::{name}", where) for name in MIXED_OPS]
