"""Values to compare on: every one of a dtype, a share of them, or those that hurt. Pure."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("bool", "uint8", "int8", "int16", "int32", "int64")
COMPLEX = ("complex64",)

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
_SIGNIFICAND = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}

# Where functions have roots, poles, branches and overflows, and where people's constants lie.
SPECIAL = (
    *(0.0, -0.0, math.inf, -math.inf, math.nan),
    *(k * math.pi / 4 for k in (1, -1, 2, -2, 3, 4, -4, 6, 8, 40, 4e5, 4e10)),
    *(1.0, -1.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 2.0, -2.0, 3.0, -3.0, 6.0, -6.0, 20.0, -20.0),
    *(0.1, -0.1, 0.2, 0.3, 1 / 3, 1e-3, 1e-5, 1e-8, -1e-8, 1e-10, 1e-20, 1e-30, 1e-38, 1e-45),
    *(0.9999999, 1.0000001, 0.99, 1.01, 0.41421356, 0.70710678, 1.41421356),
    # Overflow and underflow of exp, exp2, cosh, sinh, tanh, erf, softplus, of half precision.
    *(88.72, -87.33, -88.72, 89.41, -103.97, 104.0, -104.0, 11.09, -9.7, -16.6, 17.0, 10.0, -10.0),
    *(127.0, 128.0, -126.0, -149.0, -150.0, 15.999, 16.0, -14.0, -24.0, -25.0),
    *(709.78, -708.4, -745.13, 710.47, 1023.0, 1024.0, -1022.0, -1074.0),
    *(9.01, -9.01, 4.0, -4.0, 5.93, 3.92, 9.19, 10.54, 27.2, 26.5),
    # Squares, products and integers that are too large.
    *(1e10, -1e10, 1e19, 1.8446743e19, 1e20, -1e20, 1e30, 1e38, 3.4028235e38, 1e200, 1e300),
    *(65504.0, 65519.0, 65520.0, -65504.0, 256.0, 255.0, 128.0, 127.5, -128.0, 100.0, 1000.0),
    *(8388607.5, 8388608.0, 16777215.0, 16777216.0, 2147483647.0, 2147483648.0, -2147483648.0),
    *(4503599627370495.5, 4503599627370496.0, 9007199254740993.0, 9.223372036854775807e18),
    # Roots of lgamma and digamma, of Bessel functions, of entropy.
    *(1.4616321, -2.4570247, -0.5040830, 2.404825557, 3.831705970, 5.520078110, 0.367879441),
    *(0.893576966, 2.197141326, 7.015586669, -2.7476826, 34.0, 35.1, 171.6, 33.0),
)


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of a name."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def from_bits(bits: Tensor, name: str) -> Tensor:
    """Return values of the dtype whose bits are the low ones of ``bits``, int64."""
    dtype = dtype_of(name)
    if dtype is torch.bool:
        return bits != 0
    if not dtype.is_floating_point:
        return bits.to(dtype)  # It wraps around.
    return bits.to(_WHOLE[dtype.itemsize]).view(dtype)


@functools.cache
def neighbours(name: str, around: int = 128) -> Tensor:
    """Return a floating-point dtype's values near powers of two, zeros and special points.

    Args:
        name: The dtype.
        around: How many values on each side.
    """
    shift = _SIGNIFICAND[name]
    exponents = torch.arange(1 << (_BITS[name] - 1 - shift), dtype=torch.int64) << shift
    special = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype_of(name))
    middle = special.view(_WHOLE[special.element_size()]).to(torch.int64)
    steps = torch.arange(-around, around + 1, dtype=torch.int64)
    bits = torch.cat([exponents, exponents + (1 << (shift - 1)), middle])
    bits = (bits[:, None] + steps).flatten()
    sign = 1 << (_BITS[name] - 1)
    if name == "float64":
        sign = -(1 << 63)
    return from_bits(torch.cat([bits, bits ^ sign]), name)


@functools.cache
def structured(name: str, count: int) -> Tensor:
    """Return about ``count`` different values of a dtype that are worth a cross with each other.

    Specials, powers of two and their neighbours, halfway cases, small integers, then values spread
    over all exponents.
    """
    dtype = dtype_of(name)
    if dtype is torch.bool:
        return torch.tensor([False, True])
    if not (dtype.is_floating_point or dtype.is_complex):
        return _structured_integers(name, count)
    special = torch.tensor(SPECIAL, dtype=torch.float64)
    integers = torch.arange(-17, 18, dtype=torch.float64)
    halves = integers + 0.5
    parts = [special, -special, integers, halves, integers * 0.1]
    shift = _SIGNIFICAND[name]
    exponents = torch.arange(1 << (_BITS[name] - 1 - shift), dtype=torch.int64) << shift
    exponents = exponents[:: max(1, len(exponents) * 8 // count)]
    edges = torch.cat([exponents, exponents - 1, exponents + 1]).clamp_min(0)
    powers = from_bits(edges, name).double()
    parts += [powers, -powers]
    values = torch.cat(parts).to(dtype)
    kind = _WHOLE[dtype.itemsize]
    bits = values.view(kind).to(torch.int64).unique()
    generator = torch.Generator().manual_seed(15)
    left = max(0, count - len(bits))
    if left:
        drawn = _random_bits(left, generator)
        mask = (1 << _BITS[name]) - 1 if name != "float64" else -1
        bits = torch.cat([bits, (drawn & mask)])
    else:
        bits = bits[torch.randperm(len(bits), generator=generator)[:count]]
        zero = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0], dtype=dtype)
        bits = torch.cat([zero.view(kind).to(torch.int64), bits[:-7]])
    return from_bits(bits, name)


def _structured_integers(name: str, count: int) -> Tensor:
    information = torch.iinfo(dtype_of(name))
    if information.max - information.min < 2 << 16:
        whole = torch.arange(information.min, information.max + 1)
        if len(whole) <= count:
            return whole.to(dtype_of(name))
    powers = [1 << i for i in range(64)]
    edges = [s * p + d for p in powers for d in (-2, -1, 0, 1, 2) for s in (1, -1)]
    small = list(range(-70, 71)) + [10**i for i in range(19)]
    listed = sorted({v for v in small + edges if information.min <= v <= information.max})
    values = torch.tensor(listed, dtype=torch.int64)
    left = count - len(values)
    if left > 0:
        drawn = _random_bits(left, torch.Generator().manual_seed(15))
        values = torch.cat([values, drawn])
    else:
        values = torch.cat([values[:: len(values) // count + 1], values[:2], values[-2:]])
    return values.to(dtype_of(name))


def _random_bits(count: int, generator: torch.Generator) -> Tensor:
    high = torch.randint(-(1 << 31), 1 << 31, (count,), generator=generator)
    low = torch.randint(0, 1 << 32, (count,), generator=generator)
    return (high << 32) ^ low


def random_bits(name: str, count: int, seed: int, size: int) -> Iterator[Tensor]:
    """Give chunks of ``size`` values with random bits, ``count`` in all, at least."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(-(-count // size)):
        yield from_bits(_random_bits(size, generator), name)


