"""Pairs and triples of values: crosses, random bits, and values near each other. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import values
from .values import TAIL_LENGTH

_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def cross(lists: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Give chunks of ``size`` with every pair of the first two lists.

    Values of further lists stand beside them in an order that has nothing to do with theirs. The
    last elements of a chunk, which are no whole vector, are pairs from all over.
    """
    first, second = lists[0], lists[1] if len(lists) > 1 else lists[0][:1]
    total, body = len(first) * len(second), size - TAIL_LENGTH
    for begin in range(0, total, body):
        index = torch.arange(begin, begin + body) % total
        scattered = (torch.arange(TAIL_LENGTH) * 7919 + begin * 104729) % total
        index = torch.cat([index, scattered])
        places = [index // len(second), index % len(second)]
        places += [(index * 40503 + (index >> 7)) % len(one) for one in lists[2:]]
        yield [one[place] for one, place in zip(lists, places, strict=False)]


def triples(lists: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Give chunks of ``size`` with every triple of three lists."""
    a, b, c = lists
    total = len(a) * len(b) * len(c)
    for begin in range(0, total, size):
        index = torch.arange(begin, begin + size) % total
        yield [a[index // (len(b) * len(c))], b[index // len(c) % len(b)], c[index % len(c)]]


def random_bits(names: Sequence[str], count: int, size: int) -> Iterator[list[Tensor]]:
    """Give chunks of ``size`` tuples with random bits, ``count`` in all, at least."""
    streams = [values.random_bits(name, count, 15 + i, size) for i, name in enumerate(names)]
    for one in zip(*streams, strict=True):
        yield list(one)


def near(name: str, tensors: int, count: int, size: int) -> Iterator[list[Tensor]]:
    """Give chunks of ``size`` tuples whose values almost cancel, or almost divide each other.

    Args:
        name: A floating-point dtype.
        tensors: Values a tuple.
        count: Tuples in all, at least.
        size: Tuples a chunk.
    """
    dtype = values.dtype_of(name)
    kind = _WHOLE[dtype.itemsize]
    generator = torch.Generator().manual_seed(16)
    for _ in range(-(-count // size)):
        scale = torch.randint(-12, 13, (size,), generator=generator)
        sign = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1.0
        one = torch.rand(size, generator=generator, dtype=torch.float64) + 1.0
        one = (one * torch.exp2(scale.double()) * sign).to(dtype)
        found = [one]
        for _ in range(tensors - 1):
            factor = torch.randint(1, 65, (size,), generator=generator).double()
            factor = torch.where(torch.rand(size, generator=generator) < 0.5, factor, 1 / factor)
            factor = torch.where(torch.rand(size, generator=generator) < 0.3, 1.0, factor)
            sign = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1.0
            other = (one.double() * factor * sign).to(dtype)
            step = torch.randint(-2, 3, (size,), generator=generator).to(kind)
            found.append((other.view(kind) + step).view(dtype))
        yield found


def every_pair(name: str, begin: int, end: int, size: int) -> Iterator[list[Tensor]]:
    """Give every pair of a 16-bit dtype whose first value's bits are in ``[begin, end)``."""
    lists = [torch.arange(begin, end), torch.arange(1 << 16)]
    for first, second in cross(lists, size):
        yield [values.from_bits(first, name), values.from_bits(second, name)]
