"""The family of calls whose tensors are not contiguous: other code is generated for them.

A single tensor has every second element of its memory. Of several, the first is contiguous and the
others are transposed, so no loop over memory serves them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import pairs, values
from .binary_ops import binary_calls
from .calls import Call
from .exact import reference_of
from .families import Options
from .laboratory import Laboratory
from .parts import Part
from .unary_ops import unary_calls

_ROWS, _COLUMNS = 509, 257
_SIZE = _ROWS * _COLUMNS
# Values of a tensor that are crossed with the others'; and of those that only eager runs on.
_FEW, _MANY = 512, 2048


class Strided:
    """Compares one call of each overload on tensors that are not contiguous."""

    name = "strided"

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        for call in (*unary_calls(), *binary_calls()):
            if not call.numbers:
                self._calls.setdefault(call.op, call)

    def ops(self) -> frozenset[str]:
        """Return the functional overloads that this family compares."""
        return frozenset(self._calls)

    def parts(self, options: Options) -> list[Part]:
        """Return the parts of these options, dtype by dtype."""
        return [
            Part(op, dtype, options.target, self.name, f"strided {call.variant}".strip())
            for dtype in options.dtypes
            for op, call in self._calls.items()
        ]

    def run(self, part: Part, laboratory: Laboratory) -> dict[str, Any]:
        """Return the part's reference and measures."""
        call = self._calls[part.op]
        count = max(slot.index + 1 for slot in call.slots)
        names = [
            next((s.dtype for s in call.slots if s.index == i and s.dtype), part.dtype)
            for i in range(count)
        ]
        examples = [torch.zeros(_SIZE, dtype=values.dtype_of(name)) for name in names]
        kernel = laboratory.kernel(call.op, *call.arguments(_laid_out(examples)))
        reference, exact = reference_of(call, names)
        if reference == "long double":  # The arrays are contiguous, the results need not be.
            reference, exact = "eager", None
        by_input = _is_by_input(names)

        def measures(more: Iterable[list[Any]] = ()) -> dict[str, Any]:
            inputs = (call.inputs(_laid_out(one)) for one in _chunks(names, call.least, _FEW))
            return laboratory.compared(kernel, inputs, exact, by_input=by_input, more=more)

        found = measures()
        if found["beyond_regions"]:  # Perhaps only of the few values that eager was run on.
            found = measures(call.inputs(one) for one in _chunks(names, call.least, _MANY))
        return {"reference": reference, "measures": found}


def _is_by_input(names: list[str]) -> bool:
    return len(names) == 1 and names[0] in values.FLOATS


def _laid_out(tensors: list[Tensor]) -> list[Tensor]:
    """Return tensors with the same values that are not contiguous."""
    if len(tensors) == 1:
        return [torch.stack([tensors[0], tensors[0]], 1)[:, 0]]
    first, *others = (one.view(_ROWS, _COLUMNS) for one in tensors)
    return [first, *(one.t().contiguous().t() for one in others)]


def _chunks(names: list[str], least: float | None, count: int) -> Iterator[list[Tensor]]:
    """Give tensors of values: of two, ``count`` of each one's are crossed."""
    if len(names) == 1 and not names[0].startswith("complex"):
        every = names[0] in ("float16", "bfloat16", "int16")
        bits = torch.arange(1 << 16)
        several = (1 << 17) * (count // _FEW)
        found = values.from_bits(bits, names[0]) if every else values.structured(names[0], several)
        for one in values.in_chunks(found, _SIZE, found[:512]):
            yield [one if least is None else torch.where(one < least, -one, one)]
        return
    lists = [
        values.structured(name, count) if "complex" not in name else _complex() for name in names
    ]
    yield from itertools.islice(pairs.cross(lists, _SIZE), 8 * (count // _FEW) ** 2)


def _complex() -> Tensor:
    reals = values.structured("float32", 22)
    return torch.view_as_complex(torch.cartesian_prod(reals, reals).contiguous())
