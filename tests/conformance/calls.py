"""The calls of a unit: an entry's samples by its function, in place, with out=, and its errors."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .samples import (
    LAYOUTS,
    SAME_SIZES,
    TRIED,
    Arguments,
    arguments_of,
    copies,
    in_layout,
    is_plain,
)

# More samples than this are not counted one by one.
COUNTED = 1000
# Layouts in which an entry is also called in place, and with out=.
IN_PLACE_LAYOUTS = frozenset({"non-contiguous", "expanded", "offset", "large"})
OUT_LAYOUTS = frozenset({"transposed", "empty", "large"})


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an entry.

    Attributes:
        label: What it is, to be read.
        run: Makes the call with such arguments.
        arguments: Of which copies are given to ``run``.
        rolled: Whether the copies' data is moved on by one element: the same key, other data.
    """

    label: str
    run: Callable[[Arguments], Any]
    arguments: Arguments
    rolled: bool = False

    def copied(self) -> Arguments:
        """Return arguments for one run."""
        return copies(self.arguments, rolled=self.rolled)


def calls_of(
    entry: Any, dtype: torch.dtype, part: str, count: int, left_out: Counter[str]
) -> Iterator[Call]:
    """Give the calls of a part; ``left_out`` counts what is not among them, by the reason.

    Args:
        entry: Of ``op_db`` or a foreach database.
        dtype: The samples' dtype.
        part: One of ``records.PARTS``.
        count: Samples that are called.
        left_out: Counted up as calls are given.
    """
    if part == "samples":
        yield from _of_samples(entry, dtype, count, left_out)
        if dtype is torch.float32:  # An entry's error inputs are of one dtype.
            yield from _of_errors(entry)
    elif part == "layouts":
        yield from _of_layouts(entry, dtype, left_out)
    else:
        yield from _of_gradients(entry, dtype, count, left_out)


def _of_samples(
    entry: Any, dtype: torch.dtype, count: int, left_out: Counter[str]
) -> Iterator[Call]:
    every = iter(entry.sample_inputs("cpu", dtype, requires_grad=False))
    for i, sample in enumerate(itertools.islice(every, count)):
        arguments = arguments_of(sample)
        yield from _repeated(f"sample {i}", lambda a: function(entry, a), arguments)
        if entry.inplace_variant is not None:
            yield from _twice(f"sample {i} in place", lambda a: in_place(entry, a), arguments)
        outs = _outs(entry, arguments)
        if outs is None:
            continue
        with_out = arguments.with_out(outs)
        yield from _twice(f"sample {i} out=", lambda a: into_out(entry, a), with_out)
        if i == 0:
            for what, other in _odd_outs(with_out):
                yield Call(f"sample {i} {what}", lambda a: into_out(entry, a), other)
    more = sum(1 for _ in itertools.islice(every, COUNTED))
    if more:
        left_out["samples beyond the bound"] += more


def _of_errors(entry: Any) -> Iterator[Call]:
    if entry.error_inputs_func is None:
        return
    for i, error in enumerate(entry.error_inputs("cpu")):
        sample = getattr(error, "sample_input", error)
        yield Call(f"error {i}", lambda a: function(entry, a), arguments_of(sample))


def _of_layouts(entry: Any, dtype: torch.dtype, left_out: Counter[str]) -> Iterator[Call]:
    every = entry.sample_inputs("cpu", dtype, requires_grad=False)
    samples = [arguments_of(sample) for sample in itertools.islice(every, TRIED)]
    for layout in LAYOUTS:
        arguments, why = in_layout(samples, layout, lambda a: function(entry, a))
        if arguments is None:
            left_out[why] += 1
            continue
        yield from _twice(layout, lambda a: function(entry, a), arguments, other_data=True)
        if entry.inplace_variant is not None and layout in IN_PLACE_LAYOUTS:
            yield from _twice(f"{layout} in place", lambda a: in_place(entry, a), arguments)
        outs = _outs(entry, arguments) if layout in OUT_LAYOUTS else None
        if outs is not None:
            change = SAME_SIZES.get(layout, lambda tensor: tensor)
            with_out = arguments.with_out(pytree.tree_map_only(Tensor, change, outs))
            yield from _twice(f"{layout} out=", lambda a: into_out(entry, a), with_out)


