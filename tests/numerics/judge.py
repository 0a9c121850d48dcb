"""The rule for reductions and whatever else adds up: eager, compiled and exact results, by region.

A region is a family of data at one size: its rows are alike, so that the largest error of eager on
it is a fair measure for each of its elements. A compiled result passes where

- NaN and infinities are eager's, each at its place; integers and booleans are equal. Only where
  eager has a NaN or an infinity and the exact value is another, the exact value may stand: a
  finite one is judged as others are;
- a finite result is within 2 ulp of the exact value, or its error is at most 1.5 times the largest
  error of eager in the region, both as distances from the exact value;
- where eager has a NaN or an infinity, a finite result is within 2 ulp of the region's largest: one
  that cancels to almost nothing is all error, in any code.

Data movement is judged exactly: every value is eager's bit for bit, except for the payload of NaN,
which neither eager nor the compiler promises. Elsewhere zeros that differ in sign are counted, not
refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

ULPS, FACTOR = 2.0, 1.5
# How many examples of each kind are kept.
_EXAMPLES = 3


@dataclass(slots=True)
class Verdict:
    """What was found on the regions of one op and dtype.

    Attributes:
        values: How many elements were compared.
        max_ulp_eager: Eager's largest error, in ulp of the largest result of its region.
        max_ulp_compiled: The compiled code's.
        zero_signs: Zeros whose signs differ.
        nearer: Results as the exact ones are where eager has another NaN or infinity.
        nan_mismatches: Elements where one of the two is NaN.
        inf_mismatches: Other elements where an infinity is not eager's.
        exact_differing: Elements that had to be equal and are not.
        metadata: Regions whose dtype or sizes are wrong, in words.
        beyond: Regions that break the rule on finite values: ``region``, ``ulp_eager``,
            ``ulp_compiled`` and an example, in words.
        examples: A few for each kind of difference.
    """

    values: int = 0
    max_ulp_eager: float = 0.0
    max_ulp_compiled: float = 0.0
    zero_signs: int = 0
    nearer: int = 0
    nan_mismatches: int = 0
    inf_mismatches: int = 0
    exact_differing: int = 0
    metadata: list[str] = field(default_factory=list)
    beyond: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Return whether nothing is against the rule."""
        wrong = self.nan_mismatches + self.inf_mismatches + self.exact_differing
        return not (wrong or self.metadata or self.beyond)

    @property
    def failures(self) -> list[str]:
        """Return what is against the rule, a line each."""
        kinds = ("nan", "inf", "exact")
        shown = [one for kind in kinds for one in self.examples.get(kind, ())]
        return [*self.metadata, *(str(one["example"]) for one in (*shown, *self.beyond))]

    def add(self, other: Verdict) -> None:
        """Take in what was found elsewhere."""
        self.max_ulp_eager = max(self.max_ulp_eager, other.max_ulp_eager)
        self.max_ulp_compiled = max(self.max_ulp_compiled, other.max_ulp_compiled)
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.metadata += other.metadata
        self.beyond += other.beyond
        for kind, several in other.examples.items():
            for one in several:
                self.show(kind, one)

    def show(self, kind: str, example: dict[str, Any]) -> None:
        """Keep an example, of the first ones of its kind."""
        kept = self.examples.setdefault(kind, [])
        if len(kept) < _EXAMPLES:
            kept.append(example)

    def measures(self) -> dict[str, Any]:
        """Return what ``rule.merged`` reads, as JSON values."""
        worst = sorted(self.beyond, key=lambda one: -one["ulp_compiled"])
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "max_ulp_eager": self.max_ulp_eager,
            "max_ulp_compiled": self.max_ulp_compiled,
            "metadata": self.metadata[:_EXAMPLES],
            "beyond_regions": len(self.beyond),
            "beyond": worst[:_EXAMPLES],
            "examples": self.examples,
        }


_COUNTS = (
    *("values", "zero_signs", "nearer"),
    *("nan_mismatches", "inf_mismatches", "exact_differing"),
)


