"""C++ for functions whose code by Inductor is less exact than eager's. Worker only.

Inductor writes a function of its own where that is faster, or calls a function of ATen's that eager
itself does not use. Each function here is the one that eager's kernel calls, or as exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def vector_functions(
    vector_bits: int, count: Callable[[Any], int]
) -> dict[str, Callable[..., str]]:
    """Return generators of C++ expressions of vectors, by Inductor's name of the op.

    Args:
        vector_bits: 512 or 256, or 0 where the width is not known.
        count: Returns how many of ATen's vectors hold a variable of generated code.
    """
    functions: dict[str, Callable[..., str]] = {
        "expm1": lambda x: f"{x}.expm1()",
        "atanh": lambda x: f"{x}.atanh()",
        "acosh": _acosh,
        "remainder": _remainder,
    }
    lanes = {512: 16, 256: 8}.get(vector_bits)
    if lanes is not None:
        # ATen's vector methods of these names are other functions, with errors of 2 ulp and more.
        for name in ("sin", "cos", "erf"):
            functions[name] = _sleef(name, f"Sleef_{name}f{lanes}_u10", count)
    return functions


def scalar_functions() -> dict[str, Callable[..., str]]:
    """Return generators of C++ expressions of single numbers, by Inductor's name of the op.

    Where generated code computes number by number, eager still runs vectors. The C library's
    functions of these names have errors of more than 2 ulp in float32.
    """

    def in_double(name: str) -> Callable[..., str]:
        return lambda x: f"static_cast<decltype({x})>(std::{name}(static_cast<double>({x})))"

    return {name: in_double(name) for name in ("erfc", "lgamma")}


def widened(x: Any, count: int) -> str:
    """Return an expression of ``count`` vectors of float32 as twice as many of float64."""
    one = "at::vec::convert<double, 2, float, 1>(at::vec::VectorizedN<float, 1>(v[i]))"
    return (
        f"[&](const auto& v) {{ at::vec::VectorizedN<double, {2 * count}> wide; "
        f"for (int i = 0; i < {count}; i++) {{ auto two = {one}; "
        f"wide[2 * i] = two[0]; wide[2 * i + 1] = two[1]; }} return wide; }}({x})"
    )


def _sleef(name: str, function: str, count: Callable[[Any], int]) -> Callable[..., str]:
    def expression(x: Any) -> str:
        # A variable of several vectors was loaded in half precision, where the error does not show.
        if x.dtype is not torch.float32 or count(x) != 1:
            return f"{x}.{name}()"
        return f"at::vec::Vectorized<float>({function}({x}))"

    return expression


def _acosh(x: Any) -> str:
    # Sleef squares its argument.
    limit, log_2 = ("1e18", "0.6931471805599453")
    if x.dtype is torch.float64:
        limit = "1e150"
    vector = f"decltype({x})"
    large = f"{x}.log() + {vector}({log_2})"
    return f"{vector}::blendv({x}.acosh(), {large}, {x} > {vector}({limit}))"


def _remainder(a: Any, b: Any) -> str:
    vector = f"decltype({a})"
    return (
        f"[&]() {{ auto mod = {a}.fmod({b}); const {vector} zero(0); "
        f"auto other_sign = (mod != zero) & (({b} < zero) ^ (mod < zero)); "
        f"return {vector}::blendv(mod, mod + {b}, other_sign); }}()"
    )
