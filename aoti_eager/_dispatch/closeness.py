"""Whether a kernel's values are as good as the original's, element by element.

A value passes that is the original's within a few units in its last place. Another one passes that
is no further from the value in double precision than the original's rounding may put it: by as much
as the original is off at results of this magnitude, or by what rounding each step, or the inputs,
comes to. How far the original may be off is judged for each element by itself: one that is huge
says nothing about the others.

Nothing is wider than double. Of a double it is known how far the original is off in single
precision, at the same elements: the same steps are off by as many units in double.

The constants are derived where they are defined, as far as they can be; where only their order of
magnitude is derived, they were chosen by the kernels of ``tests/mutants/calls.py`` and are checked
on those of ``tests/mutants/held_out.py``, other ops, functions and sizes (``python -m tests.mutants
--held-out``): what declines there must be further off than the original by far more than rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._base.data_class import dataclass

# What differs by less is as good as equal, whatever the reference says: torch.testing's own.
RELATIVE = {
    torch.float16: 1e-3,
    torch.bfloat16: 1.6e-2,
    torch.float32: 1.3e-6,
    torch.float64: 1e-7,
    torch.complex32: 1e-3,
    torch.complex64: 1.3e-6,
    torch.complex128: 1e-7,
}
# assert_close lets pass in double what single precision would show: as many units as there.
_DOUBLE_RELATIVE = (
    RELATIVE[torch.float32] / torch.finfo(torch.float32).eps * torch.finfo(torch.float64).eps
)
# Steps in another order have errors of their own, as large as those drawn. Two that cancel in a
# draw may add up there, so it takes a factor; the largest of four draws is rarely so small.
_STEPS = 6.0
# A row's terms in another order: errors of n sums spread as sqrt(n), for a thousand terms 32 units.
_OWN = 32.0
# Nine in ten of a normal spread lie within 1.6 deviations; 8 times that is never seen by chance.
_REGION = 8.0
# Of a row's terms in another order, the error is another draw of one spread: half as much again as
# the original's largest at results of this magnitude. docs/numerics.md has the same rule.
_WORST = 1.5
# The largest of a few draws is small by chance: of n, another draw may be sqrt(32 / n) times it.
_WORST_LEAST = 32
# Of fewer there is no ninth in ten. Of more, as many say as much.
_REGION_LEAST, _REGION_MOST = 8, 1 << 15
# A result that is right for arguments which round to the given ones; up to this share of it, where
# it is computed of a few numbers: a remainder of a large number has no digits left, and is exact.
# A thousand units leave all but ten bits of it; in single precision, that is a share of 1e-4.
_BACKWARD, _BACKWARD_ULPS = 1e-4, 1024
# Vector mathematics (libmvec, SLEEF) promise four units in the last place of the right value. The
# unit of a denormal number is the smallest of them.
_ULPS = 4.0


@dataclass(frozen=True, slots=True)
class Truth:
    """One result in double precision, the elements that are asked about.

    Attributes:
        exact: The values; NaN where there is none.
        steps: By how much rounding each step puts them off.
        inputs: By how much rounding the inputs puts them off.
        original: By how much the original is off; ``None`` where that shows in its own values.
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
    """Return what is known of a result from runs in double precision.

    Args:
        exact: The values.
        rounded: Runs whose steps were rounded.
        nudged: Runs whose inputs were.
        original: As in ``Truth``.
        magnified: How many times what rounding comes to these errors were.
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
        want: The original's, of any dtype.
        have: The kernel's, of the same dtype and sizes.
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
    # A bound that is infinite bounds nothing.
    fine |= (off <= bound) & bound.isfinite()
    return None if bool(fine.all()) else ~fine


def own_error(want: Tensor, truth: Truth) -> Tensor:
    """Return how far the original is off, as a share of what rounding its inputs comes to.

    NaN where that says nothing.
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
        want: The original's.
        have: The kernel's.
        truth: The right ones.
        own: How far the original is off as a rule: see ``own_error``.
        asked: Which elements are suspicious; the others say how far the original is off.
        is_step: Whether the function's values are whole numbers, so that one beside the right one
            is no rounding.
        mixes: Whether an element depends on many of an argument's.
        any_odd: Whether no number is as good as an infinity: where an element depends on many, and
            some are infinite, the order of its steps decides.
        reach: Within this factor of the largest number, and of the least, a step on the way may
            have left the range: in another order of the same steps, another one does.
        overflowed: Whether a step of the original has made infinities of finite numbers.
        is_drawn: Whether the inputs are made up: that the original does well on these few may be
            chance. A user's call is no worse off with the kernel.
    """
    exact = truth.exact
    mine, theirs = have.to(exact.dtype), want.to(exact.dtype)
    right = ~mine.isfinite() & ~theirs.isfinite() if any_odd else mine.isnan() & theirs.isnan()
    if is_step:
        # The exact value may have jumped beside the original's.
        return asked & ~(right | ((mine - theirs).abs() <= _STEPS * truth.steps))
    fi = torch.finfo(want.dtype)
    error, original = (mine - exact).abs(), (theirs - exact).abs()
    if truth.original is not None:
        original = torch.maximum(original, truth.original)
    size = exact.abs()
    allowed = _STEPS * truth.steps + _OWN * own * truth.inputs + _ULPS * _ulp(exact, want.dtype)
    if truth.original is not None:
        allowed *= 2  # Both are off by so much from what is right: it is not known.
    backward = min(_BACKWARD, _BACKWARD_ULPS * fi.eps)
    allowed += truth.inputs if mixes else torch.minimum(truth.inputs, backward * size)
    right |= error <= torch.maximum(allowed, original.nan_to_num(0.0, 0.0, 0.0))
    if not bool((right | ~asked).all()):
        allowed += _REGION * size * _by_region(size, original / size)
    right |= error <= torch.where(original.isfinite(), torch.maximum(allowed, original), allowed)
    if mixes and not bool((right | ~asked).all()):
        least = _WORST_LEAST if is_drawn else 1
        right |= error <= _WORST * _worst_of_region(size, original, least)
    # Where the original has left the range of numbers, and should not have: on the way, in a sum.
    right |= (size < fi.max) & ~theirs.isfinite() & mixes
    # Or did so on the way, so that none of its digits is right.
    right |= (original >= 0.5 * size) & overflowed
    right |= ~theirs.isfinite() & (overflowed and mixes)
    if reach > 1:
        right |= (mine - theirs).abs() <= fi.smallest_normal * fi.eps * reach
    # Beyond the largest number: the right one is an infinity here, or beside it.
    if not exact.is_complex():
        beside = size >= fi.max * (1 - 4 * RELATIVE[want.dtype])
        right |= beside & (mine.sign() == exact.sign()) & (mine.abs() >= fi.max * 0.98)
    within = (size >= fi.max / reach) & (size <= fi.max * reach)
    right |= within & ~mine.isfinite() & (reach > 1)
    # No number, or an infinity: as the original in double has it.
    right |= exact.isnan() & mine.isnan()
    right |= exact.isinf() & (mine == exact)
    return asked & ~right


def _by_region(size: Tensor, shares: Tensor) -> Tensor:
    """Return for each element which relative error nine in ten of its magnitude do not exceed."""
    region = (size.clamp(min=1e-300, max=1e300).log2() / 2).floor().nan_to_num(0.0).reshape(-1)
    found = torch.zeros(region.shape, dtype=torch.float64)
    # Of very many, some say as much.
    step = max(1, len(region) // _REGION_MOST)
    some, those = region[::step], shares.reshape(-1)[::step]
    some, those = some[those.isfinite()], those[those.isfinite()]
    # The shares of each region in their order, region after region.
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
    """Return for each element what the original may be off at values of about its magnitude.

    That is its largest error at values of up to eight times this one, and of down to an eighth;
    more where these are fewer than ``least``.
    """
    region = (size.clamp(min=1e-300, max=1e300).log2() / 2).round().nan_to_num(0.0).reshape(-1)
    regions, place, counts = torch.unique(region, return_inverse=True, return_counts=True)
    errors = original.reshape(-1).nan_to_num(0.0, 0.0, 0.0)
    worst = torch.zeros(regions.shape, dtype=torch.float64).scatter_reduce_(
        0, place, errors, "amax"
    )
    # A magnitude may lie beside the border of two regions.
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
    """Return the share that nine in ten do not exceed; 0 where there is none."""
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
