"""Random numbers of each kind that makes code fail: by magnitude, by cancellation; pure."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Takes a count, a generator and the dtype's ``finfo``; returns that many numbers in float64.
Family = Callable[[int, torch.Generator, torch.finfo], Tensor]

# Beyond so many, numbers are repeated. The count is a prime, so that no row is like the next row.
_MOST_DISTINCT = 131_071


# Inputs with fewer numbers have numbers of their own. At so many places a part of shared numbers
# may begin.
_FEWEST_SHARED, _BEGINNINGS = 1 << 12, 131_071


class SharedNumbers:
    """Ordinary numbers that the large inputs of one call have in common: each has a part of them.

    The numbers of a part are all different, and two parts begin at different places. Drawing
    millions of numbers for each run takes longer than all else in the trial of a region.
    """

    def __init__(self) -> None:
        self._drawn = torch.empty(0, dtype=torch.float64)

    def part(self, count: int, generator: torch.Generator, largest: int) -> Tensor:
        """Return ``count`` numbers, not to be written to.

        Args:
            count: How many.
            generator: Says where the part begins.
            largest: The most that is ever asked for.
        """
        if count < _FEWEST_SHARED:
            return _normal(count, generator)
        if len(self._drawn) < largest + _BEGINNINGS:
            self._drawn = _normal(largest + _BEGINNINGS, torch.Generator().manual_seed(7))
        begin = int(torch.randint(0, _BEGINNINGS, (), generator=generator))
        return self._drawn[begin : begin + count]


def numbers(family: Family, count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return ``count`` numbers of a family, in float64."""
    made = family(min(count, _MOST_DISTINCT), generator, fi)
    return made if made.numel() >= count else made.repeat(-(-count // made.numel()))[:count]


def _uniform(count: int, generator: torch.Generator, low: float, high: float) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64) * (high - low) + low


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, generator=generator, dtype=torch.float64)


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1.0


def _exponents(fi: torch.finfo) -> tuple[float, float]:
    return math.log2(fi.smallest_normal), math.log2(fi.max)


def ordinary(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers like those that most scripts compute with."""
    return _normal(count, generator)


def positive(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers around 0.1: their sum loses digits; in other data such losses cancel."""
    return 0.1 + 0.01 * torch.rand(count, generator=generator, dtype=torch.float64)


def magnitudes(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers of each magnitude, denormal ones included, of both signs."""
    low, high = _exponents(fi)
    exponents = _uniform(count, generator, low + math.log2(fi.eps), high)
    return _signs(count, generator) * torch.exp2(exponents)


def moderate(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers of some binades around one."""
    reach = min(12.0, _exponents(fi)[1] / 3)
    return _signs(count, generator) * torch.exp2(_uniform(count, generator, -reach, reach))


def tens(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers up to a hundred; a saturating function gives most of them the same result."""
    return _uniform(count, generator, -100.0, 100.0) * _uniform(count, generator, 0.0, 1.0)


def minute(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers near zero: adding one and subtracting it again leaves no digit of them."""
    low = max(_exponents(fi)[0], math.log2(fi.eps) * 2)
    return _signs(count, generator) * torch.exp2(_uniform(count, generator, low, -3.0))


def unit(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers from 0 to 1, the ends included, many of them close to an end."""
    values = torch.rand(count, generator=generator, dtype=torch.float64)
    near = torch.exp2(_uniform(count, generator, math.log2(fi.eps), -1.0))
    kind = torch.randint(0, 16, (count,), generator=generator)
    values = torch.where(kind < 4, near, values)
    values = torch.where((kind >= 4) & (kind < 8), 1 - near, values)
    return torch.where(kind == 8, 0.0, torch.where(kind == 9, 1.0, values))


def halves(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return quarters: halfway between whole numbers, often equal, quotients often whole."""
    return torch.randint(-40, 41, (count,), generator=generator, dtype=torch.float64) / 4


def whole(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return whole numbers, up to the largest that has a successor."""
    reach = -math.log2(fi.eps)
    return _signs(count, generator) * torch.exp2(_uniform(count, generator, 0.0, reach)).floor()


def squares_overflow(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers whose squares are infinite, and whose sums are not."""
    return _normal(count, generator).clamp(-4, 4) * (2.0 * math.sqrt(fi.max))


def squares_vanish(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers whose squares are denormal, or zero."""
    return _normal(count, generator) * math.sqrt(fi.smallest_normal)


def offset(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers whose mean is far larger than their spread."""
    reach = min(1e4, 0.125 / fi.eps)
    return reach + _normal(count, generator)


def far_offset(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers whose mean is so much larger than their spread that few values are left."""
    reach = min(1e6, 0.125 / fi.eps)
    return -(reach + 2 * _normal(count, generator))


def growing(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers of alternating sign that grow, by a few percent each, and begin again."""
    reach = min(10.0, _exponents(fi)[1] / 3)
    steps = torch.arange(count, dtype=torch.float64) % 61 / 60
    signs = 1 - 2 * (torch.arange(count, dtype=torch.float64) % 2)
    noise = 1 + 0.1 * torch.rand(count, generator=generator, dtype=torch.float64)
    return signs * torch.exp2(reach * (2 * steps - 1)) * noise


def near_overflow(count: int, generator: torch.Generator, fi: torch.finfo) -> Tensor:
    """Return numbers a few of which add up to an infinity, all of one sign."""
    return fi.max * (0.1 + 0.8 * torch.rand(count, generator=generator, dtype=torch.float64))
