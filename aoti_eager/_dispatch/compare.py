"""Compare what a kernel library did with what the original did.

Runs in the user's process on live arguments and in the trial process on made-up ones. The caller
has the thread's pass-through flag set: every torch op in here must reach its original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._base.torch_compat.tensors import tensor_difference
from .._keys.call_template import CallTemplate
from .closeness import (
    Truth,
    judged,
    near_by,
    own_error,
    suspicious,
    truth,
    typical,
)
from .reference import RUNS, ExactReference, Reference
from .tensor_pairs import Pair, compared_pairs

# Runs in double precision are made for the pairs that differ most: for at least and at most so many
# pairs, and for about so many elements in all.
_LEAST_REFERENCES, _MOST_REFERENCES, _ELEMENTS = 3, 96, 4096
# No runs with errors are made for a result with more elements than this.
_MOST_SPREAD = 1 << 20


def differences(
    template: CallTemplate,
    expected: Sequence[Tensor],
    got: Sequence[Tensor],
    expected_inputs: Sequence[Tensor],
    got_inputs: Sequence[Tensor],
    reference: Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]] | None]
    | Reference
    | None = None,
    *,
    with_values: bool = False,
) -> list[str]:
    """Return one line for each way in which a library's run differs from the original's.

    Args:
        template: The call.
        expected: The results that the original has returned.
        got: The library's outputs.
        expected_inputs: The inputs after the original ran, in slot order.
        got_inputs: The inputs after the library ran.
        reference: Gives results and inputs after a run in float64. Where values differ by more than
            ``torch.testing.assert_close`` allows, the library still passes if it is no further from
            this reference than the original is (``closeness``). One run says little about how far
            off the original may be, so values that ``assert_close`` allows always pass.
        with_values: Whether a line names both values at the element where they differ most.
    """
    if not isinstance(reference, Reference):
        reference = None if reference is None else ExactReference(reference)
    found, pairs = compared_pairs(template, expected, got, expected_inputs, got_inputs)
    for pair in pairs:
        if _is_close(pair.want, pair.have):
            continue
        # NaN in place of an infinity is wrong: nothing is known here about the order of steps.
        problem = values_problem([pair], [reference], None, any_odd=False)
        if problem is not None and with_values:
            problem += f" ({_both_values(pair.want, pair.have)})"
        if problem is not None:
            found.append(f"{pair.where}: {problem}")
    return found


def values_problem(
    pairs: Sequence[Pair],
    references: Sequence[Reference | None],
    own: Callable[[Pair], tuple[float, bool]] | None,
    *,
    mixes: bool = True,
    any_odd: bool = True,
    reach: float = 1.0,
) -> str | None:
    """Return how the values of one result differ over some runs; ``None`` if they are as good.

    Args:
        pairs: The result in each run.
        references: For each of ``pairs``, its run in double precision.
        own: Gives how far off the original is as a rule, and whether values are steps; see
            ``closeness.judged``. If absent, both are found from these runs.
        mixes: See ``closeness.judged``.
        any_odd: See ``closeness.judged``.
        reach: See ``closeness.judged``.
    """
    masks = [suspicious(pair.want, pair.have) for pair in pairs]
    odd = [i for i, mask in enumerate(masks) if mask is not None]
    wrong: list[tuple[int, Tensor, Truth | None]] = []
    most = max(_LEAST_REFERENCES, min(_MOST_REFERENCES, _ELEMENTS // max(1, pairs[0].want.numel())))
    for i in sorted(odd, key=lambda i: -_distance(pairs[i]))[:most]:
        pair, mask = pairs[i], masks[i]
        assert mask is not None
        known = truth_of(pair, references[i], runs=0)
        if known is None:
            if not _is_close(pair.want, pair.have):
                wrong.append((i, mask, None))
            continue
        bad = judged(
            pair.want,
            pair.have,
            known,
            0.0,
            asked=mask,
            is_step=False,
            mixes=mixes,
            any_odd=any_odd,
            is_drawn=own is not None,
        )
        if bool(bad.any()) or own is not None:
            # The values alone do not decide: how far off rounding may put them takes some more
            # runs.
            if own is not None and not bool(bad.any()) and not own(pair)[1]:
                continue
            known, bad = _judged_closely(
                pair, mask, references[i], own, mixes=mixes, any_odd=any_odd, reach=reach
            )
        if bool(bad.any()):
            wrong.append((i, bad, known))
    if not wrong:
        return None
    total = sum(int(mask.sum()) for _, mask, _ in wrong)
    i, mask, known = wrong[0]
    return "values: " + _described(pairs[i], mask, known, total)


def _judged_closely(
    pair: Pair,
    mask: Tensor,
    reference: Reference | None,
    own: Callable[[Pair], tuple[float, bool]] | None,
    *,
    mixes: bool,
    any_odd: bool,
    reach: float,
) -> tuple[Truth, Tensor]:
    """Return what is right for a pair, with its rounding errors, and which elements are wrong.

    Arguments are as for ``values_problem``.
    """
    assert reference is not None

    def wrong(known: Truth, *, overflowed: bool = False) -> Tensor:
        by = (typical(own_error(pair.want, known)), False) if own is None else own(pair)
        return judged(
            pair.want,
            pair.have,
            known,
            by[0],
            asked=mask,
            is_step=by[1],
            mixes=mixes,
            any_odd=any_odd,
            reach=reach,
            overflowed=overflowed,
            is_drawn=own is not None,
        )

    def known(runs: int) -> Truth:
        found = truth_of(pair, reference, runs=runs)
        assert found is not None
        return found

    # A pair that passes with one run passes with more runs, too.
    first = known(1)
    bad = wrong(first)
    if not bool(bad.any()):
        return first, bad
    full = known(RUNS)
    bad = wrong(full)
    if reach > 1 and bool(bad.any()) and reference.overflowed():
        bad = wrong(full, overflowed=True)
    if own is not None and not mixes and bool(bad.any()):
        bad &= ~_as_elsewhere(pair, reference)
    without_truth = bad & full.exact.isnan() & pair.want.isfinite() & pair.have.isfinite()
    # As for runs in double precision: several runs would take many times the memory of the call.
    if pair.want.numel() <= _MOST_SPREAD and bool(without_truth.any()):
        bad &= ~(without_truth & _as_near_by(pair, reference))
    return full, bad


def _as_near_by(pair: Pair, reference: Reference) -> Tensor:
    """Return which elements are no further off than rounding puts the original.

    Where double precision gives NaN, and the original a number, no right value is known: torch's
    attention has 0 for a row of NaN in single precision only.
    """
    want = pair.want.to(_wide(pair.want))
    others = [one[pair.of_inputs][pair.index] for one in reference.moved_originals()]
    return near_by(want, pair.have.to(want.dtype), others, pair.want.dtype)


def _as_elsewhere(pair: Pair, reference: Reference) -> Tensor:
    """Return which elements the original gives for the same arguments at another place."""
    found = reference.elsewhere()
    rows = None if found is None else found[pair.of_inputs][pair.index]
    have = pair.have
    if rows is None or rows.shape[1:] != have.shape or rows.dtype is not have.dtype:
        return torch.zeros_like(have, dtype=torch.bool)
    return ((rows == have) | (rows.isnan() & have.isnan())).any(0)


def truth_of(pair: Pair, reference: Reference | None, *, runs: int = RUNS) -> Truth | None:
    """Return what is right for a pair; ``None`` if it is not known.

    ``runs`` is the number of runs with errors of each kind. With 0, rounding is taken to cause no
    error.
    """
    if reference is None or not (pair.want.is_floating_point() or pair.want.is_complex()):
        return None
    exact = reference.exact()
    if exact is None:
        return None
    value = exact[pair.of_inputs][pair.index]
    if value.shape != pair.want.shape or value.dtype is not _wide(pair.want):
        return None
    # Several runs in double precision would take many times the memory of the call.
    if not runs or value.numel() > _MOST_SPREAD:
        return truth(value, [], [])
    rounded, nudged = reference.spread(runs)
    single = reference.errors_of_doubles()
    return truth(
        value,
        [one[pair.of_inputs][pair.index] for one in rounded],
        [one[pair.of_inputs][pair.index] for one in nudged],
        None if single is None else single[pair.of_inputs][pair.index],
        magnified=reference.magnified(),
    )


def _distance(pair: Pair) -> float:
    """Return the largest relative difference of a pair's values.

    It is infinite where values differ and one of them is not finite.
    """
    want, have = pair.want, pair.have
    if want.is_complex():
        want, have = (torch.view_as_real(one.resolve_conj()) for one in (want, have))
    elif not want.is_floating_point():
        return 1.0
    want, have = want.double(), have.double()
    off = ((have - want).abs() / want.abs().clamp(min=1e-300)).nan_to_num(0.0)
    same = (want == have) | (want.isnan() & have.isnan())
    other = ~same & ~(want.isfinite() & have.isfinite())
    return float(torch.where(other, float("inf"), off).max())


def _described(pair: Pair, mask: Tensor, known: Truth | None, total: int) -> str:
    """Return which element is wrong, and what was expected."""
    place = [int(n) for n in mask.nonzero()[0]]
    want, have = pair.want[tuple(place)].item(), pair.have[tuple(place)].item()
    said = f"{have!r} instead of {want!r} at {tuple(place)}"
    if known is not None:
        said += f" (in double precision {known.exact[tuple(place)].item()!r})"
    return f"{said}, one of {total} wrong elements" if total > 1 else said


def _wide(values: Tensor) -> torch.dtype:
    return torch.complex128 if values.is_complex() else torch.float64


def _is_close(want: Tensor, have: Tensor) -> bool:
    # The quick comparison first: as a rule, it is enough.
    return bool(torch.equal(have, want)) or tensor_difference(have, want) is None


def _both_values(want: Tensor, have: Tensor) -> str:
    """Return the two values at the place where they differ most; NaN differs most of all."""
    if want.numel() == 0:
        return "no elements"
    wide = _wide(want)
    mine, theirs = have.detach().to(wide).reshape(-1), want.detach().to(wide).reshape(-1)
    distance = (mine - theirs).abs()
    same = (mine == theirs) | (torch.isnan(mine) & torch.isnan(theirs))
    distance = torch.where(torch.isnan(distance), torch.inf, distance).masked_fill(same, -1.0)
    place = int(distance.argmax())
    return f"{mine[place].item()!r} instead of {theirs[place].item()!r}, element {place}"
