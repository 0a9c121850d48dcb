"""The laboratory's families of calls on hard data: reductions, normalisations, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from . import losses, norms, reductions
from .families import Options
from .hard_calls import HardCall, Outcome, run
from .laboratory import DeclinedError, Laboratory, RefusedError
from .parts import Part

Calls = Callable[[str], Iterator[HardCall]]
# Shares of values above this have the shapes of the brief share: a first look in minutes.
_BRIEF = 1000


class HardFamily:
    """Overloads and their calls, each on every family of hard data.

    One part is all calls of one overload on one dtype.
    """

    name: str
    _ops: Mapping[str, Calls]

    def ops(self) -> frozenset[str]:
        """Return the functional overloads that this family compares."""
        return frozenset(self._ops)

    def parts(self, options: Options) -> list[Part]:
        """Return what is to be compared under these options."""
        share = "full" if options.exhaustive else "default"
        if options.share >= _BRIEF:
            share = "brief"
        return [
            Part(
                op, dtype, options.target, self.name, span=share, coverage=f"hard families, {share}"
            )
            for op in self._ops
            for dtype in options.dtypes
            if getattr(torch, dtype) in self.dtypes(op)
        ]

    def dtypes(self, op: str) -> tuple[torch.dtype, ...]:
        """Return the dtypes that there is data for."""
        return (torch.float32, torch.bfloat16, torch.float16, torch.float64)

    def run(self, part: Part, laboratory: Laboratory) -> dict[str, Any]:
        """Return ``reference`` and ``measures`` of a part.

        Raises:
            DeclinedError: The package declines every call.
            RefusedError: Eager refuses every call.
        """
        outcome = Outcome()
        for call in self._ops[part.op](part.span):
            run(laboratory.kernels, call, getattr(torch, part.dtype), outcome)
        if not outcome.calls:
            if outcome.declined:
                raise DeclinedError(", ".join(sorted(outcome.declined)))
            raise RefusedError("; ".join(sorted(outcome.refused)) or "no calls in this share")
        return {
            "reference": "+".join(sorted(outcome.references)),
            "measures": outcome.verdict.measures(),
            "declined_calls": outcome.declined,
            "refused_calls": outcome.refused,
            "failing": outcome.failing,
        }


class Reductions(HardFamily):
    """Reductions and scans."""

    name = "reductions"
    _ops = reductions.OPS

    def dtypes(self, op: str) -> tuple[torch.dtype, ...]:
        """Return the dtypes that there is data for."""
        return reductions.dtypes(op)


class Norms(HardFamily):
    """Softmax, normalisations and their gradients."""

    name = "norms"
    _ops = norms.OPS


class Losses(HardFamily):
    """Losses, distances, and their gradients."""

    name = "losses"
    _ops = losses.OPS