def in_chunks(values: Tensor, size: int, tail: Tensor) -> Iterator[Tensor]:
    """Give ``values`` in chunks of ``size``; the last elements of each are of ``tail``, in turn.

    The last elements of a chunk are no whole vector; what is worth a look comes there, too.
    """
    body = size - TAIL_LENGTH
    tail = tail.to(values.dtype)
    for number, begin in enumerate(range(0, len(values), body)):
        part = values[begin : begin + body]
        if len(part) < body:
            part = part.repeat(-(-body // len(part)))[:body]
        place = (torch.arange(TAIL_LENGTH) + number * TAIL_LENGTH) % len(tail)
        yield torch.cat([part, tail[place]])


TAIL_LENGTH = 13


def bit_chunks(
    name: str, begin: int, end: int, step: int, size: int, tail: Tensor
) -> Iterator[Tensor]:
    """Give the values with bits ``begin``, ``begin + step``, ... below ``end`` in chunks."""
    body = size - TAIL_LENGTH
    for number, first in enumerate(range(begin, end, body * step)):
        bits = torch.arange(first, min(end, first + body * step), step)
        if len(bits) < body:
            bits = bits.repeat(-(-body // len(bits)))[:body]
        place = (torch.arange(TAIL_LENGTH) + number * TAIL_LENGTH) % len(tail)
        yield torch.cat([from_bits(bits, name), tail[place]])
