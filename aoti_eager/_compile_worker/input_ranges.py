"""Which values a trial gives to inputs of regions and index ops, so that the original takes them.

A region may have dozens of layers. Weights with values of size one would make its numbers grow by
a power of ten in each layer, and most integers are no places in an embedding. So matrices get
smaller numbers, and for each integer input the largest number is found that the original takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._functions.tape import Tape
from .._functions.tape_call import schema_of
from .._keys.call_template import TensorSlot, slot_dtype
from .made_up_numbers import SharedNumbers

# Arguments of these names are multiplied with, and summed over.
_MATRICES = frozenset({"mat2", "batch2", "weight", "vec"})
_MULTIPLY = frozenset(
    "addmm mm bmm baddbmm addmv mv convolution _convolution linear".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class InputRanges:
    """What is known of the values that the inputs of a call may have, by slot.

    Attributes:
        scales: By how much the numbers of a slot are multiplied.
        most: The largest integer that a slot takes.
        further: Integers outside of 0 to ``most`` that a slot takes, too: negative ones that count
            from the end, a class that a loss ignores.
        is_region: Whether the call is a region's.
        shared: Ordinary numbers for large inputs of a region.
    """

    scales: Mapping[int, float] = field(default_factory=dict)
    most: Mapping[int, int] = field(default_factory=dict)
    further: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    is_region: bool = False
    shared: SharedNumbers = field(default_factory=SharedNumbers, compare=False, repr=False)


def matrix_scales(tape: Tape, slots: Sequence[TensorSlot]) -> dict[int, float]:
    """Return for each input that the tape multiplies with the scale that keeps sums of size one."""
    scales = {}
    for place in _multiplied(tape):
        sizes = slots[place].component["sizes"]
        terms = math.prod(sizes[1:])
        if len(sizes) > 1 and terms > 1:
            scales[place] = 1 / math.sqrt(terms)
    return scales


def _multiplied(tape: Tape) -> Iterator[int]:
    """Give the inputs that the tape multiplies with, also by way of views."""
    inputs: dict[tuple[int, int], int] = {}
    for number, call in enumerate(tape.calls):
        schema = schema_of(call.op)
        is_view = any(one.is_view for one in schema.returns)
        multiplies = call.op.partition("::")[2].partition(".")[0] in _MULTIPLY
        for name, source in call.sources():
            place = source.get("input", inputs.get(tuple(source.get("result", ()))))
            if place is None:
                continue
            if is_view:
                inputs.update({(number, n): place for n in range(max(1, len(schema.returns)))})
            elif multiplies and name in _MATRICES:
                yield place


def integer_ranges(
    slots: Sequence[TensorSlot],
    ordinary: Sequence[Tensor],
    accepts: Callable[[Sequence[Tensor]], bool],
    own: Sequence[float] = (),
) -> tuple[dict[int, int], dict[int, tuple[int, ...]]]:
    """Return ``most`` and ``further`` of each slot of integers where the original refuses some.

    Args:
        slots: The slots.
        ordinary: Ordinary inputs; integers are zeros and ones.
        accepts: Returns whether the original takes some inputs.
        own: The call's own numbers.
    """
    limits: dict[int, int] = {}
    further: dict[int, tuple[int, ...]] = {}
    base = list(ordinary)
    if not accepts(base):  # One is no place in a dimension of size one.
        base = [
            torch.zeros_like(given) if holds_integers(slot) else given
            for slot, given in zip(slots, ordinary, strict=True)
        ]
    for place, (slot, given) in enumerate(zip(slots, base, strict=True)):
        if not holds_integers(slot) or not given.numel():
            continue

        def takes(number: int, place: int = place, given: Tensor = given) -> bool:
            tried = list(base)
            tried[place] = torch.full_like(given, number)
            return accepts(tried)

        info = torch.iinfo(given.dtype)
        most = _most(min(info.max, 1 << 40), takes)
        if most is None:
            continue
        limits[place] = most
        whole = {int(number) for number in own if math.isfinite(number) and number == int(number)}
        others = (one for one in sorted({-1, -most - 1, *whole}) if not 0 <= one <= most)
        found = tuple(one for one in others if info.min <= one <= info.max and takes(one))
        if found:
            further[place] = found
    return limits, further


def holds_integers(slot: TensorSlot) -> bool:
    """Return whether a slot is a tensor of integers; flags are none."""
    dtype = slot_dtype(slot)
    is_integer = not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)
    return is_integer and not slot.number_kind


def _most(end: int, takes: Callable[[int], bool]) -> int | None:
    """Return the largest number below ``end`` that is taken; ``None`` if ``end`` itself is."""
    if takes(end):
        return None
    if not takes(1):
        return 0
    low, high = 1, 2
    while high < end and takes(high):
        low, high = high, 2 * high
    high = min(high, end)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return low
