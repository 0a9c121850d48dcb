"""Exact results of reductions along the last dimension, in the widest arithmetic that numpy has.

Rows come as they are, in whatever dtype an op takes; on x86-64 numpy's ``longdouble`` has 64 bits
of mantissa and 15 of exponent: sums of float64 are exact to 2^-64 of their magnitude, squares do
not overflow, and float32 has 40 bits to spare.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
from torch import Tensor

Array = numpy.ndarray
WIDE = numpy.longdouble


def wide(values: Tensor) -> Array:
    """Return a tensor's numbers as longdouble."""
    plain = values.detach()
    return (plain.double() if plain.is_floating_point() else plain).numpy().astype(WIDE)


def total(x: Array) -> Array:
    """Return the sums."""
    return x.sum(-1)


def mean(x: Array) -> Array:
    """Return the means; NaN for empty rows."""
    return x.sum(-1) / WIDE(x.shape[-1])


def product(x: Array) -> Array:
    """Return the products."""
    return x.prod(-1)


def variance(correction: float) -> Callable[[Array], Array]:
    """Return the function for variances with this correction."""

    def of(x: Array) -> Array:
        n = x.shape[-1]
        centred = x - mean(x)[..., None]
        # The second sum is zero but for rounding of the mean, and takes that away.
        squares = (centred * centred).sum(-1) - centred.sum(-1) ** 2 / WIDE(max(n, 1))
        return squares / WIDE(max(n - correction, 0))

    return of


def deviation(correction: float) -> Callable[[Array], Array]:
    """Return the function for standard deviations with this correction."""
    of = variance(correction)
    return lambda x: numpy.sqrt(of(x))


def normalized(eps: float) -> Callable[..., Array]:
    """Return the function for rows less their mean, over their deviation."""

    def of(x: Array) -> Array:
        # From the first number on: equal ones come out as zero, whatever a sum of them rounds to.
        distance = x - x[..., :1]
        centred = distance - mean(distance)[..., None]
        return centred / numpy.sqrt(variance(0)(distance)[..., None] + WIDE(eps))

    return of


def norm(order: float) -> Callable[[Array], Array]:
    """Return the function for vector norms of this order."""

    def of(x: Array) -> Array:
        size = numpy.abs(x)
        if order == 0:
            return (x != 0).sum(-1).astype(WIDE)
        if numpy.isinf(order):
            return size.max(-1) if order > 0 else size.min(-1)
        if order == 2:
            return numpy.sqrt((size * size).sum(-1))
        return (size ** WIDE(order)).sum(-1) ** (1 / WIDE(order))

    return of


def log_sum_exp(x: Array) -> Array:
    """Return the logarithms of the sums of exponentials."""
    top = _finite_top(x)
    return numpy.log(numpy.exp(x - top).sum(-1)) + top[..., 0]


def softmax(x: Array) -> Array:
    """Return the softmax of each row."""
    powers = numpy.exp(x - _finite_top(x))
    return powers / powers.sum(-1)[..., None]


def log_softmax(x: Array) -> Array:
    """Return the logarithm of the softmax of each row."""
    return x - log_sum_exp(x)[..., None]


def _finite_top(x: Array) -> Array:
    top = x.max(-1, initial=-numpy.inf)[..., None]
    return numpy.where(numpy.isfinite(top), top, WIDE(0))
