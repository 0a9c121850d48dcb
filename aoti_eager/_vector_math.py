"""C++ for functions whose vector code is less exact than what eager runs. Worker only.

Inductor writes a function of its own where that is faster, or one of ATen's that eager itself does
not use. Each of these is the one that eager's kernel calls, or one as exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def vector_functions(vector_bits: int, count: Callable[[Any], int]) -> dict[str, Callable[..., str]]:
    """Return generators of C++ expressions of vectors, by Inductor's name of the op.

    Args:
        vector_bits: 512 or 256, or 0 where it is not known.
        count: Gives how many of ATen's vectors hold a variable of generated code.
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


def _sleef(name: str, function: str, count: Callable[[Any], int]) -> Callable[..., str]:
    def expression(x: Any) -> str:
        if x.dtype is not torch.float32:
            return f"{x}.{name}()"
        one = f"at::vec::Vectorized<float>({function}({{}}))"
        if count(x) == 1:
            return one.format(x)
        body = f"for (int i = 0; i < {count(x)}; i++) v[i] = {one.format('v[i]')};"
        return f"[&](auto v) {{ {body} return v; }}({x})"

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
