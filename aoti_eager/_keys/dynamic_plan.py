"""The plan of a dynamic specialisation: which sizes and numbers its kernel leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._base.data_class import dataclass
from .guards import Guards
from .kernel_key import KernelKey
from .pattern import (
    Family,
    number_arguments,
    number_range,
    with_values,
)

# The range of an open size or stride, as wide as possible: sizes of 0 and 1 are never symbols.
_ANY_SIZE = (2, 1 << 62)


@dataclass(frozen=True, slots=True)
class Plan:
    """A dynamic specialisation that is to be compiled.

    Attributes:
        family: The digest of the calls' family.
        dims: Slot and dimension of each size that is to be a symbol.
        numbers: Number arguments that are to be inputs of the kernel.
        pattern: The key with these symbols; the compiler may leave some of them out.
        guards: The symbols' ranges that are asked for.
    """

    family: str
    dims: tuple[tuple[int, int], ...]
    numbers: tuple[str, ...]
    pattern: KernelKey
    guards: Guards

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, for a compile worker and for the kept queue."""
        return {
            "dims": [list(place) for place in self.dims],
            "numbers": list(self.numbers),
            "pattern": self.pattern.to_json(),
            "guards": self.guards.to_json(),
            "family": self.family,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """Return the plan that ``to_json`` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: ``values`` are no plan.
        """
        return cls(
            str(values["family"]),
            tuple((int(slot), int(dim)) for slot, dim in values["dims"]),
            tuple(map(str, values["numbers"])),
            KernelKey.from_json(values["pattern"]),
            Guards.from_json(values["guards"]),
        )


def plan_of(digest: str, family: Family, names: set[str]) -> Plan:
    """Return the plan for a family in which the symbols ``names`` are open.

    If a stride is open, all sizes of its slot are open, too.
    """
    slots = {family.places[name][0] for name in names if name.startswith("t")}
    dims = tuple(
        sorted(
            place
            for name, place in family.places.items()
            if name.startswith("s") and (name in names or place[0] in slots)
        )
    )
    free = {
        name
        for name, place in family.places.items()
        if place in dims or (name.startswith("t") and any(place[0] == slot for slot, _ in dims))
    }
    free |= {name for name in names if name.startswith("v")}
    fixed = {name: value for name, value in family.values.items() if name not in free}
    pattern = with_values(family.pattern, fixed)
    ranges = {
        name: (number_range(family.values[name]) or _ANY_SIZE)
        if name.startswith("v")
        else _ANY_SIZE
        for name in sorted(free)
    }
    return Plan(digest, dims, number_arguments(pattern), pattern, Guards(ranges))
