"""The family of kernels that take a call's numbers as inputs, beside its tensors.

The package makes one when calls of an op differ in a number only. Nothing that the compiler makes
of a number that it is told (an exponent, a divisor's reciprocal) is in such code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aoti_eager._base.op_names import find_overload
from aoti_eager._keys.kernel_key import float_bits
from aoti_eager._keys.pattern import number_range
from aoti_eager._keys.schema import Kind, op_schema

from . import pairs, values
from .binary_ops import binary_calls
from .calls import Call
from .exact import reference_of
from .families import Options
from .laboratory import CHUNK, Laboratory
from .parts import Part
from .unary_ops import unary_calls

# What numbers a kernel of one sign takes: between 2^-100 and 2^100.
_VALUES = (0.1, 6.283185307179586, 1e-3, 3.0, 2.5, 1e10, 2.0**-100, 2.0**100, 1 / 3, 0.5, 1.0, 20.0)
_DTYPES = ("float32", "float64")  # No others' calls have kernels that take numbers.


class Numbers:
    """Compares one kernel of each overload that has numbers, for each sign of the first."""

    name = "numbers"

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], Call] = {}
        for call in (*unary_calls(), *binary_calls()):
            for sign in ("+", "-"):
                if (call.op, sign) not in self._calls and _numbers(call):
                    self._calls[call.op, sign] = call

    def ops(self) -> frozenset[str]:
        """Return the functional overloads that this family compares."""
        return frozenset(op for op, _ in self._calls)

    def parts(self, options: Options) -> list[Part]:
        """Return the parts of these options, dtype by dtype."""
        return [
            Part(op, dtype, options.target, self.name, f"numbers as inputs {sign}")
            for dtype in options.dtypes
            if dtype in _DTYPES
            for op, sign in self._calls
        ]

    def run(self, part: Part, laboratory: Laboratory) -> dict[str, Any]:
        """Return the part's reference and measures."""
        sign = part.variant[-1]
        call = self._calls[part.op, sign]
        names = [
            next((s.dtype for s in call.slots if s.index == i and s.dtype), part.dtype)
            for i in range(max(slot.index + 1 for slot in call.slots))
        ]
        examples = [torch.zeros(CHUNK, dtype=values.dtype_of(name)) for name in names]
        first = _with_numbers(call, 0, sign)
        kernel = laboratory.kernel(call.op, *first.arguments(examples), numbers=True)
        reference, exact = reference_of(call, names)
        found = laboratory.compared(kernel, _inputs(call, names, sign), exact)
        return {"reference": reference, "measures": found}


def _numbers(call: Call) -> list[str]:
    """Return the names of the call's arguments that may be inputs of a kernel."""
    schema = op_schema(find_overload(call.op))
    name = call.op.partition("::")[2]
    if call.numbers or call.least is not None or name.startswith(("pow", "float_power")):
        return []
    given = dict(zip((a.name for a in schema.arguments), call.args, strict=False)) | call.kwargs
    kinds = {a.name: a.kind for a in schema.arguments}
    return [
        name
        for name, value in given.items()
        if kinds[name] is Kind.SCALAR
        and isinstance(value, float)
        and number_range(float_bits(value.hex())) is not None
    ]


def _with_numbers(call: Call, which: int, sign: str) -> Call:
    """Return the call with other numbers; the first one has the sign."""
    names = _numbers(call)
    schema = op_schema(find_overload(call.op))
    given = dict(zip((a.name for a in schema.arguments), call.args, strict=False)) | call.kwargs
    for i, name in enumerate(names):
        value = _VALUES[(which * (1 + 4 * i) + 2 * i) % len(_VALUES)]
        given[name] = -value if i == 0 and sign == "-" else value
    args = tuple(given[a.name] for a in schema.arguments if a.name in given and not a.kwarg_only)
    kwargs = {a.name: given[a.name] for a in schema.arguments if a.kwarg_only and a.name in given}
    return Call(call.op, args, kwargs, call.reference)


def _inputs(call: Call, names: list[str], sign: str) -> Iterator[list[Any]]:
    """Give the inputs of one run each: tensors and numbers, as the arguments stand."""
    schema = op_schema(find_overload(call.op))
    numbers = set(_numbers(call))
    for which in range(len(_VALUES)):
        other = _with_numbers(call, which, sign)
        for tensors in _tensors(names):
            args, kwargs = other.arguments(tensors)
            bound = zip(schema.arguments, schema.bind(args, kwargs), strict=True)
            yield [v for a, v in bound if isinstance(v, Tensor) or a.name in numbers]


def _tensors(names: list[str]) -> Iterator[list[Tensor]]:
    if len(names) == 1:
        few = values.structured(names[0], 1 << 17)
        for one in values.in_chunks(few, CHUNK, few[:512]):
            yield [one]
        return
    lists = [values.structured(name, 512) for name in names]
    yield from itertools.islice(pairs.cross(lists, CHUNK), 2)
