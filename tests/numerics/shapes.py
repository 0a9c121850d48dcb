"""Shapes of reductions: which dimension is reduced, how long it is, and how memory lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from .hard_calls import Draw
from .hard_data import (
    LAYOUTS,
    LENGTHS,
    LONG,
    laid_out,
)

# Lengths of the default share: none, one, scalar code alone, vectors of each width with a tail.
SHORT = (0, 1, 3, 16, 33, 257, 1025, 4097)


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor of a draw and the dimensions that are reduced.

    Attributes:
        label: In words.
        tensor: From a draw; the ``nth`` tensor of a call has other numbers.
        dims: What is reduced.
        threads: How many share the work.
    """

    label: str
    tensor: Callable[[Draw, int], Tensor]
    dims: tuple[int, ...]
    threads: int = 1

    @property
    def dim(self) -> int:
        """Return the only dimension that is reduced."""
        (dim,) = self.dims
        return dim


def shapes(share: str = "default", *, several: bool = False) -> Iterator[Shape]:
    """Return the shapes of a share; those that reduce several dimensions at once if asked for.

    Args:
        share: ``"test"`` has one or two, ``"brief"`` four, ``"default"`` about sixteen, and
            ``"full"`` all lengths and long rows.
        several: Whether the op takes several dimensions.
    """
    for n in {"test": (33,), "brief": (33, 1025), "default": SHORT, "full": (*LENGTHS, *LONG)}[
        share
    ]:
        yield rows_of(n)
    for n in {"test": (), "brief": (33,), "default": (33, 1025), "full": LENGTHS}[share]:
        yield columns_of(n)
    if several:
        yield _several("two outer dimensions", (0, 2))
    if share not in ("default", "full"):
        return
    yield Shape("the middle of three dimensions", lambda d, i: _middle(d, i, 65), (1,))
    yield Shape("columns of 257, every second", _columns_every_second, (0,))
    for layout in LAYOUTS[1:] if share == "full" else ("transposed",):
        yield Shape(f"rows of 257, {layout}", _laid_out(257, layout), (1,))
    if share == "default":
        yield rows_of(1 << 16, count=2)
    if several:
        yield _several("two inner dimensions", (1, 2))
        yield _several("all dimensions", (0, 1, 2))


def rows_of(n: int, *, count: int = 8) -> Shape:
    """Return ``count`` rows of ``n``, reduced along each row."""
    if n > 1 << 12:
        count = min(count, 4)
    count = 1 if n > 1 << 20 else count
    label = f"{count} rows of {n}"
    return Shape(label, lambda d, i: d.rows(n, count=count, nth=i), (1,), threads_for(n))


def threads_for(n: int) -> int:
    """Return how many threads share ``n`` numbers: more than one where rows are cut among them."""
    return 4 if n >= 1 << 16 else 1


def columns_of(n: int) -> Shape:
    """Return 24 columns of ``n``, reduced along each column."""
    label = f"24 columns of {n}"
    return Shape(label, lambda d, i: d.rows(n, count=24, nth=i).t().contiguous(), (0,))


def _middle(draw: Draw, nth: int, n: int) -> Tensor:
    return draw.rows(n, count=24, nth=nth).view(2, 12, n).transpose(1, 2).contiguous()


def _laid_out(n: int, layout: str) -> Callable[[Draw, int], Tensor]:
    return lambda draw, nth: laid_out(draw.rows(n, nth=nth), layout)


def _columns_every_second(draw: Draw, nth: int) -> Tensor:
    return laid_out(draw.rows(257, count=24, nth=nth).t().contiguous(), "every second")


def _several(label: str, dims: tuple[int, ...]) -> Shape:
    def tensor(draw: Draw, nth: int) -> Tensor:
        made = draw.rows(15 * 17, nth=nth).view(8, 15, 17)
        return made.transpose(0, 1).contiguous() if dims == (0, 2) else made

    return Shape(label, tensor, dims)


def vectors(share: str) -> Iterator[int]:
    """Return the lengths of whole tensors that are reduced to one number."""
    yield from {
        "test": (257,),
        "brief": (33, 4097),
        "default": (0, 1, 2, 7, 33, 257, 4097, 1 << 16),
        "full": (*LENGTHS, *LONG),
    }[share]
