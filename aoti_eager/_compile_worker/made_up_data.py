"""Arguments made up from a key: data sets that together find the faults of a kernel; pure.

A fault shows in an element only if the element's arguments have certain values. So structured
values are crossed: any two of them meet in any two arguments. A tensor of thousands of elements has
room for all pairs; a smaller tensor gets more runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._keys.call_template import TensorSlot, slot_dtype
from . import made_up_numbers as families
from .made_up_numbers import Family, numbers
from .made_up_values import float_values, int_values, number_values

# The cost of a run on a slow core, and of an element: made, copied, computed twice, compared.
_RUN_US, _ELEMENT_US = 55.0, 0.04
# The most that all data sets may cost that are not always made.
_BUDGET_US = 250_000.0

# So many elements of crossed data are made at once.
_AT_ONCE = 1024

# The data sets that each call gets.
ALWAYS = ("normal", "positive", "special")

# Ordinary data with a special value here and there.
SPARSE = "one special value in a row"

# In functions of more tensors than this, values at the ends of the range leave it on the way.
_MOST_EXTREME = 4

# How integers are filled: the first that the original does not refuse.
WIDE, POSITIVE, SMALL = "wide", "positive", "small"

# Integer arguments that an original uses as places in memory, some of them without a check.
_PLACES = re.compile(r"ind(ex|ices)|target|offset|length|sorter|batch_sizes")

_NAN, _INF = math.nan, math.inf
_DENSE = (0.0, _NAN, 1e-8, -1e-8, _INF, -_INF, 20.0, -20.0, 89.2, -89.2, 0.5, -0.0, 3.0)


@dataclass(frozen=True, slots=True)
class DataSet:
    """Arguments for some runs.

    Attributes:
        name: What the arguments are.
        runs: The number of runs.
        make: Returns the inputs of a run, by the run's number and by how integers are filled.
        ordinary: Whether the values are ordinary ones.
    """

    name: str
    runs: int
    make: Callable[[int, str], list[Tensor]]
    ordinary: bool = False


def data_sets(
    slots: Sequence[TensorSlot], own: Sequence[float], *, mixes: bool, largest: int = 0
) -> Iterator[DataSet]:
    """Give the data sets of a call: those that find most faults first, as many as time allows.

    Args:
        slots: What the inputs must look like.
        own: The call's own numbers.
        mixes: Whether an element of a result depends on many elements of an argument. A sum of
            numbers of all magnitudes depends on their order, so such a call gets one kind of
            number at a time.
        largest: The number of elements of the largest result.
    """
    made = _Maker(slots, own)
    yield from _always(made)
    spent = 0.0
    elements = max([largest, *(extent(slot) for slot in slots)]) * (len(slots) + 1)
    for place, found in enumerate(_mixing(made) if mixes else _pointwise(made)):
        room = (_BUDGET_US - spent) / (_RUN_US + _ELEMENT_US * elements)
        runs = min(found.runs, int(room))
        if runs < 1:
            if place:
                return
            runs = 1  # The first data set finds most faults: it is never left out.
        spent += runs * (_RUN_US + _ELEMENT_US * elements)
        yield DataSet(found.name, runs, found.make, found.ordinary)


def extent(slot: TensorSlot) -> int:
    """Return how many elements of memory a slot's tensor reaches over."""
    if slot.number_kind:
        return 1
    sizes, strides = slot.component["sizes"], slot.component["strides"]
    if 0 in sizes:
        return 0
    return int(sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1)


def made_up_input(slot: TensorSlot, data: str, seed: int) -> Tensor:
    """Return a tensor with the slot's sizes, strides and dtype.

    Args:
        slot: What the tensor must look like.
        data: ``"normal"``, ``"positive"`` (around 0.1) or ``"special"`` values for floating-point
            slots. Other slots get zeros and ones, the values that most integer arguments (an index,
            a flag) may have.
        seed: Slots with different seeds get different values.
    """
    generator = torch.Generator().manual_seed(seed)
    return _Maker([slot], ()).simple(0, data, SMALL, generator, seed, 0)


def _always(made: _Maker) -> Iterator[DataSet]:
    for name in ALWAYS:
        yield DataSet(name, 1, made.all_simple(name), ordinary=name == "normal")


