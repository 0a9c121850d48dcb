"""The family of ops of one tensor: every value, or a share of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import values
from .calls import Call
from .exact import reference_of
from .families import Options
from .laboratory import CHUNK, Laboratory
from .parts import Part
from .unary_ops import unary_calls

NAME = "unary"

# Dtypes whose values are few enough to take each of them.
_SMALL = ("bool", "uint8", "int8", "int16", "float16", "bfloat16")
_SPANS = 16  # An exhaustive float32 or int32 run is cut in so many parts.


class Unary:
    """Compares ops of one tensor."""

    name = NAME

    def __init__(self) -> None:
        self._calls = {(call.op, call.variant): call for call in unary_calls()}

    def ops(self) -> frozenset[str]:
        """Return the functional overloads that this family compares."""
        return frozenset(op for op, _ in self._calls)

    def parts(self, options: Options) -> list[Part]:
        """Return the parts of these options, dtype by dtype."""
        found = []
        for dtype in options.dtypes:
            for op, variant in self._calls:
                for span, coverage in _spans(dtype, options):
                    part = Part(op, dtype, options.target, NAME, variant, span, coverage)
                    found.append(part)
        return found

    def run(self, part: Part, laboratory: Laboratory) -> dict[str, Any]:
        """Return the part's reference and measures."""
        call = self._calls[part.op, part.variant]
        example = torch.zeros(CHUNK, dtype=values.dtype_of(part.dtype))
        kernel = laboratory.kernel(call.op, *call.arguments([example]))
        reference, exact = reference_of(call, [part.dtype])
        # A long double costs a hundred times what the op does.
        sparse = part.dtype == "float64" or (part.coverage, part.dtype) == ("exhaustive", "float32")

        def measures(sparse: bool) -> dict[str, Any]:
            chunks = ([_within(one, call.least)] for one in _chunks(part))
            by_input = example.is_floating_point()
            return laboratory.compared(kernel, chunks, exact, by_input=by_input, sparse=sparse)

        found = measures(sparse)
        if sparse and found["beyond_regions"]:
            found = measures(False)  # Now with all of eager's errors.
        return {"reference": reference, "measures": found}

    def call(self, part: Part) -> Call:
        """Return the call of a part."""
        return self._calls[part.op, part.variant]


def _spans(dtype: str, options: Options) -> list[tuple[str, str]]:
    if dtype in _SMALL:
        return [("all", "exhaustive")]
    if options.exhaustive and dtype in ("float32", "int32"):
        return [(f"{i}/{_SPANS}", "exhaustive") for i in range(_SPANS)]
    if dtype in ("float64", "int64"):
        return [("all", "structured+1e9 random" if options.exhaustive else "structured+random")]
    if dtype.startswith("complex"):
        return [("all", "structured")]
    return [("all", f"structured+every {options.share}th")]


def _chunks(part: Part) -> Iterator[Tensor]:
    name = part.dtype
    if name.startswith("complex"):
        reals = values.structured("float32", 300)
        pairs = torch.view_as_complex(torch.cartesian_prod(reals, reals).contiguous())
        return values.in_chunks(pairs, CHUNK, pairs[:64])
    tail = _tail(name)
    if name in _SMALL:
        bits = torch.arange(1 << (8 * values.dtype_of(name).itemsize))
        return values.in_chunks(values.from_bits(bits, name), CHUNK, tail)
    worth = values.neighbours(name) if name in values.FLOATS else values.structured(name, 1 << 16)
    first = values.in_chunks(worth, CHUNK, tail)
    if part.coverage == "exhaustive":
        index, of = map(int, part.span.split("/"))
        size = (1 << 32) // of
        return values.bit_chunks(name, index * size, (index + 1) * size, 1, CHUNK, tail)
    if name in ("float64", "int64"):
        count = 10**9 if "1e9" in part.coverage else 1 << 22
        return itertools.chain(first, values.random_bits(name, count, 15, CHUNK))
    step = int(part.coverage.rpartition(" ")[2].removesuffix("th"))
    return itertools.chain(first, values.bit_chunks(name, 0, 1 << 32, step, CHUNK, tail))


def _within(chunk: Tensor, least: float | None) -> Tensor:
    return chunk if least is None else torch.where(chunk < least, -chunk, chunk)


def _tail(name: str) -> Tensor:
    if name in values.FLOATS:
        return torch.tensor(values.SPECIAL, dtype=torch.float64).to(values.dtype_of(name))
    return values.structured(name, 512)
