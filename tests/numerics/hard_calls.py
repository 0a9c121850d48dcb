"""A call on hard data: what its arguments are for each family, and what the rule says of it.

A ``HardCall`` fixes an overload and the shapes of one call; its arguments are drawn for a family
and a seed. All draws have the same metadata, so that one compiled kernel takes every family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from aoti_eager._base.op_names import find_overload
from aoti_eager._keys.schema import op_schema

from .exact_rows import Array, wide
from .hard_data import Family, families, rows
from .judge import Verdict, judge
from .kernels import DeclinedError, Kernel, Kernels
from .positions import as_in_another_order

Arguments = tuple[Sequence[Any], dict[str, Any]]
# How a result is judged: the module ``judge`` says what each means.
RULE, EQUAL, BITS = "rule", "equal", "bits"
# A region that breaks the rule is drawn anew this often, and judged on all draws together: the
# largest of a few errors is a matter of luck, on either side.
_SECOND_LOOK = 16


@dataclass(frozen=True, slots=True)
class Draw:
    """Tensors for one family and seed."""

    family: Family
    dtype: torch.dtype
    seed: int = 0

    def rows(self, n: int, *, count: int = 8, nth: int = 0) -> Tensor:
        """Return rows of the family, ``(count, n)``; others for each ``nth``."""
        return rows(self.family, n, self.dtype, count=count, seed=self.seed + 1000 * nth)

    def ordinary(self, *sizes: int, nth: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Return numbers around one, whatever the family: weights, incoming gradients."""
        generator = torch.Generator().manual_seed(self.seed + 1000 * nth + 7)
        made = torch.randn(sizes, dtype=torch.float64, generator=generator)
        return made.to(dtype or self.dtype)

    def as_family(self, name: str) -> Draw:
        """Return the draw of another family, for an argument that must be well-behaved."""
        found = next(one for one in families(self.dtype) if one.name == name)
        return Draw(found, self.dtype, self.seed)


@dataclass(frozen=True, slots=True)
class HardCall:
    """One overload, called with one set of shapes on every family.

    Attributes:
        op: ``aten::sum.dim_IntList``.
        label: The shapes in words.
        arguments: What the call takes, from a draw.
        how: ``RULE``, ``EQUAL`` or ``BITS``; for each result where it is a tuple.
        exact: The results from the call's tensors in longdouble, for float64 calls; without it the
            reference is eager itself there. Other dtypes run eager in float64.
        eager_overflows: Whether eager's own formula overflows or cancels in float64, too, so that
            ``exact`` is the reference for every dtype.
        draws: Seeds that are judged as one region: more than one where a call gives few results.
        only: Names of families; all where it is empty.
        as_it_is: Arguments that are compared first, as they are.
        any_order: Results that say nothing of the order of a row of the first tensor. Where eager's
            are NaN or infinite depends on it, they may be what eager gives for another order.
        threads: How many threads eager and the kernel have; each count has code of its own.
    """

    op: str
    label: str
    arguments: Callable[[Draw], Arguments]
    how: str | tuple[str, ...] = RULE
    exact: Callable[..., Array | tuple[Array, ...]] | None = None
    draws: int = 1
    only: tuple[str, ...] = ()
    as_it_is: Arguments | None = None
    any_order: tuple[int, ...] = ()
    threads: int = 1
    eager_overflows: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of the calls of one op and dtype.

    Attributes:
        verdict: What was compared.
        calls: How many kernels were compared.
        declined: Calls by reason for which the package keeps the original.
        refused: Calls that eager refuses.
        failing: Regions that break the rule, by family.
        references: What the exact results were computed with.
    """

    verdict: Verdict = field(default_factory=Verdict)
    calls: int = 0
    declined: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    references: set[str] = field(default_factory=set)


def run(kernels: Kernels, call: HardCall, dtype: torch.dtype, outcome: Outcome) -> None:
    """Compare one call on every family of a dtype, and add what was found to ``outcome``."""
    with _threads(call.threads):
        _run_call(kernels, call, dtype, outcome)


def _run_call(kernels: Kernels, call: HardCall, dtype: torch.dtype, outcome: Outcome) -> None:
    chosen = [one for one in families(dtype) if not call.only or one.name in call.only]
    op = find_overload(call.op)
    try:
        args, kwargs = call.as_it_is or call.arguments(Draw(chosen[0], dtype))
        op(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - eager takes no such call: there is nothing to serve
        said = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        outcome.refused[said] = outcome.refused.get(said, 0) + 1
        return
    try:
        kernel = kernels.kernel(call.op, args, kwargs)
    except DeclinedError as error:
        outcome.declined[error.reason] = outcome.declined.get(error.reason, 0) + 1
        return
    outcome.calls += 1
    outcome.references.add(_reference(call, dtype))
    if call.as_it_is is not None:
        only = [_run(kernel, call, *call.as_it_is)]
        outcome.verdict.add(_judged(call, f"{call.label}, as it is", only))
    for family in chosen:
        if call.as_it_is is not None and not _takes(call, Draw(family, dtype)):
            continue
        region = f"{call.label}, {family.name}"
        verdict = _region(kernel, call, region, family, dtype, range(call.draws))
        if not verdict.is_right and RULE in call.how and family.name not in outcome.failing:
            verdict = _region(kernel, call, region, family, dtype, range(_SECOND_LOOK))
        if not verdict.is_right:
            outcome.failing[family.name] = outcome.failing.get(family.name, 0) + 1
        outcome.verdict.add(verdict)


def _reference(call: HardCall, dtype: torch.dtype) -> str:
    if RULE not in call.how:
        return "eager"
    if dtype is torch.float64 or call.eager_overflows:
        return "eager" if call.exact is None else "longdouble"
    return "float64"


def _region(
    kernel: Kernel,
    call: HardCall,
    region: str,
    family: Family,
    dtype: torch.dtype,
    seeds: Sequence[int],
) -> Verdict:
    runs = [_run(kernel, call, *call.arguments(Draw(family, dtype, seed))) for seed in seeds]
    return _judged(call, region, runs)


def _takes(call: HardCall, draw: Draw) -> bool:
    """Return whether eager takes a sample's call with other numbers in it."""
    args, kwargs = call.arguments(draw)
    try:
        find_overload(call.op)(*args, **kwargs)
    except Exception:  # noqa: BLE001 - data that is invalid for the op
        return False
    return True