def _pointwise(made: _Maker) -> Iterator[DataSet]:
    all_families: list[Family] = [
        *(families.ordinary, families.magnitudes, families.moderate, families.tens),
        *(families.minute, families.unit, families.halves, families.whole, families.offset),
        *(families.squares_overflow, families.squares_vanish, families.near_overflow),
    ]
    cross = made.crossed
    if len(made.floats) > _MOST_EXTREME:
        cross = made.crossed_moderately
        all_families = [
            *(families.ordinary, families.moderate, families.tens, families.minute),
            *(families.unit, families.halves, families.offset),
        ]
    small = max(1, 4096 // max(1, made.largest))
    yield DataSet("mixed", min(small, 256), made.mixture(all_families))
    yield DataSet("crossed", made.runs_of_cross(), cross)
    yield DataSet("related", min(small, 64), made.related)
    if made.numbers:
        few = min(small, 16) * 12
        yield DataSet("mixed", few, made.mixture(all_families))
    alone = [families.unit, families.moderate, families.tens]
    if len(made.floats) <= _MOST_EXTREME:
        alone.insert(0, families.magnitudes)
    for family in alone:
        name = family.__name__
        yield DataSet(name, min(small, 64), made.of(family, None), ordinary=True)
    yield DataSet("crossed once more", made.runs_of_cross(), cross)
    yield DataSet("mixed once more", min(small, 1024), made.mixture(all_families))


def _mixing(made: _Maker) -> Iterator[DataSet]:
    yield DataSet("offset", 1, made.of(families.offset, None))
    for step in range(3):
        yield DataSet(SPARSE, 4, made.sparse(step))
    for family in (
        *(families.squares_overflow, families.growing, families.moderate, families.far_offset),
        *(families.squares_vanish, families.halves, families.unit, families.tens, families.minute),
        families.whole,
    ):
        if family is families.squares_vanish and torch.float64 in made.dtypes:
            continue  # Single precision does not show how far a sum of denormals is off.
        yield DataSet(family.__name__.replace("_", " "), 2, made.of(family, None))
    yield DataSet("crossed", max(1, made.runs_of_cross() // 8), made.crossed_moderately)
    for only in range(len(made.slots) if len(made.floats) > 1 else 0):
        if only in made.floats:
            for family in (families.moderate, families.offset):
                name = f"{family.__name__.replace('_', ' ')} {made.slots[only].name!r}"
                yield DataSet(name, 1, made.of(family, only))
    for step in range(3, 8):
        yield DataSet(SPARSE, 8, made.sparse(step))


class _Maker:
    """Fills the slots of one call."""

    def __init__(self, slots: Sequence[TensorSlot], own: Sequence[float]) -> None:
        self.slots = slots
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
        self._crosses: dict[tuple[int, bool], tuple[Any, tuple[Tensor, ...]]] = {}
        self._tables: dict[tuple[str, bool], tuple[list[Tensor | None], int]] = {}
        self._values = {dtype: self._structured(dtype) for dtype in set(self.dtypes)}

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

    # -- one slot --

    def simple(
        self, i: int, data: str, kind: str, generator: torch.Generator, seed: int, run: int
    ) -> Tensor:
        """Return slot ``i`` with the data that each call gets."""
        dtype = self.dtypes[i]
        if not (dtype.is_floating_point or dtype.is_complex) or self.slots[i].number_kind:
            return self._shaped(i, self._other(i, kind, generator, run))
        if data == "special":
            # A step without a common factor with the length pairs each value with other values.
            step = (1, 3, 5, 7, 9, 11)[seed % 6]
            order = (torch.arange(self.extents[i]) * step + seed) % len(_DENSE)
            return self._shaped(i, torch.tensor(_DENSE, dtype=torch.float64)[order])
        family = families.positive if data == "positive" else families.ordinary
        return self._shaped(i, self._floats(i, family, generator))

    def _floats(self, i: int, family: Family, generator: torch.Generator) -> Tensor:
        dtype, count = self.dtypes[i], self.extents[i]
        fi = torch.finfo(dtype)
        if family in (families.ordinary, families.positive) and not dtype.is_complex:
            # No two elements are alike, so that an element at the wrong place shows.
            return family(count, generator, fi)
        made = numbers(family, count, generator, fi)
        if dtype.is_complex:
            return torch.complex(made, numbers(family, count, generator, fi))
        return made

    def _other(self, i: int, kind: str, generator: torch.Generator, run: int) -> Tensor:
        """Return the flat values of an integer, a flag or a number."""
        slot, dtype, count = self.slots[i], self.dtypes[i], self.extents[i]
        if slot.number_kind:
            known = number_values(slot.number_kind)
            return torch.tensor([known[(run + i) % len(known) if run else 0]])
        if dtype is torch.bool or kind == SMALL or _PLACES.search(slot.name):
            return torch.randint(0, 2, (count,), generator=generator)
        values = self._values[dtype]
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

    def _shaped(self, i: int, flat: Tensor) -> Tensor:
        slot, dtype = self.slots[i], self.dtypes[i]
        if "value" in slot.component:
            return torch.tensor(float.fromhex(slot.component["value"]), dtype=dtype)
        if slot.number_kind:
            return flat.to(dtype)[0]
        sizes, strides = slot.component["sizes"], slot.component["strides"]
        if 0 in sizes:
            return torch.empty_strided(sizes, strides, dtype=dtype)
        return flat.to(dtype).as_strided(sizes, strides)

    # -- all slots --

    def all_simple(self, data: str) -> Callable[[int, str], list[Tensor]]:
        """Return the maker of the data that each call gets."""

        def make(run: int, kind: str) -> list[Tensor]:
            return [
                self.simple(i, data, SMALL, torch.Generator().manual_seed(i), i, 0)
                for i in range(len(self.slots))
            ]

        return make

    def of(self, family: Family, only: int | None) -> Callable[[int, str], list[Tensor]]:
        """Return the maker of numbers of a family, in one slot alone or in each slot."""

        def make(run: int, kind: str) -> list[Tensor]:
            generator = torch.Generator().manual_seed(1000 + run)
            return [
                self._filled(
                    i, family if only in (None, i) else families.ordinary, generator, kind, run
                )
                for i in range(len(self.slots))
            ]

        return make

    def _filled(
        self, i: int, family: Family, generator: torch.Generator, kind: str, run: int
    ) -> Tensor:
        if i in self.floats:
            return self._shaped(i, self._floats(i, family, generator))
        return self._shaped(i, self._other(i, kind, generator, run))

    def mixture(self, all_families: Sequence[Family]) -> Callable[[int, str], list[Tensor]]:
        """Return the maker of numbers each of a family of its own, so that all families meet."""

        def make(run: int, kind: str) -> list[Tensor]:
            generator = torch.Generator().manual_seed(2000 + run)
            return [
                self._mixed(i, all_families, generator, kind, run) for i in range(len(self.slots))
            ]

        return make

    def _mixed(
        self,
        i: int,
        all_families: Sequence[Family],
        generator: torch.Generator,
        kind: str,
        run: int,
    ) -> Tensor:
        if i not in self.floats:
            return self._shaped(i, self._other(i, kind, generator, run))
        count = self.extents[i]

        def one(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
            each = torch.stack([f(count, generator, fi) for f in all_families])
            which = torch.randint(0, len(all_families), (count,), generator=generator)
            return each.gather(0, which[None])[0]

        made = numbers(one, count, generator, torch.finfo(self.dtypes[i]))
        if self.dtypes[i].is_complex:
            made = torch.complex(made, made.roll(1))
        return self._shaped(i, made)

    def related(self, run: int, kind: str) -> list[Tensor]:
        """Return inputs that are alike: equal, opposite, or close to either."""
        generator = torch.Generator().manual_seed(3000 + run)
        fi = torch.finfo(torch.float64)
        base = numbers(families.moderate, self.largest, generator, fi)
        made = []
        for i in range(len(self.slots)):
            if i not in self.floats or self.dtypes[i].is_complex:
                made.append(self._filled(i, families.ordinary, generator, kind, run))
                continue
            eps = torch.finfo(self.dtypes[i]).eps
            count = self.extents[i]
            which = torch.randint(0, 6, (count,), generator=generator)
            steps = torch.randint(-3, 4, (count,), generator=generator) * eps
            by = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, 3.0], dtype=torch.float64)[which]
            made.append(
                self._shaped(i, base[:count] * by * (1 + torch.where(which > 1, steps, 0.0)))
            )
        return made

    # -- crosses --

    def runs_of_cross(self) -> int:
        """Return in how many runs every two structured values meet in every two slots."""
        if not self.largest:
            return 1
        crossed = [i for i, n in enumerate(self.extents) if n and i not in self.numbers]
        sizes = sorted((len(self._values[self.dtypes[i]]) for i in crossed), reverse=True)
        if not sizes:
            return 1
        pairs = _prime(sizes[0]) ** 2 if len(crossed) + len(self.numbers) > 1 else sizes[0]
        if not self._is_aligned():
            pairs *= 6  # Drawn at random: with six times as many draws, most pairs occur.
        return max(1, -(-pairs // self.largest))

    def _is_aligned(self) -> bool:
        return len({self.extents[i] for i in range(len(self.slots)) if i not in self.numbers}) <= 1

    def crossed(self, run: int, kind: str) -> list[Tensor]:
        """Return a part of the cross of structured values."""
        return self._cross(run, kind, moderately=False)

    def crossed_moderately(self, run: int, kind: str) -> list[Tensor]:
        """Return a part of the cross of values of which no sum of a few is infinite."""
        return self._cross(run, kind, moderately=True)

    def _cross(self, run: int, kind: str, *, moderately: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(4000 + run)
        if (kind, moderately) not in self._tables:
            found = [self._table(i, kind, moderately) for i in range(len(self.slots))]
            longest = max((len(table) for table in found if table is not None), default=2)
            self._tables[kind, moderately] = found, _prime(longest)
        tables, base = self._tables[kind, moderately]
        made = []
        for i, table in enumerate(tables):
            count = self.extents[i]
            if not count:
                made.append(self._shaped(i, torch.empty(0)))
                continue
            if table is None:
                made.append(self._shaped(i, self._other(i, kind, generator, run)))
                continue
            if self._is_aligned():
                # Small tensors get many runs at once: one run alone takes a few dozen torch calls.
                at_once = max(1, _AT_ONCE // count)
                name = i, kind, moderately, run // at_once
                if self._crosses.get((i, moderately), (None, ()))[0] != name:
                    first = run // at_once * at_once * count
                    flat = table[_crossing(i, base, len(table), first, at_once * count)]
                    parts = torch.split(flat.to(self.dtypes[i]), count)
                    self._crosses[i, moderately] = name, parts
                flat = self._crosses[i, moderately][1][run % at_once]
                made.append(self._shaped(i, flat))
            else:
                order = torch.randint(0, len(table), (count,), generator=generator)
                made.append(self._shaped(i, table[order]))
        return made

    def _table(self, i: int, kind: str, moderately: bool) -> Tensor | None:
        dtype = self.dtypes[i]
        if self.slots[i].number_kind or dtype is torch.bool:
            return None
        values = self._values[dtype]
        if i in self.floats:
            if not moderately or dtype.is_complex:
                return values
            limit = torch.finfo(dtype).max ** (1 / 3)
            return values[values.abs() < limit]
        if kind == SMALL or _PLACES.search(self.slots[i].name):
            return None
        return values[values > 0] if kind == POSITIVE else values

    # -- one in a row --

    def sparse(self, step: int) -> Callable[[int, str], list[Tensor]]:
        """Return the maker of ordinary data with at most one structured value in a row."""

        def make(run: int, kind: str) -> list[Tensor]:
            generator = torch.Generator().manual_seed(5000 + 97 * step + run)
            made = []
            for i in range(len(self.slots)):
                if i not in self.floats or self.dtypes[i].is_complex:
                    made.append(self._filled(i, families.ordinary, generator, kind, run))
                    continue
                flat = self._floats(i, families.ordinary, generator)
                # One slot per run has structured values; in every third run each slot has them.
                if run % 3 == 2 or self.floats[(run + step) % len(self.floats)] == i:
                    self._put_specials(i, flat, generator, step, run)
                made.append(self._shaped(i, flat))
            return made

        return make

    def _put_specials(
        self, i: int, flat: Tensor, generator: torch.Generator, step: int, run: int
    ) -> None:
        count = len(flat)
        if not count:
            return
        sizes = [n for n in self.slots[i].component["sizes"] if n > 1]
        row = sizes[-1] if sizes else 1
        # So far apart that most rows, and columns, have at most one structured value.
        apart = row + 1 + step if step % 2 == 0 else 2 * row + 3 + step
        first = int(torch.randint(0, max(1, min(count, apart)), (), generator=generator))
        places = torch.arange(first, max(count, 1), apart)
        # Squares of ``large`` may overflow. The steps of a sum of larger numbers would, too, in one
        # order or another.
        large = torch.finfo(self.dtypes[i]).max ** 0.6
        first_kinds = torch.tensor([_NAN, _INF, -_INF, -0.0, large], dtype=torch.float64)
        values = first_kinds if step < 2 else self._values[self.dtypes[i]]
        values = values[~(values.isfinite() & (values.abs() > large))]
        flat[places] = values[(torch.arange(len(places)) + run * 2 + step) % len(values)]


def _crossing(i: int, base: int, length: int, first: int, count: int) -> Tensor:
    """Return places in a slot's table: two slots see each pair below a prime once in its square."""
    place = torch.arange(first, first + count)
    order = (place + i * (place // base)) % base
    # Past the table's end: a value of the table, a different one each time.
    return torch.where(order < length, order, (order + place // base) % length)


def _prime(least: int) -> int:
    """Return the first prime from ``least`` on."""
    number = max(2, least)
    while any(number % divisor == 0 for divisor in range(2, math.isqrt(number) + 1)):
        number += 1
    return number
