"""An entry's samples, copied, and the same samples in other layouts and sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# ATen's grain: a loop over more elements than this is split among OpenMP's threads.
GRAIN = 32_768
# A layout is tried on so many of an entry's samples.
TRIED = 8
# More elements in a result than this are left out: the machine is shared.
MOST_ELEMENTS = 1 << 22

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of one call: input, positional and keyword ones, and an out= if it has one."""

    input: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any = None

    @property
    def tensors(self) -> list[Tensor]:
        """Return every tensor in order."""
        return [leaf for leaf in pytree.tree_leaves(self.tree) if isinstance(leaf, Tensor)]

    @property
    def tree(self) -> tuple[Any, ...]:
        """Return the arguments as what pytree can walk."""
        return (self.input, self.args, self.kwargs, self.out)

    def map(self, change: Change) -> Arguments:
        """Return the arguments with ``change`` applied to every tensor."""
        return Arguments(*pytree.tree_map_only(Tensor, change, self.tree))

    def with_out(self, out: Any) -> Arguments:
        """Return the arguments with ``out`` for out=."""
        return Arguments(self.input, self.args, self.kwargs, out)


def arguments_of(sample: Any) -> Arguments:
    """Return a sample's arguments, its own tensors among them."""
    return Arguments(sample.input, tuple(sample.args), dict(sample.kwargs))


def copies(arguments: Arguments, *, rolled: bool = False) -> Arguments:
    """Return the arguments with copies of their tensors and of the storages under them.

    Tensors on one storage stay on one. ``rolled`` moves a storage's elements on by one.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def copied(tensor: Tensor) -> Tensor:
        if not is_plain(tensor):
            return tensor.detach().clone().requires_grad_(tensor.requires_grad)
        old = tensor.untyped_storage()
        new = storages.get(old._cdata)
        if new is None:
            new = storages[old._cdata] = old.clone()
            if rolled:
                flat = torch.empty(0, dtype=tensor.dtype).set_(new)
                flat.copy_(flat.roll(1))
        copy = torch.empty(0, dtype=tensor.dtype).set_(
            new, tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        copy = copy.conj() if tensor.is_conj() else copy
        copy = torch._neg_view(copy) if tensor.is_neg() else copy
        return copy.requires_grad_(tensor.requires_grad)

    return arguments.map(copied)


def is_plain(tensor: Tensor) -> bool:
    """Return whether the tensor has strides over a storage of plain elements in memory."""
    is_strided = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return is_strided and not tensor.is_quantized and not tensor.is_nested


# --- layouts -------------------------------------------------------------------------------------


def _non_contiguous(tensor: Tensor) -> Tensor:
    wide = tensor.new_zeros((*tensor.shape, 2))
    wide[..., 0] = tensor
    return wide[..., 0]


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT if tensor.dim() >= 2 else tensor


def _expanded(tensor: Tensor) -> Tensor:
    if tensor.dim() == 0 or tensor.shape[0] < 2:
        return tensor
    return tensor[:1].contiguous().expand(tensor.shape)


def _offset(tensor: Tensor) -> Tensor:
    flat = tensor.new_zeros(tensor.numel() + 3)
    view = flat[3:].view(tensor.shape)
    view.copy_(tensor)
    return view


def _empty(tensor: Tensor) -> Tensor:
    return tensor[:0].clone() if tensor.dim() else tensor


def _one(tensor: Tensor) -> Tensor:
    for dim in range(tensor.dim()):
        tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
    return tensor.clone()


def _repeated(times: int) -> Change:
    def repeated(tensor: Tensor) -> Tensor:
        return tensor.repeat(times, *[1] * (tensor.dim() - 1)) if tensor.dim() else tensor

    return repeated


# Which are the same call in another layout, and which are calls of other sizes.
SAME_SIZES: dict[str, Change] = {
    "non-contiguous": _non_contiguous,
    "transposed": _transposed,
    "expanded": _expanded,
    "offset": _offset,
}
OTHER_SIZES: dict[str, Change] = {"empty": _empty, "size 1": _one}
LAYOUTS = (*SAME_SIZES, *OTHER_SIZES, "large")


def in_layout(
    samples: list[Arguments], layout: str, call: Callable[[Arguments], Any]
) -> tuple[Arguments | None, str]:
    """Return a sample in a layout of ``LAYOUTS``, or ``None`` and why there is none.

    The first sample that the original takes in that layout; if it takes none, the first that it
    refuses, because the exception must be the original's too.

    Args:
        samples: The entry's samples.
        layout: One of ``LAYOUTS``.
        call: Runs the original; called on copies.
    """
    refused = None
    why = f"{layout}: no sample can have it"
    for sample in samples[:TRIED]:
        for changed in _candidates(sample, layout, call):
            if changed is None:
                why = f"{layout}: the result grows faster than the input"
                continue
            try:
                call(copies(changed))
            except Exception:  # noqa: BLE001 - whatever the original raises says that it refuses
                refused = refused or changed
                continue
            return changed, ""
    return refused, why


def _candidates(
    sample: Arguments, layout: str, call: Callable[[Arguments], Any]
) -> Iterator[Arguments | None]:
    if layout in SAME_SIZES:
        yield from _changed(sample, SAME_SIZES[layout], every=True)
    elif layout in OTHER_SIZES:
        for every in (True, False):
            yield from _changed(sample, OTHER_SIZES[layout], every=every)
    else:
        first = next((t for t in sample.tensors if t.dim() and t.numel()), None)
        if first is None:
            return
        times = GRAIN // first.numel() + 1
        for every in (True, False):
            if _grows(sample, every, call):
                yield None
            else:
                yield from _changed(sample, _repeated(times), every=every)


def _changed(sample: Arguments, change: Change, *, every: bool) -> Iterator[Arguments]:
    """Give the sample with ``change`` in all plain tensors, or in those of the first argument."""

    def changed(tensor: Tensor) -> Tensor:
        if not is_plain(tensor):
            return tensor
        return change(tensor.detach().resolve_conj().resolve_neg())

    if every:
        other = sample.map(changed)
    else:
        mapped = Arguments(sample.input, (), {}).map(changed)
        other = Arguments(mapped.input, sample.args, sample.kwargs)
    before, after = sample.tensors, other.tensors
    if any(_layout(a) != _layout(b) for a, b in zip(before, after, strict=True)):
        yield other


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    if not is_plain(tensor):
        return ()
    return (tensor.shape, tensor.stride(), tensor.storage_offset())


def _grows(sample: Arguments, every: bool, call: Callable[[Arguments], Any]) -> bool:
    """Return whether the results of a large sample would be too large."""
    numbers = []
    for times in (2, 8):
        for changed in _changed(sample, _repeated(times), every=every):
            try:
                result = call(copies(changed))
            except Exception:  # noqa: BLE001 - it may take the large one all the same
                return False
            tensors = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
            numbers.append(sum(t.numel() for t in tensors if is_plain(t)))
    if len(numbers) < 2 or not numbers[0]:
        return False
    first = next((t.numel() for t in sample.tensors if t.numel()), 1)
    exponent = math.log2(max(numbers[1], 1) / numbers[0]) / 2
    return numbers[0] * (GRAIN / (2 * first)) ** exponent > MOST_ELEMENTS