def _of_gradients(
    entry: Any, dtype: torch.dtype, count: int, left_out: Counter[str]
) -> Iterator[Call]:
    if not entry.supports_autograd or not (dtype.is_floating_point or dtype.is_complex):
        return
    every = iter(entry.sample_inputs("cpu", dtype, requires_grad=True))
    for i, sample in enumerate(itertools.islice(every, count)):
        arguments = arguments_of(sample)
        if not any(t.requires_grad for t in arguments.tensors):
            left_out["gradients: a sample requires none"] += 1
            continue
        seeds: dict[Any, Tensor] = {}
        yield from _repeated(
            f"gradient {i}", lambda a, s=seeds: gradient(entry, a, function, s), arguments
        )
        if entry.inplace_variant is not None and entry.supports_inplace_autograd:
            yield from _twice(
                f"gradient {i} in place",
                lambda a, s=seeds: gradient(entry, a, cloned, s),
                arguments,
            )
    more = sum(1 for _ in itertools.islice(every, COUNTED))
    if more:
        left_out["samples beyond the bound"] += more


def _repeated(label: str, run: Callable[[Arguments], Any], arguments: Arguments) -> Iterator[Call]:
    yield Call(f"{label} miss", run, arguments)
    yield Call(f"{label} hit", run, arguments)
    yield Call(f"{label} other data", run, arguments, rolled=True)


def _twice(
    label: str,
    run: Callable[[Arguments], Any],
    arguments: Arguments,
    *,
    other_data: bool = False,
) -> Iterator[Call]:
    yield Call(f"{label} miss", run, arguments)
    yield Call(f"{label} hit", run, arguments, rolled=other_data)


# --- the ways to call an entry -------------------------------------------------------------------


def function(entry: Any, a: Arguments) -> Any:
    """Return what the entry's function returns."""
    return entry(a.input, *a.args, **a.kwargs)


def in_place(entry: Any, a: Arguments) -> Any:
    """Return what the entry's in-place variant returns."""
    return entry.inplace_variant(a.input, *a.args, **a.kwargs)


def cloned(entry: Any, a: Arguments) -> Any:
    """Return what the in-place variant returns on clones of the input, which may be a leaf."""
    clones = pytree.tree_map_only(Tensor, torch.clone, a.input)
    result = entry.inplace_variant(clones, *a.args, **a.kwargs)
    return clones if result is None else result


def into_out(entry: Any, a: Arguments) -> Any:
    """Return what the entry's function returns that writes to ``a.out``."""
    if is_foreach(entry):  # Python's binding of these has no out=.
        return getattr(torch.ops.aten, entry.name)(a.input, *a.args, **a.kwargs, out=a.out)
    return entry(a.input, *a.args, **a.kwargs, out=a.out)


def is_foreach(entry: Any) -> bool:
    """Return whether the entry is of a foreach database."""
    return str(entry.name).startswith("_foreach_")


def gradient(
    entry: Any,
    a: Arguments,
    forward: Callable[[Any, Arguments], Any],
    seeds: dict[Any, Tensor],
) -> Any:
    """Return the result and the gradients of every argument that requires one.

    ``seeds`` keeps the gradients of the results, so that a later run has the same.
    """
    leaves = [t for t in a.tensors if t.requires_grad]
    result = forward(entry, a)
    results = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
    if not results:
        return result
    given = [_seed(seeds, t) for t in results]
    return result, torch.autograd.grad(results, leaves, given, allow_unused=True)


def _seed(seeds: dict[Any, Tensor], result: Tensor) -> Tensor:
    key = (result.shape, result.dtype)
    if key not in seeds:
        values = [(i % 7 - 3) / 4 for i in range(result.numel())]
        seeds[key] = torch.tensor(values, dtype=result.dtype).view(result.shape)
    return seeds[key]


# --- out= ----------------------------------------------------------------------------------------


def _outs(entry: Any, arguments: Arguments) -> Any:
    """Return tensors that out= takes for these arguments, or ``None`` where there is none."""
    if not (entry.supports_out or is_foreach(entry)):
        return None
    try:
        result = function(entry, copies(arguments))
    except Exception:  # noqa: BLE001 - the original refuses the sample, with out= as well
        return None
    leaves = pytree.tree_leaves(result)
    if not leaves or not all(isinstance(t, Tensor) and is_plain(t) for t in leaves):
        return None
    outs = [_filled(t) for t in leaves]
    if is_foreach(entry):
        return outs
    return outs[0] if isinstance(result, Tensor) else tuple(outs)


def _filled(result: Tensor) -> Tensor:
    out = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype)
    return out.fill_(1)


def _odd_outs(arguments: Arguments) -> Iterator[tuple[str, Arguments]]:
    """Give arguments whose out= is of another size, layout or dtype than the result."""
    for what, change in (
        ("out= of no elements", lambda t: t.new_empty(0)),
        ("out= too large", lambda t: t.new_ones((*t.shape, 2))),
        ("out= non-contiguous", SAME_SIZES["non-contiguous"]),
        ("out= of integers", lambda t: torch.ones(t.shape, dtype=torch.int16)),
    ):
        yield what, arguments.with_out(pytree.tree_map_only(Tensor, change, arguments.out))
