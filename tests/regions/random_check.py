"""Fuses random modules side by side and compares them with eager.

About ten modules stand side by side in one region, to save compiles. Each is recorded alone first:
one that stops is compared, and has no part in the region. Results are compared by
``torch.testing.assert_close``, and where that finds a difference, by the package's own rule, which
asks a replay in double precision. Strides, dtypes, containers and the arguments count, too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import aoti_eager
from aoti_eager import FusionReport, fuse
from aoti_eager._regions.variant import Variant

from .random_grammar import Draw, RandomModule
from .random_ops import drawn


@dataclass(frozen=True)
class Outcome:
    """What became of one module.

    Attributes:
        seed: The module's seed.
        state: ``served``, ``stopped``, or ``wrong``.
        reason: Why the module stopped.
        message: The reason in words, or what is wrong.
        rounding: Whether rounding has decided: the numbers are as good as eager's, and others.
        lines: The number of lines of the module's forward.
    """

    seed: int
    state: str
    reason: str = ""
    message: str = ""
    rounding: bool = False
    lines: int = 0


class SideBySide(nn.Module):
    """Modules that know nothing of each other; the result is a tuple of theirs."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *given: list[Tensor]) -> tuple[Any, ...]:
        """Return the results of all modules, each for its own arguments."""
        return tuple([part(*one) for part, one in zip(self.parts, given, strict=True)])


class _Case:
    """One random module, two sets of arguments, and eager's results for both."""

    def __init__(self, seed: int) -> None:
        draw: Draw = drawn(seed)
        self.seed = seed
        self.module = RandomModule(draw)
        self.given = [list(draw.arguments.values()), draw.more_arguments()]
        self._kept = copy.deepcopy(self.given)
        self.want = [self.module(*one) for one in self.given]
        self.lines = len(draw.lines)

    def problem(self, got: Any, which: int) -> str:
        """Return what is wrong with a result; empty if nothing is."""
        kept, given = self._kept[which], self.given[which]
        if not all(map(_equal, kept, given)):
            return "an argument was written to"
        return problem(got, self.want[which])

    def outcome(self, state: str, **options: Any) -> Outcome:
        """Return what became of the module."""
        return Outcome(self.seed, state, lines=self.lines, **options)


def problem(got: Any, want: Any) -> str:
    """Return how a result differs from eager's; it begins with ``values`` if only numbers do."""
    mine, my_spec = tree_flatten(got)
    theirs, their_spec = tree_flatten(want)
    if my_spec != their_spec or list(map(type, mine)) != list(map(type, theirs)):
        return f"containers: {my_spec} instead of {their_spec}"
    found = ""
    for place, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        if not isinstance(other, Tensor):
            if one != other:
                return f"result {place}: {one} instead of {other}"
            continue
        for what in ("dtype", "shape", "requires_grad"):
            if getattr(one, what) != getattr(other, what):
                return f"result {place}: {what} {getattr(one, what)}, not {getattr(other, what)}"
        if one.stride() != other.stride():
            return f"result {place}: strides {one.stride()}, not {other.stride()}"
        try:
            with aoti_eager.config.scope(mode="off"):
                torch.testing.assert_close(one, other, equal_nan=True)
        except AssertionError as error:
            found = found or f"values of result {place}: {error}"
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def check(seeds: Sequence[int]) -> list[Outcome]:
    """Return what becomes of the modules of these seeds, fused side by side."""
    outcomes, cases = [], []
    with torch.no_grad():
        for case in map(_Case, seeds):
            stopped = _recorded_alone(case)
            if stopped is None:
                cases.append(case)
            else:
                outcomes.append(stopped)
        if cases:
            outcomes += _fused(cases)
    return outcomes


def _recorded_alone(case: _Case) -> Outcome | None:
    """Return what becomes of a module that stops when it is recorded."""
    with fuse(case.module, dry_run=True) as report:
        wrong = case.problem(case.module(*case.given[0]), 0)
        (region,) = report.regions
    if wrong:
        return case.outcome("wrong", message=f"recorded: {wrong}")
    if region.state == "stopped":
        return case.outcome("stopped", reason=region.reason, message=region.message)
    return None


def _fused(cases: Sequence[_Case]) -> list[Outcome]:
    model = SideBySide([one.module for one in cases])
    wrong: dict[int, str] = {}
    rounded: set[int] = set()
    with fuse(model) as report:
        for which in (0, 0, 0, 1, 1, 0, 1):
            results = model(*[one.given[which] for one in cases])
            aoti_eager.wait()
            for case, got in zip(cases, results, strict=True):
                found = case.problem(got, which)
                if found.startswith("values") and _is_rounding(report, cases, which):
                    rounded.add(case.seed)
                elif found:
                    wrong.setdefault(case.seed, found)
        regions = {one.path: one for one in report.regions}
    outcomes = []
    for number, case in enumerate(cases):
        region = regions.get(f"parts.{number}", regions[""])
        state, message = region.state, region.message
        if case.seed in wrong:
            state, message = "wrong", wrong[case.seed]
        reason = region.reason or ("" if state == "served" else f"(still {state})")
        options = {"reason": reason, "message": message, "rounding": case.seed in rounded}
        outcomes.append(case.outcome(state, **options))
    return outcomes


def _is_rounding(report: FusionReport, cases: Sequence[_Case], which: int) -> bool:
    """Return whether the package's own comparison finds the libraries as good as eager."""
    given = [tensor for one in cases for tensor in one.given[which]]
    for region in report._fusion.regions:
        number = region.path.rpartition(".")[2]
        tensors = cases[int(number)].given[which] if number else given
        for variant in region.variants:
            inputs = variant.inputs(tensors)
            if inputs is None or not variant.kernel.is_serving:
                continue
            expected = _fresh(cases, which, number)
            variant.kernel.offer(inputs, expected)
            if not variant.kernel.is_serving or not _are_of_tape(variant, inputs, expected):
                return False
    return True


def _are_of_tape(variant: Variant, inputs: list[Tensor], expected: list[Tensor]) -> bool:
    """Return whether a module's results are those of its tape.

    The comparison above asks whether a library is as close as eager to the tape in double
    precision, which each library is whose module computes something else.
    """
    for one, other in zip(variant.kernel.tape.replay(inputs), expected, strict=True):
        try:
            torch.testing.assert_close(one, other, equal_nan=True)
        except AssertionError:
            return False
    return True


def _fresh(cases: Sequence[_Case], which: int, number: str) -> list[Tensor]:
    """Return the tensors that eager makes in a region's call, in the order of the results."""
    if number:
        given, want = cases[int(number)].given[which], cases[int(number)].want[which]
    else:
        given = [tensor for one in cases for tensor in one.given[which]]
        want = tuple([one.want[which] for one in cases])
    known = {id(one) for one in given}
    leaves = [one for one in tree_flatten(want)[0] if isinstance(one, Tensor)]
    return list({id(one): one for one in leaves if id(one) not in known}.values())