def _judged(
    call: HardCall, region: str, runs: Sequence[list[tuple[Tensor, Tensor, Any]]]
) -> Verdict:
    verdict = Verdict()
    for index, results in enumerate(zip(*runs, strict=True)):
        how = call.how if isinstance(call.how, str) else call.how[index]
        eager, compiled = (torch.cat([one[side].reshape(-1) for one in results]) for side in (0, 1))
        exact = None
        if how == RULE:
            exact = numpy.concatenate([_flat(one[2]) for one in results])
        where = region if len(runs[0]) == 1 else f"{region}, result {index}"
        shapes = {(one[0].shape, one[1].shape) for one in results if one[0].shape != one[1].shape}
        if shapes:
            verdict.metadata.append(f"{where}: sizes {shapes}")
            continue
        verdict.add(judge(where, eager, compiled, exact, signs_count=how == BITS))
    return verdict


def _run(
    kernel: Kernel, call: HardCall, args: Sequence[Any], kwargs: dict[str, Any]
) -> list[tuple[Tensor, Tensor, Any]]:
    """Return eager's result, the compiled and the exact one, for each result of the call."""
    inputs = slot_inputs(call.op, args, kwargs)
    with torch.no_grad():
        eager, compiled = kernel.eager(inputs), kernel.compiled(inputs)
        for index in call.any_order:
            eager[index] = as_in_another_order(
                kernel.eager, inputs, index, eager[index], compiled[index]
            )
        exact: Sequence[Any] = [None] * len(eager)
        if RULE in call.how:
            exact = _exact(call, args, kwargs) or eager
    return list(zip(eager, compiled, exact, strict=True))


def _exact(call: HardCall, args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_wide = any(one.dtype in (torch.float64, torch.complex128) for one in tensors)
    if is_wide or call.eager_overflows:
        if call.exact is None:
            return ()
        with numpy.errstate(all="ignore"):
            made = call.exact(*(wide(one) for one in tensors))
        return made if isinstance(made, tuple) else (made,)
    args, kwargs = in_double(args, kwargs)
    made = find_overload(call.op)(*args, **kwargs)
    return [one for one in pytree.tree_leaves(made) if isinstance(one, Tensor)]


def in_double(args: Sequence[Any], kwargs: dict[str, Any]) -> Arguments:
    """Return a call's arguments with every floating-point tensor and dtype made float64."""

    def widened(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            if leaf.is_complex():
                return leaf.to(torch.complex128)
            return leaf.double() if leaf.is_floating_point() else leaf
        if isinstance(leaf, torch.dtype) and leaf.is_floating_point:
            return torch.float64
        return leaf

    made: Arguments = pytree.tree_map(widened, (list(args), dict(kwargs)))
    return made


def slot_inputs(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return the tensors, and numbers in Tensor slots, of a call in the order kernels take them."""
    schema = op_schema(find_overload(name))
    return list(_slots(schema, schema.bind(args, kwargs)))


def _slots(schema: Any, values: Sequence[Any]) -> Iterator[Any]:
    for argument, value in zip(schema.arguments, values, strict=True):
        if argument.is_tensor and value is not None:
            listed = value if isinstance(value, list | tuple) else [value]
            yield from (one for one in listed if one is not None)


def _flat(values: Any) -> Array:
    array = values.detach().numpy() if isinstance(values, Tensor) else numpy.asarray(values)
    return array.reshape(-1)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
