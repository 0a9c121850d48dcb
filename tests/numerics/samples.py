"""Everything else that the compiler has code of its own for, on samples of the operator database.

Data movement, pooling, upsampling, and whatever is in no other family. A sample's call is compared
as it is, and then with its floating-point tensors filled with families of hard data: the same
kernel takes them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from aoti_eager._base.op_names import find_overload

from . import op_db_calls, sample_calls, samples_ops
from .families import Options
from .hard_calls import (
    BITS,
    EQUAL,
    RULE,
    Draw,
    HardCall,
    Outcome,
    run,
)
from .laboratory import DeclinedError, Laboratory, RefusedError
from .parts import Part

# The families that say something about a call that is not about rows.
_FAMILIES = (
    *("normal", "wide", "offset 10000", "growing", "denormal", "ties", "negative zeros"),
    *("over the square's limit", "nan middle", "inf last", "-inf first", "-0.0 middle"),
)


class Samples:
    """Compares overloads on the calls of ``op_db_calls``; a part is one overload and dtype."""

    name = "samples"

    def ops(self) -> frozenset[str]:
        """Return the overloads that are in no other family and on no list of reasons."""
        return frozenset(f"aten::{name}" for name in samples_ops.OPS)

    def parts(self, options: Options) -> list[Part]:
        """Return one part for each overload and dtype."""
        return [
            Part(op, dtype, options.target, self.name, coverage="samples")
            for op in sorted(self.ops())
            for dtype in options.dtypes
        ]

    def run(self, part: Part, laboratory: Laboratory) -> dict[str, Any]:
        """Return ``reference`` and ``measures`` of a part.

        Raises:
            DeclinedError: The package declines every call.
            RefusedError: Eager refuses every call, or no sample reaches the overload.
        """
        outcome = Outcome()
        for call in calls(part.op, part.dtype, laboratory.directory):
            run(laboratory.kernels, call, getattr(torch, part.dtype), outcome)
        if not outcome.calls:
            if outcome.declined:
                raise DeclinedError(", ".join(sorted(outcome.declined)))
            raise RefusedError("; ".join(sorted(outcome.refused)) or "no sample reaches it")
        return {
            "reference": "+".join(sorted(outcome.references)),
            "measures": outcome.verdict.measures(),
            "declined_calls": outcome.declined,
            "refused_calls": outcome.refused,
            "failing": outcome.failing,
        }


def calls(op: str, dtype: str, directory: Path) -> Iterator[HardCall]:
    """Return the calls of an overload on a dtype: samples, and the reviewed ones of our own."""
    wanted: torch.dtype = getattr(torch, dtype)
    own = sample_calls.calls().get(op.removeprefix("aten::"), ())
    found = [op_db_calls.converted(*one, torch.float32, wanted) for one in own]
    found += op_db_calls.load(directory, dtype).get(op, ())
    for number, given in enumerate(found):
        args, kwargs = with_lists(op, *given)
        yield HardCall(
            op,
            f"call {number}",
            _filled(args, kwargs, ordered=_name(op) in samples_ops.ORDERED),
            _how(op),
            only=_FAMILIES if _has_floats(args, kwargs) else _FAMILIES[:1],
            as_it_is=(args, kwargs),
        )


def with_lists(
    op: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return a call's arguments with lists for single numbers, as the dispatcher hands them on."""
    schema = find_overload(op)._schema
    by_name = {argument.name: argument for argument in schema.arguments}

    def listed(argument: Any, value: Any) -> Any:
        kind = str(argument.type).removeprefix("Optional[")
        is_list = kind.startswith(("List[int]", "List[float]", "List[SymInt]"))
        is_number = isinstance(value, int | float)
        return [value] * (argument.N or 1) if is_list and is_number else value

    return (
        [listed(one, value) for one, value in zip(schema.arguments, args, strict=False)],
        {name: listed(by_name[name], value) for name, value in kwargs.items()},
    )


def _how(op: str) -> str:
    if _name(op) in samples_ops.MOVEMENT:
        return BITS
    return EQUAL if _name(op) in samples_ops.SELECTION else RULE


def _name(op: str) -> str:
    return op.removeprefix("aten::").partition(".")[0]


def _has_floats(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    leaves = pytree.tree_leaves((args, kwargs))
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)


def _filled(args: Sequence[Any], kwargs: Mapping[str, Any], *, ordered: bool = False) -> Any:
    """Return the function from a draw to the call with other numbers in its tensors.

    ``ordered`` is whether the op takes sorted ones only.
    """

    def arguments(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
        count = 0

        def fill(tensor: Tensor) -> Tensor:
            nonlocal count
            count += 1
            if not tensor.is_floating_point():
                return tensor
            own = Draw(draw.family, tensor.dtype, draw.seed)
            if not tensor.numel():
                return tensor
            # The memory under it is filled: an expanded tensor stays one.
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            extent = sum((n - 1) * step for n, step in steps) + 1
            numbers = own.rows(extent, count=2, nth=count)[1]
            if ordered:
                numbers = numbers.sort().values
            return numbers.as_strided(tensor.shape, tensor.stride())

        made: tuple[list[Any], dict[str, Any]] = pytree.tree_map_only(
            Tensor, fill, (list(args), dict(kwargs))
        )
        return made

    return arguments
