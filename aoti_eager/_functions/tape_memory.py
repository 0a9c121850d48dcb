"""Which tensors on a tape share memory, by the schemas of the ops, and which memory is constant.

A view shares the memory of what it was made from. Memory is named by its first tensor: an input's
number, or ``call.place`` of a fresh result.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from .._base.digest import Component
from .._keys.declines import UNINITIALISED
from .._keys.schema import Kind, Return
from .tape_call import TapeCall, overload_of, schema_of

# Their results share memory with their argument, although the schemas do not say so.
_UNSAID_VIEWS = frozenset({"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes"})
# They may draw random numbers, and draw none at this rate of their argument.
_DRAWS_NOTHING = {"dropout_p": 0.0}

Memory = frozenset[str]


class TapeMemory:
    """The memory of the tensors on a tape, call by call."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, int | None], Memory] = {}

    def of(self, source: Component) -> Memory:
        """Return the memory of a source; none for a number and a constant."""
        if "input" in source:
            return frozenset({f"input {source['input']}"})
        if "result" in source:
            call, place = source["result"]
            if (call, place) in self._of:
                return self._of[call, place]
            # A tensor of a list: fresh ones are apart, views share the memory of the argument.
            whole = self._of.get((call, None), frozenset())
            fresh = whole == frozenset({f"result {call}.0"})
            return frozenset({f"result {call}.0/{place}"}) if fresh else whole
        return frozenset()

    def add(self, number: int, call: TapeCall) -> list[str]:
        """Take in the next call, and return the names of its fresh results' memory."""
        touched = frozenset[str]().union(*(self.of(source) for _, source in call.sources()))
        found: list[str] = []
        for place, returned in enumerate(schema_of(call.op).returns):
            own = frozenset({f"result {number}.{place}"})
            # A view of a constant, which is what ``torch.tensor`` makes, has memory of its own.
            if touched and _is_shared(call, returned):
                own = touched
            else:
                found += own
            if returned.argument is None:
                self._of[number, None if returned.kind is Kind.TENSORS else place] = own
        return found


class ConstantMemory:
    """Which memory on a tape holds the same values in each call: no input went into it.

    A number that code takes from such memory is the same in each call, and so is what the code does
    with the number.
    """

    def __init__(self) -> None:
        self._memory = TapeMemory()
        self._varying: set[str] = set()  # names of memory, for a list of tensors one in common

    def gives_number(self, call: TapeCall) -> bool:
        """Return whether a call gives nothing but numbers that are the same in each call."""
        tensors = (Kind.TENSOR, Kind.TENSORS)
        return (
            torch.Tag.data_dependent_output in overload_of(call.op).tags
            and not any(one.kind in tensors for one in schema_of(call.op).returns)
            and self._is_constant(call)
        )

    def add(self, number: int, call: TapeCall) -> None:
        """Take in the next call."""
        is_constant = self._is_constant(call)
        fresh = self._memory.add(number, call)
        if is_constant:
            return
        self._varying.update(fresh)
        written = {one.name for one in schema_of(call.op).arguments if one.mutated}
        for name, source in call.sources():
            if name in written:
                self._varying.update(map(_whole, self._memory.of(source)))

    def _is_constant(self, call: TapeCall) -> bool:
        if re.match(UNINITIALISED, base_name(call.op)) or draws(call):
            return False
        return not any(self._varies(source) for _, source in call.sources())

    def _varies(self, source: Component) -> bool:
        memory = self._memory.of(source)
        if "result" in source and not memory:
            return True  # Nothing is known of this tensor's memory.
        return any(one.startswith("input") or _whole(one) in self._varying for one in memory)


def base_name(op: str) -> str:
    """Return an op's name without namespace and overload."""
    return op.partition("::")[2].partition(".")[0]


def is_view(call: TapeCall) -> bool:
    """Return whether the results of a call share memory with its arguments."""
    returns = schema_of(call.op).returns
    return base_name(call.op) in _UNSAID_VIEWS or any(one.is_view for one in returns)


def _is_shared(call: TapeCall, returned: Return) -> bool:
    return returned.is_view or base_name(call.op) in _UNSAID_VIEWS


def draws(call: TapeCall) -> bool:
    """Return whether a call draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in overload_of(call.op).tags:
        return False
    given = call_arguments(call)
    return not any(given.get(name) == nothing for name, nothing in _DRAWS_NOTHING.items())


def call_arguments(call: TapeCall) -> dict[str, Any]:
    """Return all arguments of a call by their names, those that equal their defaults, too."""
    schema = schema_of(call.op)
    defaults = {one.name: one.default for one in schema.arguments if one.has_default}
    return {**defaults, **dict(call.arguments)}


def _whole(memory: str) -> str:
    """Return the name that the tensors of a returned list have in common."""
    return memory.partition("/")[0]
