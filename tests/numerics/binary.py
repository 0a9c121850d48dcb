"""The families of ops of two and three tensors, of numbers beside tensors, and of mixed dtypes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import pairs, values
from .binary_ops import (
    MIXED,
    NUMBERS,
    binary_calls,
    mixed_calls,
)
from .calls import Call, Slot
from .exact import reference_of
from .families import Options
from .laboratory import CHUNK, Laboratory
from .parts import Part

_SPANS = 64  # All pairs of a 16-bit dtype are cut in so many parts.
_CROSS = {"float16": 2048, "bfloat16": 2048, "float32": 4096, "float64": 4096}
_RANDOM, _RANDOM_EXHAUSTIVE = 1 << 22, 10**9
_NEAR = 1 << 20


class Binary:
    """Compares ops of several tensors of one dtype, and of tensors and numbers."""

    name = "binary"

    def __init__(self) -> None:
        self._calls = {(call.op, call.variant): call for call in binary_calls()}

    def ops(self) -> frozenset[str]:
        """Return the functional overloads that this family compares."""
        return frozenset(op for op, _ in self._calls)

    def parts(self, options: Options) -> list[Part]:
        """Return the parts of these options, dtype by dtype."""
        found = []
        for dtype in options.dtypes:
            for (op, variant), call in self._calls.items():
                for span, coverage in _spans(dtype, call, options):
                    part = Part(op, dtype, options.target, self.name, variant, span, coverage)
                    found.append(part)
        return found

    def run(self, part: Part, laboratory: Laboratory) -> dict[str, Any]:
        """Return the part's reference and measures."""
        call = self._calls[part.op, part.variant]
        return _compared(call, [part.dtype] * _tensors(call), part, laboratory)


class Mixed:
    """Compares ops of two tensors of different dtypes."""

    name = "mixed"

    def __init__(self) -> None:
        self._calls = {(call.op, call.variant): call for call in mixed_calls()}

    def ops(self) -> frozenset[str]:
        """Return the functional overloads that this family compares."""
        return frozenset(op for op, _ in self._calls)

    def parts(self, options: Options) -> list[Part]:
        """Return the parts of the pairs whose first dtype is asked for."""
        return [
            Part(op, ",".join(pair), options.target, self.name, variant, "all", "structured")
            for pair in MIXED
            if pair[0] in options.dtypes
            for op, variant in self._calls
        ]

    def run(self, part: Part, laboratory: Laboratory) -> dict[str, Any]:
        """Return the part's reference and measures."""
        call = self._calls[part.op, part.variant]
        names = part.dtype.split(",")
        return _compared(call, [*names, "bool"], part, laboratory)


def _compared(call: Call, dtypes: list[str], part: Part, laboratory: Laboratory) -> dict[str, Any]:
    names = [
        next((s.dtype for s in call.slots if s.index == i and s.dtype), dtype)
        for i, dtype in enumerate(dtypes[: _tensors(call)])
    ]
    examples = [torch.zeros(CHUNK, dtype=values.dtype_of(name)) for name in names]
    number = NUMBERS[call.numbers[0].kind][0] if call.numbers else None
    kernel = laboratory.kernel(call.op, *call.arguments(examples, number))
    reference, exact = reference_of(call, names)
    # A long double costs a hundred times what the op does.
    sparse = part.coverage == "exhaustive" or "float64" in names

    def measures(sparse: bool) -> dict[str, Any]:
        inputs = (call.inputs(*one) for one in _chunks(call, names, part))
        return laboratory.compared(kernel, inputs, exact, sparse=sparse)

    found = measures(sparse)
    if sparse and found["beyond_regions"]:
        found = measures(False)  # Now with all of eager's errors.
    return {"reference": reference, "measures": found}


def _tensors(call: Call) -> int:
    return max((slot.index + 1 for slot in call.slots if isinstance(slot, Slot)), default=0)


def _spans(dtype: str, call: Call, options: Options) -> list[tuple[str, str]]:
    if call.numbers or dtype in ("bool", "uint8", "int8") or dtype.startswith("complex"):
        return [("all", "structured")]
    plain = len(call.slots) == 2 and not any(slot.dtype for slot in call.slots)
    if options.exhaustive and plain and dtype in ("float16", "bfloat16"):
        return [(f"{i}/{_SPANS}", "exhaustive") for i in range(_SPANS)]
    count = _RANDOM_EXHAUSTIVE if options.exhaustive else _RANDOM
    return [("all", f"structured+{count:.0e} random".replace("e+0", "e"))]


def _chunks(call: Call, names: list[str], part: Part) -> Iterator[tuple[list[Tensor], Any]]:
    """Give the tensors of one run each, and the number beside them."""
    if call.numbers:
        for number in NUMBERS[call.numbers[0].kind]:
            for one in values.in_chunks(_many(names[0]), CHUNK, _few(names[0], 512)):
                yield [one, one > 0] if len(names) > 1 else [one], number
        return
    if part.coverage == "exhaustive":
        index, of = map(int, part.span.split("/"))
        size = (1 << 16) // of
        found = pairs.every_pair(names[0], index * size, (index + 1) * size, CHUNK)
    else:
        found = _structured(names, part)
    for tensors in found:
        yield tensors, None


def _structured(names: list[str], part: Part) -> Iterator[list[Tensor]]:
    is_mixed = "," in part.dtype
    lists = [_few(name, 1024 if is_mixed else _CROSS.get(name, 2048)) for name in names]
    found = pairs.cross(lists, CHUNK)
    if len(names) == 3:
        found = itertools.chain(found, pairs.triples([_few(n, 96) for n in names], CHUNK))
    if all(name in values.FLOATS and name == names[0] for name in names):
        found = itertools.chain(found, pairs.near(names[0], len(names), _NEAR, CHUNK))
    if "random" in part.coverage:
        count = int(float(part.coverage.rpartition("+")[2].split()[0]))
        found = itertools.chain(found, pairs.random_bits(names, count, CHUNK))
    return found


def _few(name: str, count: int) -> Tensor:
    if name.startswith("complex"):
        reals = values.structured("float32", max(4, int(count**0.5)))
        return torch.view_as_complex(torch.cartesian_prod(reals, reals).contiguous())
    return values.structured(name, count)


def _many(name: str) -> Tensor:
    if name in ("float16", "bfloat16", "int16"):
        return values.from_bits(torch.arange(1 << 16), name)
    return _few(name, 1 << 17)
