"""The aten overloads that the compiler has code of its own for: what the laboratory must cover.

It imports Inductor, so it is for the laboratory's own process, not for the package's.
"""

from __future__ import annotations

import contextlib
import functools

import torch

from aoti_eager._declines import op_decline
from aoti_eager._ops import find_overload
from aoti_eager._schema import OpSchema, op_schema
from aoti_eager.errors import UnknownOpError


@functools.cache
def compiled_overloads() -> tuple[str, ...]:
    """Return the qualified names of all aten overloads that may serve, sorted.

    An overload is taken if Inductor lowers it by itself or takes it apart, and if the package does
    not decline each of its calls.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.lowering import fallbacks, lowerings

    table = select_decomp_table()
    found = set()
    for op in {*lowerings, *table}:
        if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
            continue
        schema = op_schema(op)
        if (op in fallbacks and op not in table) or op_decline(op, schema) is not None:
            continue
        with contextlib.suppress(UnknownOpError):  # TorchScript's alone: no dispatcher knows it.
            find_overload(schema.op)
            found.add(schema.op)
    return tuple(sorted(found))


def functional(name: str) -> str:
    """Return the overload whose code an in-place, ``out=`` or foreach overload has.

    A foreach op is made of the calls of the overload that its name says. A name that is functional,
    or that no rule fits, comes back as it is.
    """
    base, _, overload = name.removeprefix("aten::").partition(".")
    schema = op_schema(find_overload(name))
    if base.startswith("_foreach_"):
        return _foreach(name, base.removeprefix("_foreach_").rstrip("_"), overload)
    if any(a.mutated and a.kwarg_only for a in schema.arguments):
        candidate = base
    elif base.startswith("__i") and base.endswith("__"):
        candidate = base.replace("__i", "__", 1)
    elif base.endswith("_"):
        candidate = base[:-1]
    else:
        return name
    packet = getattr(torch.ops.aten, candidate, None)
    for other in packet.overloads() if packet is not None else ():
        try:
            found = op_schema(find_overload(f"aten::{candidate}.{other}"))
        except UnknownOpError:
            continue
        if _plain(found) == _plain(schema) and not any(a.mutated for a in found.arguments):
            return found.op
    return name


# What a factory is told by a word is told by the tensor that its out= overload writes to.
_OF_THE_RESULT = {"dtype", "layout", "device", "pin_memory", "memory_format"}


def _plain(schema: OpSchema) -> list[tuple[str, str]]:
    return [
        (a.name, a.type_name)
        for a in schema.arguments
        if not (a.mutated and a.kwarg_only) and a.name not in _OF_THE_RESULT
    ]


_LISTS = {"": "", "List": "Tensor", "Scalar": "Scalar", "Tensor": "Tensor", "ScalarList": "Scalar"}

_POWERS = {
    "List": "Tensor_Tensor",
    "Scalar": "Tensor_Scalar",
    "ScalarList": "Tensor_Scalar",
    "ScalarAndTensor": "Scalar",
}


def _foreach(name: str, base: str, overload: str) -> str:
    kind = overload.removesuffix("_out") if overload != "out" else ""
    if base == "pow":
        return f"aten::pow.{_POWERS[kind]}"
    for other in (_LISTS.get(kind, kind), kind, "default", "Tensor", "Tensor_Scalar"):
        candidate = f"aten::{base}.{other}" if other and other != "default" else f"aten::{base}"
        try:
            return op_schema(find_overload(candidate)).op
        except UnknownOpError:
            continue
    return name
