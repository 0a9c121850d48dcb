"""Whether a kernel's values are as good as the original's, element by element.

A kernel's value passes if it is within a few units in the last place of the original's value. It
also passes if it is no further from the value in double precision than rounding may put the
original: by as much as the original is off at results of this magnitude, or by as much as rounding
each step, or the inputs, may cause. How far the original may be off is judged for each element
separately: a huge element says nothing about other elements.

No type is wider than double. For a result in double, the original's error is measured in single
precision, at the same elements: the same steps are off by as many units in double.

Each constant is derived where it is defined, as far as possible. Constants of which only the order
of magnitude is derived were chosen with the kernels of ``tests/mutants/calls.py``. They are checked
on the kernels of ``tests/mutants/held_out.py``, which have other ops, functions and sizes (``python
-m tests.mutants --held-out``): a kernel that is declined there must be further off than the
original by far more than rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._base.data_class import dataclass

# Values that differ by less than this count as equal, whatever the reference says: torch.testing's
# tolerances.
RELATIVE = {
    torch.float16: 1e-3,
    torch.bfloat16: 1.6e-2,
    torch.float32: 1.3e-6,
    torch.float64: 1e-7,
    torch.complex32: 1e-3,
    torch.complex64: 1.3e-6,
    torch.complex128: 1e-7,
}
# assert_close's tolerance for double passes errors that single precision would show. So double gets
# as many units in the last place as single precision.
_DOUBLE_RELATIVE = (
    RELATIVE[torch.float32] / torch.finfo(torch.float32).eps * torch.finfo(torch.float64).eps
)
# Steps in a different order have errors of their own, as large as those drawn. Two errors that
# cancel in a draw may add up in the kernel, hence this factor; the largest of four draws is rarely
# that small.
_STEPS = 6.0
# A row's terms summed in a different order: the errors of n sums spread as sqrt(n), which is 32
# units for a thousand terms.
_OWN = 32.0
# Nine in ten values of a normal distribution lie within 1.6 deviations; 8 times as much never
# occurs by chance.
_REGION = 8.0
# With a row's terms in a different order, the error is another draw from the same distribution: up
# to 1.5 times the original's largest at results of this magnitude. docs/numerics.md has the same
# rule.
_WORST = 1.5
# The largest of a few draws may be small by chance: with n draws, another draw may be sqrt(32 / n)
# times the largest.
_WORST_LEAST = 32
# Fewer elements have no ninth decile. A sample of so many says as much as more elements.
_REGION_LEAST, _REGION_MOST = 8, 1 << 15
# A result also passes if it is right for arguments that round to the given ones. A result that is
# computed from a few numbers may be off by up to this share of itself for that reason: a remainder
# of a large number has no digits left, and is exact. A thousand units leave all but ten bits of the
# result; in single precision, that is a share of 1e-4.
_BACKWARD, _BACKWARD_ULPS = 1e-4, 1024
# Vector math libraries (libmvec, SLEEF) promise results within four units in the last place. The
# unit of a denormal number is the smallest denormal number.
_ULPS = 4.0


@dataclass(frozen=True, slots=True)
class Truth:
    """One result in double precision, for the elements that are asked about.

    Attributes:
        exact: The right values; NaN where there is none.
        steps: How far off rounding each step puts them.
        inputs: How far off rounding the inputs puts them.
        original: How far off the original is; ``None`` where the original's own values show it.
    """

    exact: Tensor
    steps: Tensor
    inputs: Tensor
    original: Tensor | None = None


def truth(
    exact: Tensor,
    rounded: Sequence[Tensor],
    nudged: Sequence[Tensor],
    original: Tensor | None = None,
    *,
    magnified: float = 1.0,
) -> Truth:
    """Return what runs in double precision say about a result.

    Args:
        exact: The right values.
        rounded: Runs whose steps were rounded.
        nudged: Runs whose inputs were rounded.
        original: As in ``Truth``.
        magnified: How many times as large as rounding errors the errors of these runs were.
    """

    def largest(others: Sequence[Tensor]) -> Tensor:
        off = torch.zeros(exact.shape, dtype=torch.float64)
        for other in others:
            if other.shape == exact.shape:
                off = torch.maximum(off, (other - exact).abs().nan_to_num(0.0, 0.0, 0.0))
        return off / magnified

    return Truth(exact, largest(rounded), largest(nudged), original)


def suspicious(want: Tensor, have: Tensor) -> Tensor | None:
    """Return which elements differ by more than a few units in the last place; ``None`` for none.

    Args:
        want: The original's values, of any dtype.
        have: The kernel's values, of the same dtype and sizes.
    """
    if torch.equal(want, have):
        return None
    if not (want.is_floating_point() or want.is_complex()):
        return want != have
    wide = torch.complex128 if want.is_complex() else torch.float64
    theirs, mine = want.to(wide), have.to(wide)
    off = (mine - theirs).abs()
    double = want.dtype in (torch.float64, torch.complex128)
    bound = theirs.abs() * (_DOUBLE_RELATIVE if double else RELATIVE[want.dtype])
    fine = (want == have) | (want.isnan() & have.isnan())
    # An infinite bound would let every value pass.
    fine |= (off <= bound) & bound.isfinite()
    return None if bool(fine.all()) else ~fine


def own_error(want: Tensor, truth: Truth) -> Tensor:
    """Return how far off the original is, as a share of the error that rounding its inputs causes.

    NaN where the share says nothing.
    """
    off = (want.to(truth.exact.dtype) - truth.exact).abs()
    scale = truth.inputs + _ulp(truth.exact, want.dtype)
    share = off / scale
    return torch.where(share.isfinite() & want.isfinite(), share, float("nan"))


def judged(
    want: Tensor,
    have: Tensor,
    truth: Truth,
    own: float,
    *,
    asked: Tensor,
    is_step: bool,
    mixes: bool = False,
    any_odd: bool = False,
    reach: float = 1.0,
    overflowed: bool = False,
    is_drawn: bool = False,
) -> Tensor:
    """Return which of some suspicious elements are wrong.

    Args:
        want: The original's values.
        have: The kernel's values.
        truth: The right values.
        own: How far off the original is as a rule: see ``own_error``.
        asked: Which elements are suspicious; the other elements show how far off the original is.
        is_step: Whether the function's values are whole numbers, so that the number next to the
            right one is no rounding error.
        mixes: Whether an element of the result depends on many elements of an argument.
        any_odd: Whether NaN is as good as an infinity: where an element depends on many elements,
            and some are infinite, the order of its steps decides which of the two comes out.
        reach: Within this factor of the largest number, and of the smallest, an intermediate step
            may have left the range: with the same steps in a different order, a different step
            does.
        overflowed: Whether a step of the original has turned finite numbers into infinities.
        is_drawn: Whether the inputs are made up: the original may be accurate on these few by
            chance. A user's own call must be no worse off with the kernel.

    Longer than 60 lines, because each rule uses what the rules before it have left open.
    """
    exact = truth.exact
    mine, theirs = have.to(exact.dtype), want.to(exact.dtype)
    right = ~mine.isfinite() & ~theirs.isfinite() if any_odd else mine.isnan() & theirs.isnan()
    if is_step:
        # The exact value may have jumped to a step next to the original's.
        return asked & ~(right | ((mine - theirs).abs() <= _STEPS * truth.steps))
    fi = torch.finfo(want.dtype)
    error, original = (mine - exact).abs(), (theirs - exact).abs()
    if truth.original is not None:
        original = torch.maximum(original, truth.original)
    size = exact.abs()
    allowed = _STEPS * truth.steps + _OWN * own * truth.inputs + _ULPS * _ulp(exact, want.dtype)
    if truth.original is not None:
        allowed *= 2  # Both may be off by so much from the right value, which is not known.
    backward = min(_BACKWARD, _BACKWARD_ULPS * fi.eps)
    allowed += truth.inputs if mixes else torch.minimum(truth.inputs, backward * size)
    right |= error <= torch.maximum(allowed, original.nan_to_num(0.0, 0.0, 0.0))
    if not bool((right | ~asked).all()):
        allowed += _REGION * size * _by_region(size, original / size)
    right |= error <= torch.where(original.isfinite(), torch.maximum(allowed, original), allowed)
    if mixes and not bool((right | ~asked).all()):
        least = _WORST_LEAST if is_drawn else 1
        right |= error <= _WORST * _worst_of_region(size, original, least)
    # The original has left the range of numbers where it should not have: in an intermediate sum.
    right |= (size < fi.max) & ~theirs.isfinite() & mixes
    # Or an intermediate step has left the range, so that none of the original's digits is right.
    right |= (original >= 0.5 * size) & overflowed
    right |= ~theirs.isfinite() & (overflowed and mixes)
    if reach > 1:
        right |= (mine - theirs).abs() <= fi.smallest_normal * fi.eps * reach
    # Beyond the largest number: the right value is an infinity, or next to one.
    if not exact.is_complex():
        beside = size >= fi.max * (1 - 4 * RELATIVE[want.dtype])
        right |= beside & (mine.sign() == exact.sign()) & (mine.abs() >= fi.max * 0.98)
    within = (size >= fi.max / reach) & (size <= fi.max * reach)
    right |= within & ~mine.isfinite() & (reach > 1)
    # NaN or an infinity: as the original gives it in double.
    right |= exact.isnan() & mine.isnan()
    right |= exact.isinf() & (mine == exact)
    return asked & ~right


def near_by(want: Tensor, have: Tensor, others: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return which elements of ``have`` are as near to ``want`` as rounding puts the original.

    Args:
        want: The original's values, in double precision.
        have: The kernel's values, in double precision.
        others: The original's values, with errors of a unit in the last place in inputs and steps:
            twice as large as those of rounding.
        dtype: The type in which the values were computed.
    """
    spread = torch.zeros(want.shape, dtype=torch.float64)
    for other in others:
        if other.shape == want.shape:
            spread = torch.maximum(spread, (other.to(want.dtype) - want).abs())
    # Where the original has no number once, nothing is known, and no difference passes.
    is_known = spread.isfinite()
    return is_known & ((have - want).abs() <= _STEPS / 2 * spread + _ULPS * _ulp(want, dtype))


