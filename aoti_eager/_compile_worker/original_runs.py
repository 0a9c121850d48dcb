"""The original kernel of a call, run on made-up arguments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._dispatch.reference import Reference
from .._dispatch.tensor_copies import copy_tensor
from .._keys.call_template import CallTemplate, Output, fresh_results


@dataclass(frozen=True, slots=True)
class Original:
    """The original kernel of a call, run on made-up arguments.

    Attributes:
        template: The call.
        op: The op that is called.
        outputs: Where the call's results come from; see ``Entry.outputs``.
        is_function: Whether the op is a function of the user's.
        is_tape: Whether the op replays a tape, which writes to none of its inputs.
    """

    template: CallTemplate
    op: Any
    outputs: Sequence[Output]
    is_function: bool = False
    is_tape: bool = False

    def results(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the original's results; ``None`` where the original refuses the arguments."""
        try:
            result = self.template.call(self.op, inputs, as_number=lambda number: number.item())
        except Exception:  # noqa: BLE001 - the original refuses the data
            return None
        return fresh_results(self.outputs, result, len(self.template.schema.returns))

    def reference(self, inputs: Sequence[Tensor]) -> Reference:
        """Return the reference of a run; the inputs stay as they are while it is in use."""
        return Reference(
            self.template,
            lambda: inputs if self.is_tape else [copy_tensor(tensor) for tensor in inputs],
            self.op,
            self.outputs,
            default_dtype=torch.float64,
            is_tape=self.is_tape,
        )

    def mixes(self, inputs: Sequence[Tensor]) -> bool:
        """Return whether an element of a result depends on many of an argument's.

        ``inputs`` are ordinary; a NaN in one element of an argument shows which results depend on
        that element.
        """
        before = self._all_results(inputs)
        if before is None:
            return False
        shape = _broadcast([tuple(one.shape) for one in inputs])
        if any(tuple(one.shape) != shape for one in before):
            return True
        for i, given in enumerate(inputs):
            if self.template.slots[i].number_kind or not given.is_floating_point():
                continue
            if not given.numel():
                continue
            poked = list(inputs)
            poked[i] = copy_tensor(given)
            poked[i][tuple(n // 2 for n in given.shape)] = float("nan")
            places = int(poked[i].isnan().sum())
            after = self._all_results(poked)
            if after is None:
                continue
            for old, new in zip(before, after, strict=True):
                changed = ~((old == new) | ((old != old) & (new != new)))
                if int(changed.sum()) > places * max(1, old.numel() // given.numel()):
                    return True
        return False

    def _all_results(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        given = [copy_tensor(one) for one in inputs]
        results = self.results(given)
        if results is None:
            return None
        return results + [
            one for one, slot in zip(given, self.template.slots, strict=True) if slot.mutated
        ]


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the broadcast sizes of shapes; torch's own function for that imports sympy."""
    sizes: list[int] = []
    for places in itertools.zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        others = {size for size in places if size != 1}
        if len(others) > 1:
            return None
        sizes.append(others.pop() if others else 1)
    return tuple(reversed(sizes))
