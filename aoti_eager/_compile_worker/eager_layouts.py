"""How eager lays out the results of a tape: found by a run on zeros. Worker only.

A trace does not say: its formulas for metadata leave the strides of dimensions of size one, and of
some ops' results, to chance. What decides in eager is metadata alone, so zeros give the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._functions.rebuilt import RebuiltTape
from .._keys.call_template import CallTemplate, TensorSlot, slot_dtype

# Strides and storage offset of each result.
Layouts = Sequence[tuple[tuple[int, ...], int]]


def eager_layouts(tape: RebuiltTape, template: CallTemplate) -> Layouts | None:
    """Return the layouts of a tape's results; ``None`` if an op refuses zeros."""
    try:
        with torch.no_grad():
            results = template.call(
                tape.with_constants_for_good([]), [_zeros(slot) for slot in template.slots]
            )
    except Exception:  # noqa: BLE001 - an op refuses zeros: the trial finds other layouts, too
        return None
    return [(one.stride(), one.storage_offset()) for one in results]


def _zeros(slot: TensorSlot) -> Tensor:
    sizes, strides = slot.component["sizes"], slot.component["strides"]
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    count = 0 if 0 in sizes else last + 1
    return torch.zeros(count, dtype=slot_dtype(slot)).as_strided(sizes, strides)