def judge(
    region: str,
    eager: Tensor,
    compiled: Tensor,
    exact: numpy.ndarray | Tensor | None,
    *,
    signs_count: bool = False,
) -> Verdict:
    """Return what the rule says about one region.

    Args:
        region: Its name, for messages.
        eager: Eager's results, any shape.
        compiled: Of the same shape and dtype.
        exact: The exact results, float64 or longdouble (complex ones alike); ``None`` where eager's
            very values are wanted.
        signs_count: Whether a zero must have eager's sign, too.
    """
    verdict = Verdict(values=eager.numel())
    if eager.dtype != compiled.dtype or eager.shape != compiled.shape:
        got, want = ((t.dtype, tuple(t.shape)) for t in (compiled, eager))
        verdict.metadata.append(f"{region}: {got} instead of {want}")
        return verdict
    if eager.is_complex():
        truth = None if exact is None else _array(exact)
        for name in ("real", "imag"):
            part = None if truth is None else getattr(truth, name)
            mine, theirs = getattr(compiled, name), getattr(eager, name)
            found = judge(f"{region}, {name}", theirs, mine, part, signs_count=signs_count)
            found.values = 0
            verdict.add(found)
        return verdict
    if not eager.is_floating_point():
        differs = eager != compiled
        verdict.exact_differing = _count(verdict, "exact", region, eager, compiled, differs)
        return verdict
    signs = (eager == 0) & (compiled == 0) & (torch.signbit(eager) != torch.signbit(compiled))
    verdict.zero_signs = 0 if signs_count else int(signs.sum())
    special = ~torch.isfinite(eager) | ~torch.isfinite(compiled)
    agrees = (eager == compiled) | (eager.isnan() & compiled.isnan())
    differs = special & ~agrees
    judged = ~special
    if exact is not None:
        finite, infinite = _nearer(eager, compiled, _array(exact).reshape(eager.shape))
        nearer = differs & (finite | infinite)
        verdict.nearer = _count(verdict, "nearer", region, eager, compiled, nearer)
        differs, judged = differs & ~nearer, judged | (differs & finite)
    is_nan = differs & (eager.isnan() | compiled.isnan())
    verdict.nan_mismatches = _count(verdict, "nan", region, eager, compiled, is_nan)
    verdict.inf_mismatches = _count(verdict, "inf", region, eager, compiled, differs & ~is_nan)
    if exact is None:
        unequal = (~special & ~agrees) | signs if signs_count else ~special & ~agrees
        verdict.exact_differing = _count(verdict, "exact", region, eager, compiled, unequal)
    else:
        _judge_close(verdict, region, eager, compiled, _array(exact).reshape(eager.shape), judged)
    return verdict


def ulp(values: numpy.ndarray, dtype: torch.dtype) -> numpy.ndarray:
    """Return the distance between neighbours of a dtype at each of these finite magnitudes."""
    limits = torch.finfo(dtype)
    digits = round(-numpy.log2(limits.eps))
    lowest = round(numpy.log2(limits.smallest_normal))
    highest = round(numpy.log2(limits.max))
    magnitude = numpy.abs(values)
    magnitude = numpy.where(magnitude > 0, magnitude, limits.smallest_normal)
    _, exponent = numpy.frexp(magnitude)
    exponent = numpy.clip(exponent - 1, lowest, highest - 1)
    return numpy.ldexp(numpy.ones_like(values), exponent - digits)


def _nearer(eager: Tensor, compiled: Tensor, exact: numpy.ndarray) -> tuple[Tensor, Tensor]:
    """Return where finite results are to be judged though eager's are not finite, and where
    infinite ones are right though eager has a NaN.
    """
    largest = torch.finfo(eager.dtype).max
    truth = torch.from_numpy(exact.astype(numpy.float64))
    finite = ~torch.isfinite(eager) & torch.isfinite(compiled) & (truth.abs() <= largest)
    infinite = eager.isnan() & compiled.isinf() & (truth == compiled.double())
    return finite, infinite


def _count(
    verdict: Verdict, kind: str, region: str, eager: Tensor, compiled: Tensor, where: Tensor
) -> int:
    count = int(where.sum())
    if count:
        at = tuple(int(i) for i in where.nonzero()[0])
        want, have = eager[at].item(), compiled[at].item()
        text = f"{region}: {count} of {eager.numel()}, at {at} {have!r}, eager {want!r}"
        verdict.show(kind, {"inputs": [region], "example": text})
    return count


def _judge_close(
    verdict: Verdict,
    region: str,
    eager: Tensor,
    compiled: Tensor,
    exact: numpy.ndarray,
    judged: Tensor,
) -> None:
    wanted = judged.numpy() & numpy.isfinite(exact)
    truth = exact[wanted].astype(numpy.longdouble)
    if not truth.size:
        return
    want, have = (t.double().numpy()[wanted] for t in (eager, compiled))
    theirs, mine = numpy.abs(want - truth), numpy.abs(have - truth)
    theirs = numpy.where(numpy.isfinite(theirs), theirs, 0)
    unit = ulp(truth, eager.dtype)
    # Of the region's largest result: beside it, one that cancels to nothing is all error.
    largest = unit.max() if truth.any() else numpy.longdouble(numpy.inf)
    eager_ulp, compiled_ulp = float(theirs.max() / largest), float(mine.max() / largest)
    verdict.max_ulp_eager, verdict.max_ulp_compiled = eager_ulp, compiled_ulp
    allowed = numpy.maximum(ULPS * unit, FACTOR * theirs.max())
    if truth.any():  # Eager has no error where it has no number: 2 ulp of the largest result.
        allowed = numpy.where(numpy.isfinite(want), allowed, numpy.maximum(allowed, ULPS * largest))
    beyond = mine > allowed
    if beyond.any():
        worst = int(numpy.argmax(mine / allowed))
        text = (
            f"{region}: {int(beyond.sum())} of {truth.size} beyond the rule; {have[worst]:.9g}, "
            f"eager {want[worst]:.9g}, exact {float(truth[worst]):.17g}; "
            f"error {float(mine[worst]):.3g}, eager's largest {float(theirs.max()):.3g}"
        )
        verdict.beyond.append(
            {
                "region": region,
                "ulp_eager": float(theirs.max() / unit[worst]),
                "ulp_compiled": float(mine[worst] / unit[worst]),
                "example": text,
            }
        )


def _array(values: numpy.ndarray | Tensor) -> numpy.ndarray:
    return values.detach().numpy() if isinstance(values, Tensor) else values
