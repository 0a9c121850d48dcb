"""How many static kernels the calls with the same ranks and dtypes have, here and in the store.

Where a dynamic kernel cannot be had, sizes go on changing, and each would be compiled for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ._backend import Backend
from ._entry import Status
from ._key import ANY_THREADS, KernelKey
from ._pattern import Family, family_of
from ._schema import OpSchema
from ._size_arguments import size_arguments

# A group has no more of them once it was refused a dynamic kernel.
MOST_STATIC = 4
# Of an op, and so many of its entries are read to count them: some milliseconds, in one miss.
_MOST_COUNTED = 64


@dataclass(slots=True)
class Group:
    """Calls with the same ranks and dtypes.

    Attributes:
        static: Digests of keys that have a static kernel, or are to have one.
        is_refused: Whether they can have no dynamic one, or no more of them.
    """

    static: set[str] = field(default_factory=set)
    is_refused: bool = False

    def add(self, key: KernelKey) -> None:
        """Count a key that has a static kernel, or is to have one."""
        if not self.is_full_for(key) and len(self.static) < _MOST_COUNTED:
            self.static.add(_static_digest(key))

    def is_full_for(self, key: KernelKey) -> bool:
        """Return whether a key of this group is to have no kernel of its own."""
        is_many = self.is_refused and len(self.static) >= MOST_STATIC
        return is_many and _static_digest(key) not in self.static


class RankGroups:
    """The groups of one op in one table; its owner sees to threads."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._stored: dict[str, Group] | None = None

    def of(self, key: KernelKey, family: Family) -> Group:
        """Return the group of a call and its family."""
        return self._groups.setdefault(_digest(key, family), Group())

    def refuse(self, schema: OpSchema, key: KernelKey, family: Family, backend: Backend) -> None:
        """Note that a call's group can have no dynamic kernel; what is stored counts from now on.

        Raises:
            StoreError: The store cannot be read.
        """
        group = self.of(key, family)
        if group.is_refused:
            return
        if self._stored is None:
            self._stored = _stored(schema, key.op, backend)
        group.is_refused = True
        group.static |= self._stored.get(_digest(key, family), group).static

    def forget(self) -> None:
        """Let go of all groups; they are found out again."""
        self._groups.clear()


def _stored(schema: OpSchema, op: str, backend: Backend) -> dict[str, Group]:
    found: dict[str, Group] = {}
    static = backend.store.find_all(op, backend.environment, backend.features, dynamic=False)
    for one in islice(static, _MOST_COUNTED):
        if one.entry.status is Status.READY:
            key = one.entry.key
            found.setdefault(_digest(key, family_of(schema, key)), Group()).add(key)
    return found


def _static_digest(key: KernelKey) -> str:
    return key.with_threads(ANY_THREADS).digest


def _digest(key: KernelKey, family: Family) -> str:
    """Return a digest of all of ``key`` but the values of its sizes and strides, and threads."""
    repeated = size_arguments(family.pattern.arguments)

    def without_sizes(component: Any) -> Any:
        if isinstance(component, list):
            return [without_sizes(one) for one in component]
        if isinstance(component, dict) and "sizes" in component:
            return {**component, "sizes": len(component["sizes"]), "strides": None}
        return component

    arguments = tuple(
        (name, None if name in repeated else without_sizes(one)) for name, one in key.arguments
    )
    return _static_digest(KernelKey(key.op, key.dispatch_key, arguments, key.context))
