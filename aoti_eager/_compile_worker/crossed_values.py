"""Structured values, crossed: any two of them meet in any two arguments; pure."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .slot_filler import POSITIVE, SMALL, SlotFiller

# So many elements of crossed data are made at once.
_AT_ONCE = 1024


class CrossedValues:
    """Inputs of a call that are parts of the cross of all structured values."""

    def __init__(self, filler: SlotFiller) -> None:
        self._filler = filler
        self._crosses: dict[tuple[int, bool], tuple[Any, tuple[Tensor, ...]]] = {}
        self._tables: dict[tuple[str, bool], tuple[list[Tensor | None], int]] = {}

    def runs(self) -> int:
        """Return in how many runs every two structured values meet in every two slots."""
        if not self._filler.largest:
            return 1
        crossed = [
            i for i, n in enumerate(self._filler.extents) if n and i not in self._filler.numbers
        ]
        sizes = sorted(
            (len(self._filler.values[self._filler.dtypes[i]]) for i in crossed), reverse=True
        )
        if not sizes:
            return 1
        pairs = _prime(sizes[0]) ** 2 if len(crossed) + len(self._filler.numbers) > 1 else sizes[0]
        if not self._is_aligned():
            pairs *= 6  # Drawn at random: with six times as many draws, most pairs occur.
        return max(1, -(-pairs // self._filler.largest))

    def _is_aligned(self) -> bool:
        return (
            len(
                {
                    self._filler.extents[i]
                    for i in range(len(self._filler.slots))
                    if i not in self._filler.numbers
                }
            )
            <= 1
        )

    def crossed(self, run: int, kind: str) -> list[Tensor]:
        """Return a part of the cross of structured values."""
        return self._cross(run, kind, moderately=False)

    def crossed_moderately(self, run: int, kind: str) -> list[Tensor]:
        """Return a part of the cross of values of which no sum of a few is infinite."""
        return self._cross(run, kind, moderately=True)

    def _cross(self, run: int, kind: str, *, moderately: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(4000 + run)
        if (kind, moderately) not in self._tables:
            found = [self._table(i, kind, moderately) for i in range(len(self._filler.slots))]
            longest = max((len(table) for table in found if table is not None), default=2)
            self._tables[kind, moderately] = found, _prime(longest)
        tables, base = self._tables[kind, moderately]
        made = []
        for i, table in enumerate(tables):
            count = self._filler.extents[i]
            if not count:
                made.append(self._filler.shaped(i, torch.empty(0)))
                continue
            if table is None:
                made.append(self._filler.shaped(i, self._filler.other(i, kind, generator, run)))
                continue
            if self._is_aligned():
                # Small tensors get many runs at once: one run alone takes a few dozen torch calls.
                at_once = max(1, _AT_ONCE // count)
                name = i, kind, moderately, run // at_once
                if self._crosses.get((i, moderately), (None, ()))[0] != name:
                    first = run // at_once * at_once * count
                    flat = table[_crossing(i, base, len(table), first, at_once * count)]
                    parts = torch.split(flat.to(self._filler.dtypes[i]), count)
                    self._crosses[i, moderately] = name, parts
                flat = self._crosses[i, moderately][1][run % at_once]
                made.append(self._filler.shaped(i, flat))
            else:
                order = torch.randint(0, len(table), (count,), generator=generator)
                made.append(self._filler.shaped(i, table[order]))
        return made

    def _table(self, i: int, kind: str, moderately: bool) -> Tensor | None:
        dtype = self._filler.dtypes[i]
        if self._filler.slots[i].number_kind or dtype is torch.bool:
            return None
        values = self._filler.values[dtype]
        if i in self._filler.floats:
            if not moderately or dtype.is_complex:
                return values
            limit = torch.finfo(dtype).max ** (1 / 3)
            return values[values.abs() < limit]
        if kind == SMALL or self._filler.holds_places(i) or i in self._filler.ranges.most:
            return None
        return values[values > 0] if kind == POSITIVE else values


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
