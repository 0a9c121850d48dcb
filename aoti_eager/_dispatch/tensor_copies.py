"""Copies of tensors on storages of their own, with the same sizes and strides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._keys.call_template import CallTemplate


def copy_tensor(tensor: Tensor) -> Tensor:
    """Return a copy with the same sizes and strides on a storage of its own.

    The whole range of memory is copied, so an expanded or overlapping tensor stays one.
    """
    extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    if tensor.numel() == 0:
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
    plain = tensor.detach()
    flat = plain.as_strided((extent,), (1,), plain.storage_offset()).clone()
    return flat.as_strided(tensor.shape, tensor.stride())


def copy_mutated(template: CallTemplate, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return ``inputs`` with a copy in place of each one that the op writes to."""
    return [
        copy_tensor(tensor) if slot.mutated else tensor
        for slot, tensor in zip(template.slots, inputs, strict=True)
    ]