def _by_region(size: Tensor, shares: Tensor) -> Tensor:
    """Return for each element which relative error nine in ten of its magnitude do not exceed."""
    region = (size.clamp(min=1e-300, max=1e300).log2() / 2).floor().nan_to_num(0.0).reshape(-1)
    found = torch.zeros(region.shape, dtype=torch.float64)
    # A sample of very many elements says as much.
    step = max(1, len(region) // _REGION_MOST)
    some, those = region[::step], shares.reshape(-1)[::step]
    some, those = some[those.isfinite()], those[those.isfinite()]
    # The shares sorted within each region, region after region.
    order = those.argsort()
    order = order[some[order].argsort(stable=True)]
    sorted_shares, sorted_regions = those[order], some[order]
    regions, counts = torch.unique_consecutive(sorted_regions, return_counts=True)
    last = counts.cumsum(0) - 1
    ninth = last - counts // 10
    enough = counts >= _REGION_LEAST
    if bool(enough.any()):
        regions, typical_shares = regions[enough], sorted_shares[ninth[enough]]
        place = torch.searchsorted(regions, region).clamp(max=len(regions) - 1)
        found = torch.where(regions[place] == region, typical_shares[place], 0.0)
    return found.reshape(size.shape)


def _worst_of_region(size: Tensor, original: Tensor, least: int) -> Tensor:
    """Return for each element how far off the original may be at values of about its magnitude.

    That is the original's largest error at values between an eighth of the element and eight times
    the element; more if there are fewer than ``least`` such values.
    """
    region = (size.clamp(min=1e-300, max=1e300).log2() / 2).round().nan_to_num(0.0).reshape(-1)
    regions, place, counts = torch.unique(region, return_inverse=True, return_counts=True)
    errors = original.reshape(-1).nan_to_num(0.0, 0.0, 0.0)
    worst = torch.zeros(regions.shape, dtype=torch.float64).scatter_reduce_(
        0, place, errors, "amax"
    )
    # A magnitude may lie near the border of two regions, so neighbouring regions count.
    found, count = worst.clone(), counts.clone()
    is_next = regions.diff() == 1
    found[1:] = torch.where(is_next, torch.maximum(found[1:], worst[:-1]), found[1:])
    found[:-1] = torch.where(is_next, torch.maximum(found[:-1], worst[1:]), found[:-1])
    count[1:] += torch.where(is_next, counts[:-1], 0)
    count[:-1] += torch.where(is_next, counts[1:], 0)
    found *= (least / count).sqrt().clamp(min=1.0)
    return found[place].reshape(size.shape)


def _ulp(exact: Tensor, dtype: torch.dtype) -> Tensor:
    fi = torch.finfo(dtype)
    size = exact.abs().clamp(max=fi.max).nan_to_num(0.0)
    return torch.clamp(size * fi.eps, min=fi.smallest_normal * fi.eps)


def typical(shares: Tensor) -> float:
    """Return the share that nine in ten shares do not exceed; 0 if there are no shares."""
    known = shares[~shares.isnan()].reshape(-1)
    if not known.numel():
        return 0.0
    return float(known.kthvalue(max(1, -(-9 * known.numel() // 10))).values)


def is_step(exact: Tensor) -> bool:
    """Return whether a function's values on ordinary data are whole numbers, and not all one."""
    if exact.is_complex() or not exact.is_floating_point():
        return False
    known = exact[exact.isfinite()]
    return known.numel() > 0 and bool((known == known.round()).all()) and bool((known != 0).any())
