"""Rows of numbers that are made to hurt, by family; pure functions of dtype, length and seed.

A family is one way in which data is hard: a mean far larger than the spread, squares that overflow,
one special value among ordinary ones. Rows of one family and one length are alike, so that errors
on them can be compared: a reduction is judged on all rows of a family together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Lengths at which vector code, its tail and its blocks begin and end.
LENGTHS = (
    *range(34),
    *(63, 64, 65, 127, 128, 129, 255, 256, 257),
    *(511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097),
)
# Some of more elements than a thread takes at once; past 2^24 float32 counts no further by one.
LONG = (1 << 16, (1 << 20) + 3, 1 << 24)

_PLACES = {"first": lambda n: 0, "middle": lambda n: n // 2, "last": lambda n: n - 1}
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan, "-0.0": -0.0}


@dataclass(frozen=True, slots=True)
class Family:
    """One way of being hard.

    Attributes:
        name: What it is called in results.
        make: ``(count, n, dtype, generator)`` -> rows in float64, ``(count, n)``.
    """

    name: str
    make: Callable[[int, int, torch.dtype, torch.Generator], Tensor]


def families(dtype: torch.dtype) -> tuple[Family, ...]:
    """Return the families for a dtype; none for complex ones."""
    if dtype is torch.bool:
        return _BOOLS
    if dtype.is_floating_point:
        return (*_floats(dtype), *_specials())
    return () if dtype.is_complex else _integers(dtype)


def rows(family: Family, n: int, dtype: torch.dtype, *, count: int = 8, seed: int = 0) -> Tensor:
    """Return ``count`` rows of a family, ``(count, n)``, contiguous."""
    # The name belongs to the seed: families must not be the same numbers at other magnitudes.
    mixed = sum(ord(letter) * 31**i for i, letter in enumerate(family.name)) % (1 << 31)
    generator = torch.Generator().manual_seed(mixed * 1009 + seed * 97 + n)
    return _rounded(family.make(count, n, dtype, generator), dtype)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).contiguous()


# --- floating point ------------------------------------------------------------------------------


def _normal(count: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, n, dtype=torch.float64, generator=generator)


def _scaled(name: str, scale: float) -> Family:
    return Family(name, lambda count, n, dtype, g: _normal(count, n, g) * scale)


def _offset(name: str, offset: float) -> Family:
    return Family(name, lambda count, n, dtype, g: _normal(count, n, g) + offset)


def _alternating(count: int, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    signs = 1.0 - 2.0 * (torch.arange(n, dtype=torch.float64) % 2)
    return signs * (1000.0 + _normal(count, n, generator))


def _growing(count: int, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    # From 2^-10 to 2^10, with either sign: what came early is lost in what comes late.
    steps = torch.linspace(-10, 10, n, dtype=torch.float64)
    return torch.exp2(steps) * _normal(count, n, generator)


def _denormal(count: int, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return _normal(count, n, generator) * torch.finfo(dtype).tiny / 16


def _near_max(count: int, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    noise = torch.rand(count, n, dtype=torch.float64, generator=generator)
    return torch.finfo(dtype).max * (0.985 + 0.01 * noise)


def _ties(count: int, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randint(-1, 2, (count, n), generator=generator).double()


def _constant(value: float) -> Callable[[int, int, torch.dtype, torch.Generator], Tensor]:
    return lambda count, n, dtype, g: torch.full((count, n), value, dtype=torch.float64)


def _ascending(count: int, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.linspace(-3, 3, n, dtype=torch.float64).expand(count, n)


def _one_among_zeros(count: int, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    made = torch.zeros(count, n, dtype=torch.float64)
    if n:
        made[torch.arange(count), torch.randint(0, n, (count,), generator=generator)] = 3.0
    return made


def _floats(dtype: torch.dtype) -> tuple[Family, ...]:
    half = dtype is torch.float16
    # Squares of these overflow, or their sums do.
    root = math.sqrt(torch.finfo(dtype).max)
    offsets = (1e2, 1e3, 1e4) if half else (1e2, 1e4, 1e5, 1e7)
    return (
        _scaled("normal", 1.0),
        _scaled("wide", 30.0),
        Family("positive", lambda c, n, d, g: 0.1 + 0.01 * _normal(c, n, g).clamp(-5, 5)),
        Family("probabilities", lambda c, n, d, g: torch.sigmoid(_normal(c, n, g))),
        *(_offset(f"offset {offset:g}", offset) for offset in offsets),
        _offset("offset -1e3", -1e3),
        Family("alternating", _alternating),
        Family("growing", _growing),
        Family("denormal", _denormal),
        _scaled("tiny", torch.finfo(dtype).tiny * 64),
        _scaled("half the square's limit", root / 8),
        _scaled("over the square's limit", 5 * root),
        Family("near the largest", _near_max),
        Family("ties", _ties),
        Family("constant 0.1", _constant(0.1)),
        Family("constant large", _constant(6e4 if half else 1e7 + 1)),
        Family("zeros", _constant(0.0)),
        Family("negative zeros", _constant(-0.0)),
        Family("ascending", _ascending),
        Family("descending", lambda c, n, d, g: -_ascending(c, n, d, g)),
        Family("one among zeros", _one_among_zeros),
    )


def _with(name: str, value: float, place: Callable[[int], int]) -> Family:
    """Return ordinary rows, with ``value`` in one of them: among many it would hide in all."""

    def make(count: int, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        made = _normal(count, n, generator).abs() + 0.25
        if n:
            made[count // 2, place(n)] = value
        return made

    return Family(name, make)


def _two_infinities(count: int, n: int, dtype: torch.dtype, g: torch.Generator) -> Tensor:
    made = _normal(count, n, g)
    if n:
        made[count // 2, 0], made[count // 2, n - 1] = math.inf, -math.inf
    return made


def _nan_and_infinity(count: int, n: int, dtype: torch.dtype, g: torch.Generator) -> Tensor:
    made = _normal(count, n, g)
    if n:
        made[count // 2, n - 1], made[count // 2, n // 3] = math.inf, math.nan
    return made


def _specials() -> tuple[Family, ...]:
    return (
        *(
            _with(f"{name} {where}", value, place)
            for name, value in _SPECIAL.items()
            for where, place in _PLACES.items()
        ),
        Family("both infinities", _two_infinities),
        Family("NaN and infinity", _nan_and_infinity),
        Family("all infinite", _constant(math.inf)),
        Family("all -inf", _constant(-math.inf)),
        Family("all NaN", _constant(math.nan)),
    )


# --- integers and bool ---------------------------------------------------------------------------


def _integer(name: str, make: Callable[[int, int, torch.iinfo, torch.Generator], Tensor]) -> Family:
    return Family(name, lambda count, n, dtype, g: make(count, n, torch.iinfo(dtype), g).to(dtype))


def _any_integer(count: int, n: int, limits: torch.iinfo, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 256, (count, n, 8), generator=generator, dtype=torch.uint8)
    return bits.view(torch.int64).squeeze(-1)


def _integers(dtype: torch.dtype) -> tuple[Family, ...]:
    def full(count: int, n: int, value: int) -> Tensor:
        return torch.full((count, n), value, dtype=torch.int64)

    def extremes(count: int, n: int, limits: torch.iinfo, g: torch.Generator) -> Tensor:
        is_low = torch.rand(count, n, generator=g) < 0.5
        return torch.where(is_low, limits.min, limits.max)

    def one(count: int, n: int, limits: torch.iinfo, g: torch.Generator) -> Tensor:
        made = full(count, n, 0)
        if n:
            made[torch.arange(count), torch.randint(0, n, (count,), generator=g)] = 1
        return made

    return (
        _integer("small", lambda c, n, i, g: torch.randint(0, 4, (c, n), generator=g)),
        _integer("any bits", _any_integer),
        _integer("extremes", extremes),
        _integer("one among zeros", one),
        _integer("zeros", lambda c, n, i, g: full(c, n, 0)),
        _integer("ones", lambda c, n, i, g: full(c, n, 1)),
        _integer("largest", lambda c, n, i, g: full(c, n, i.max)),
        _integer("smallest", lambda c, n, i, g: full(c, n, i.min)),
    )


def _bool(value: bool, place: str = "") -> Callable[..., Tensor]:
    def make(count: int, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        made = torch.full((count, n), value)
        if n and place:
            made[count // 2, _PLACES[place](n)] = not value
        return made

    return make


_BOOLS = (
    Family("any", lambda c, n, d, g: torch.rand(c, n, generator=g) < 0.5),
    Family("all false", _bool(False)),
    Family("all true", _bool(True)),
    *(Family(f"true {where}", _bool(False, where)) for where in _PLACES),
    *(Family(f"false {where}", _bool(True, where)) for where in _PLACES),
)


# --- memory --------------------------------------------------------------------------------------

LAYOUTS = ("contiguous", "transposed", "every second", "offset", "expanded")


def laid_out(values: Tensor, layout: str) -> Tensor:
    """Return the same values with other strides; ``expanded`` has the first row in every row.

    Raises:
        ValueError: There is no such layout.
    """
    if layout == "contiguous":
        return values.contiguous()
    if layout == "transposed":
        return values.t().contiguous().t() if values.dim() == 2 else values
    if layout == "every second":
        wide = torch.zeros(*values.shape[:-1], values.shape[-1] * 2, dtype=values.dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    if layout == "offset":
        long = torch.zeros(values.numel() + 3, dtype=values.dtype)
        long[3:] = values.reshape(-1)
        return long[3:].view(values.shape)
    if layout == "expanded":
        return values[:1].clone().expand(values.shape)
    raise ValueError(f"no such layout: {layout!r}; there are {', '.join(LAYOUTS)}")
