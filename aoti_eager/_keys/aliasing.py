"""Which tensors share memory: overlaps of arguments, shared storage of results. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .._base.torch_compat.tensors import DisableTorchFunctionSubclass


def memory_range(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte address that ``tensor`` touches, and the address past its last.

    Strides are never negative in PyTorch. An empty tensor gives ``(0, 0)``, which overlaps nothing.
    """
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    last = 0
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if size == 0:
            return 0, 0
        last += (size - 1) * stride
    return start, start + (last + 1) * tensor.element_size()


def mutation_overlaps(mutated: Sequence[Tensor], others: Sequence[object]) -> bool:
    """Return whether an address range of ``mutated`` overlaps another tensor's.

    Ranges are compared, not elements: two interleaved views of one storage count as overlapping.
    Such a call loses its kernel, and its result stays right. Storages are not compared, because two
    storages can share memory (``torch.from_numpy`` twice on one array). Entries of ``others`` that
    are no tensors are skipped.
    """
    with DisableTorchFunctionSubclass():
        return _ranges_meet(mutated, others)


def _ranges_meet(mutated: Sequence[Tensor], others: Sequence[object]) -> bool:
    seen: list[tuple[int, int]] = []
    for tensor in mutated:
        if not isinstance(tensor, Tensor):
            continue
        start, end = memory_range(tensor)
        for other_start, other_end in seen:
            if start < other_end and other_start < end:
                return True
        seen.append((start, end))
    for other in others:
        if not isinstance(other, Tensor):
            continue
        start, end = memory_range(other)
        for other_start, other_end in seen:
            if start < other_end and other_start < end:
                return True
    return False


def overlaps_itself(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether two indices of a tensor may have one address (as in an expanded tensor).

    The test is the usual one: with dimensions sorted by stride, each must step past all smaller
    ones. A tensor that fails the test without an overlap is only declined without need.
    """
    extent = 1
    dims = sorted((stride, size) for size, stride in zip(sizes, strides, strict=True) if size > 1)
    if any(size == 0 for size in sizes):
        return False
    for stride, size in dims:
        if stride < extent:
            return True
        extent = stride * (size - 1) + extent
    return False


def storage_key(tensor: Tensor) -> tuple[torch.device, int] | None:
    """Return a key that tensors on one storage share, or ``None`` for an empty storage."""
    storage = tensor.untyped_storage()
    return None if storage.nbytes() == 0 else (tensor.device, storage.data_ptr())


def shares_storage(tensors: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Return whether any of ``tensors`` shares its storage with any of ``others``."""
    keys = {storage_key(tensor) for tensor in tensors} - {None}
    return any(storage_key(other) in keys for other in others)
