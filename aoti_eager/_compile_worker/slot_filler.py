"""Fills the slots of one call with values made up from the call's metadata; pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .._keys.call_template import TensorSlot, slot_dtype
from . import made_up_numbers as families
from .input_ranges import InputRanges
from .made_up_numbers import Family, numbers
from .made_up_values import float_values, int_values, number_values

# How integers are filled: the first that the original does not refuse.
WIDE, POSITIVE, SMALL = "wide", "positive", "small"

# Integer arguments that an original uses as places in memory, some of them without a check.
_PLACES = re.compile(r"ind(ex|ices)|target|offset|length|sorter|batch_sizes")

_NAN, _INF = math.nan, math.inf
_DENSE = (0.0, _NAN, 1e-8, -1e-8, _INF, -_INF, 20.0, -20.0, 89.2, -89.2, 0.5, -0.0, 3.0)


def extent(slot: TensorSlot) -> int:
    """Return how many elements of memory a slot's tensor reaches over."""
    if slot.number_kind:
        return 1
    sizes, strides = slot.component["sizes"], slot.component["strides"]
    if 0 in sizes:
        return 0
    return int(sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1)


class SlotFiller:
    """Makes the tensor of one slot at a time.

    Args:
        slots: What the inputs must look like.
        own: The call's own numbers.
        ranges: The values that the inputs may have.

    Attributes:
        slots: The slots, in order; a slot is named by its place.
        dtypes: Each slot's dtype.
        extents: How many elements of memory each slot's tensor reaches over.
        numbers: The slots of numbers.
        floats: The slots of floating-point and complex tensors.
        largest: The largest extent.
        values: The structured values of each dtype.
    """

    def __init__(
        self,
        slots: Sequence[TensorSlot],
        own: Sequence[float],
        ranges: InputRanges | None = None,
    ) -> None:
        self.slots = slots
        self.ranges = InputRanges() if ranges is None else ranges
        self.own = own
        self.dtypes = [slot_dtype(slot) for slot in slots]
        self.extents = [extent(slot) for slot in slots]
        self.numbers = [i for i, slot in enumerate(slots) if slot.number_kind]
        self.floats = [
            i
            for i, dtype in enumerate(self.dtypes)
            if (dtype.is_floating_point or dtype.is_complex) and not slots[i].number_kind
        ]
        self.largest = max(self.extents, default=0)
        self.values = {dtype: self._structured(dtype) for dtype in set(self.dtypes)}

    def holds_places(self, i: int) -> bool:
        """Return whether an original may use slot ``i`` as places in memory."""
        return _PLACES.search(self.slots[i].name) is not None

    def _structured(self, dtype: torch.dtype) -> Tensor:
        if dtype is torch.bool:
            return torch.tensor([False, True])
        if dtype.is_complex:
            real = torch.float64 if dtype is torch.complex128 else torch.float32
            values = [v for v in float_values(real, self.own) if abs(v) < 1e4]
            parts = torch.tensor(values, dtype=torch.float64)
            return torch.complex(parts, parts.roll(7))
        if dtype.is_floating_point:
            return torch.tensor(float_values(dtype, self.own), dtype=torch.float64)
        # The upper half of uint64 has the same bits as negative numbers: conversion wraps around.
        wrapped = ((one + (1 << 63)) % (1 << 64) for one in int_values(dtype, self.own))
        return torch.tensor([one - (1 << 63) for one in wrapped], dtype=torch.int64)

    def simple(
        self, i: int, data: str, kind: str, generator: torch.Generator, seed: int, run: int
    ) -> Tensor:
        """Return slot ``i`` with the data that each call gets."""
        dtype = self.dtypes[i]
        if not (dtype.is_floating_point or dtype.is_complex) or self.slots[i].number_kind:
            return self.shaped(i, self.other(i, kind, generator, run))
        if data == "special":
            # A step without a common factor with the length pairs each value with other values.
            step = (1, 3, 5, 7, 9, 11)[seed % 6]
            order = (torch.arange(self.extents[i]) * step + seed) % len(_DENSE)
            return self.shaped(i, torch.tensor(_DENSE, dtype=torch.float64)[order])
        family = families.positive if data == "positive" else families.ordinary
        return self.shaped(i, self.drawn(i, family, generator))

    def drawn(self, i: int, family: Family, generator: torch.Generator) -> Tensor:
        """Return the flat values of a floating-point or complex tensor, drawn from a family."""
        scale = self.ranges.scales.get(i)
        if self.ranges.is_region and family is families.ordinary and not self.dtypes[i].is_complex:
            shared = self.ranges.shared.part(self.extents[i], generator, self.largest)
            return shared * (1.0 if scale is None else scale)  # New memory: it is written to.
        made = self._unscaled(i, family, generator)
        return made if scale is None else made * scale

    def _unscaled(self, i: int, family: Family, generator: torch.Generator) -> Tensor:
        dtype, count = self.dtypes[i], self.extents[i]
        fi = torch.finfo(dtype)
        if family in (families.ordinary, families.positive) and not dtype.is_complex:
            # No two elements are alike, so that an element at the wrong place shows.
            return family(count, generator, fi)
        made = numbers(family, count, generator, fi)
        if dtype.is_complex:
            return torch.complex(made, numbers(family, count, generator, fi))
        return made

    def other(self, i: int, kind: str, generator: torch.Generator, run: int) -> Tensor:
        """Return the flat values of an integer, a flag or a number."""
        slot, dtype, count = self.slots[i], self.dtypes[i], self.extents[i]
        if slot.number_kind:
            known = number_values(slot.number_kind)
            return torch.tensor([known[(run + i) % len(known) if run else 0]])
        if i in self.ranges.most:
            return self._within_range(i, generator)
        if dtype is torch.bool or kind == SMALL or self.holds_places(i):
            return torch.randint(0, 2, (count,), generator=generator)
        values = self.values[dtype]
        if kind == POSITIVE:
            values = values[values > 0]
        chosen = values[torch.randint(0, len(values), (count,), generator=generator)]
        ii = torch.iinfo(dtype)
        low, high = (1 if kind == POSITIVE else max(ii.min + 1, -(1 << 62))), min(ii.max, 1 << 62)
        anything = torch.randint(low, high, (count,), generator=generator)
        small = torch.randint(
            max(low, -64) if kind == WIDE else 1, 65, (count,), generator=generator
        )
        which = torch.randint(0, 4, (count,), generator=generator)
        return torch.where(which < 2, chosen, torch.where(which == 2, anything, small))

    def _within_range(self, i: int, generator: torch.Generator) -> Tensor:
        """Return integers that the original takes, one in eight of those outside of the range."""
        count = self.extents[i]
        made = torch.randint(0, self.ranges.most[i] + 1, (count,), generator=generator)
        further = torch.tensor(self.ranges.further.get(i, ()), dtype=torch.int64)
        if not len(further):
            return made
        chosen = further[torch.randint(0, len(further), (count,), generator=generator)]
        which = torch.randint(0, 8, (count,), generator=generator)
        return torch.where(which == 0, chosen, made)

    def shaped(self, i: int, flat: Tensor) -> Tensor:
        """Return slot ``i`` with flat values, in the slot's sizes, strides and dtype."""
        slot, dtype = self.slots[i], self.dtypes[i]
        if "value" in slot.component:
            return torch.tensor(float.fromhex(slot.component["value"]), dtype=dtype)
        if slot.number_kind:
            return flat.to(dtype)[0]
        sizes, strides = slot.component["sizes"], slot.component["strides"]
        if 0 in sizes:
            return torch.empty_strided(sizes, strides, dtype=dtype)
        return flat.to(dtype).as_strided(sizes, strides)

    def filled(
        self, i: int, family: Family, generator: torch.Generator, kind: str, run: int
    ) -> Tensor:
        """Return slot ``i``: numbers of a family in a float's slot; else values by ``kind``."""
        if i in self.floats:
            return self.shaped(i, self.drawn(i, family, generator))
        return self.shaped(i, self.other(i, kind, generator, run))

    def mixed(
        self,
        i: int,
        all_families: Sequence[Family],
        generator: torch.Generator,
        kind: str,
        run: int,
    ) -> Tensor:
        """Return slot ``i`` with numbers each of a family of its own."""
        if i not in self.floats:
            return self.shaped(i, self.other(i, kind, generator, run))
        count = self.extents[i]

        def one(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
            each = torch.stack([f(count, generator, fi) for f in all_families])
            which = torch.randint(0, len(all_families), (count,), generator=generator)
            return each.gather(0, which[None])[0]

        made = numbers(one, count, generator, torch.finfo(self.dtypes[i]))
        if self.dtypes[i].is_complex:
            made = torch.complex(made, made.roll(1))
        return self.shaped(i, made)
