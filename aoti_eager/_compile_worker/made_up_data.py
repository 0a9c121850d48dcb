"""Arguments made up from a key: data sets that together find the faults of a kernel; pure.

A fault shows in an element only if the element's arguments have certain values. So structured
values are crossed: any two of them meet in any two arguments. A tensor of thousands of elements has
room for all pairs; a smaller tensor gets more runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._keys.call_template import TensorSlot
from . import made_up_numbers as families
from .crossed_values import CrossedValues
from .input_ranges import InputRanges
from .made_up_numbers import Family, numbers
from .slot_filler import SMALL, SlotFiller, extent

# The cost of a run on a slow core, and of an element: made, copied, computed twice, compared.
_RUN_US, _ELEMENT_US = 55.0, 0.04
# The most that all data sets may cost that are not always made.
_BUDGET_US = 250_000.0

# The data sets that each call gets.
ALWAYS = ("normal", "positive", "special")

# Ordinary data with a special value here and there.
SPARSE = "one special value in a row"

# In functions of more tensors than this, values at the ends of the range leave it on the way.
_MOST_EXTREME = 4

# In so many inputs of a region, one special value is tried.
_MOST_ALONE = 5

_NAN, _INF = math.nan, math.inf


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
    slots: Sequence[TensorSlot],
    own: Sequence[float],
    *,
    mixes: bool,
    largest: int = 0,
    ranges: InputRanges | None = None,
) -> Iterator[DataSet]:
    """Give the data sets of a call: those that find most faults first, as many as time allows.

    Args:
        slots: What the inputs must look like.
        own: The call's own numbers.
        mixes: Whether an element of a result depends on many elements of an argument. A sum of
            numbers of all magnitudes depends on their order, so such a call gets one kind of
            number at a time.
        largest: The number of elements of the largest result.
        ranges: The values that the inputs may have.
    """
    made = _Maker(SlotFiller(slots, own, ranges))
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


def made_up_input(slot: TensorSlot, data: str, seed: int, scale: float = 1.0) -> Tensor:
    """Return a tensor with the slot's sizes, strides and dtype.

    Args:
        slot: What the tensor must look like.
        data: ``"normal"``, ``"positive"`` (around 0.1) or ``"special"`` values for floating-point
            slots. Other slots get zeros and ones, the values that most integer arguments (an index,
            a flag) may have.
        seed: Slots with different seeds get different values.
        scale: By how much floating-point numbers are multiplied.
    """
    generator = torch.Generator().manual_seed(seed)
    ranges = InputRanges() if scale == 1.0 else InputRanges(scales={0: scale})
    return SlotFiller([slot], (), ranges).simple(0, data, SMALL, generator, seed, 0)


def _always(made: _Maker) -> Iterator[DataSet]:
    for name in ALWAYS:
        if name == "special" and made.filler.ranges.is_region:
            # In many steps, special values everywhere leave nothing but NaN.
            yield DataSet(name, min(len(made.filler.floats), _MOST_ALONE), made.one_special)
            continue
        yield DataSet(name, 1, made.all_simple(name), ordinary=name == "normal")


def _pointwise(made: _Maker) -> Iterator[DataSet]:
    filler = made.filler
    all_families: list[Family] = [
        *(families.ordinary, families.magnitudes, families.moderate, families.tens),
        *(families.minute, families.unit, families.halves, families.whole, families.offset),
        *(families.squares_overflow, families.squares_vanish, families.near_overflow),
    ]
    cross = made.crosses.crossed
    if len(filler.floats) > _MOST_EXTREME:
        cross = made.crosses.crossed_moderately
        all_families = [
            *(families.ordinary, families.moderate, families.tens, families.minute),
            *(families.unit, families.halves, families.offset),
        ]
    small = max(1, 4096 // max(1, filler.largest))
    yield DataSet("mixed", min(small, 256), made.mixture(all_families))
    yield DataSet("crossed", made.crosses.runs(), cross)
    yield DataSet("related", min(small, 64), made.related)
    if filler.numbers:
        few = min(small, 16) * 12
        yield DataSet("mixed", few, made.mixture(all_families))
    alone = [families.unit, families.moderate, families.tens]
    if len(filler.floats) <= _MOST_EXTREME:
        alone.insert(0, families.magnitudes)
    for family in alone:
        name = family.__name__
        yield DataSet(name, min(small, 64), made.of(family, None), ordinary=True)
    yield DataSet("crossed once more", made.crosses.runs(), cross)
    yield DataSet("mixed once more", min(small, 1024), made.mixture(all_families))


def _mixing(made: _Maker) -> Iterator[DataSet]:
    filler = made.filler
    yield DataSet("offset", 1, made.of(families.offset, None))
    for step in range(3):
        yield DataSet(SPARSE, 4, made.sparse(step))
    for family in (
        *(families.squares_overflow, families.growing, families.moderate, families.far_offset),
        *(families.squares_vanish, families.halves, families.unit, families.tens, families.minute),
        families.whole,
    ):
        if family is families.squares_vanish and torch.float64 in filler.dtypes:
            continue  # Single precision does not show how far a sum of denormals is off.
        yield DataSet(family.__name__.replace("_", " "), 2, made.of(family, None))
    yield DataSet("crossed", max(1, made.crosses.runs() // 8), made.crosses.crossed_moderately)
    for only in range(len(filler.slots) if len(filler.floats) > 1 else 0):
        if only in filler.floats:
            for family in (families.moderate, families.offset):
                name = f"{family.__name__.replace('_', ' ')} {filler.slots[only].name!r}"
                yield DataSet(name, 1, made.of(family, only))
    for step in range(3, 8):
        yield DataSet(SPARSE, 8, made.sparse(step))


class _Maker:
    """Makes the inputs of one call, by run and by how integers are filled."""

    def __init__(self, filler: SlotFiller) -> None:
        self.filler = filler
        self.crosses = CrossedValues(filler)

    def all_simple(self, data: str) -> Callable[[int, str], list[Tensor]]:
        """Return the maker of the data that each call gets."""

        def make(run: int, kind: str) -> list[Tensor]:
            return [
                self.filler.simple(i, data, SMALL, torch.Generator().manual_seed(i), i, 0)
                for i in range(len(self.filler.slots))
            ]

        return make

    def of(self, family: Family, only: int | None) -> Callable[[int, str], list[Tensor]]:
        """Return the maker of numbers of a family, in one slot alone or in each slot."""

        def make(run: int, kind: str) -> list[Tensor]:
            generator = torch.Generator().manual_seed(1000 + run)
            return [
                self.filler.filled(
                    i, family if only in (None, i) else families.ordinary, generator, kind, run
                )
                for i in range(len(self.filler.slots))
            ]

        return make

    def mixture(self, all_families: Sequence[Family]) -> Callable[[int, str], list[Tensor]]:
        """Return the maker of numbers each of a family of its own, so that all families meet."""

        def make(run: int, kind: str) -> list[Tensor]:
            generator = torch.Generator().manual_seed(2000 + run)
            return [
                self.filler.mixed(i, all_families, generator, kind, run)
                for i in range(len(self.filler.slots))
            ]

        return make

    def related(self, run: int, kind: str) -> list[Tensor]:
        """Return inputs that are alike: equal, opposite, or close to either."""
        generator = torch.Generator().manual_seed(3000 + run)
        fi = torch.finfo(torch.float64)
        base = numbers(families.moderate, self.filler.largest, generator, fi)
        made = []
        for i in range(len(self.filler.slots)):
            if i not in self.filler.floats or self.filler.dtypes[i].is_complex:
                made.append(self.filler.filled(i, families.ordinary, generator, kind, run))
                continue
            eps = torch.finfo(self.filler.dtypes[i]).eps
            count = self.filler.extents[i]
            which = torch.randint(0, 6, (count,), generator=generator)
            steps = torch.randint(-3, 4, (count,), generator=generator) * eps
            by = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, 3.0], dtype=torch.float64)[which]
            made.append(
                self.filler.shaped(i, base[:count] * by * (1 + torch.where(which > 1, steps, 0.0)))
            )
        return made

    def one_special(self, run: int, kind: str) -> list[Tensor]:
        """Return ordinary inputs with one special value in one of them, another in each run."""
        generator = torch.Generator().manual_seed(4000 + run)
        made = []
        for i in range(len(self.filler.slots)):
            if i != self.filler.floats[run % len(self.filler.floats)]:
                made.append(self.filler.filled(i, families.ordinary, generator, kind, run))
                continue
            flat = self.filler.drawn(i, families.ordinary, generator)
            if len(flat):
                place = int(torch.randint(0, len(flat), (), generator=generator))
                flat[place] = (_NAN, _INF, -0.0, -_INF, 1e4)[run % 5]
            made.append(self.filler.shaped(i, flat))
        return made

    def sparse(self, step: int) -> Callable[[int, str], list[Tensor]]:
        """Return the maker of ordinary data with at most one structured value in a row."""

        def make(run: int, kind: str) -> list[Tensor]:
            generator = torch.Generator().manual_seed(5000 + 97 * step + run)
            made = []
            for i in range(len(self.filler.slots)):
                if i not in self.filler.floats or self.filler.dtypes[i].is_complex:
                    made.append(self.filler.filled(i, families.ordinary, generator, kind, run))
                    continue
                flat = self.filler.drawn(i, families.ordinary, generator)
                # One slot per run has structured values; in every third run each slot has them.
                if run % 3 == 2 or self.filler.floats[(run + step) % len(self.filler.floats)] == i:
                    self._put_specials(i, flat, generator, step, run)
                made.append(self.filler.shaped(i, flat))
            return made

        return make

    def _put_specials(
        self, i: int, flat: Tensor, generator: torch.Generator, step: int, run: int
    ) -> None:
        count = len(flat)
        if not count:
            return
        sizes = [n for n in self.filler.slots[i].component["sizes"] if n > 1]
        row = sizes[-1] if sizes else 1
        # So far apart that most rows, and columns, have at most one structured value.
        apart = row + 1 + step if step % 2 == 0 else 2 * row + 3 + step
        first = int(torch.randint(0, max(1, min(count, apart)), (), generator=generator))
        places = torch.arange(first, max(count, 1), apart)
        # Squares of ``large`` may overflow. The steps of a sum of larger numbers would, too, in one
        # order or another.
        large = torch.finfo(self.filler.dtypes[i]).max ** 0.6
        first_kinds = torch.tensor([_NAN, _INF, -_INF, -0.0, large], dtype=torch.float64)
        values = first_kinds if step < 2 else self.filler.values[self.filler.dtypes[i]]
        values = values[~(values.isfinite() & (values.abs() > large))]
        flat[places] = values[(torch.arange(len(places)) + run * 2 + step) % len(values)]
