"""What is checked of the values of attributes: of objects, containers and classes."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .guard_source import GuardSource
from .guarded_tensors import GuardedTensors
from .plain_values import (
    CONTAINERS,
    MOST_ITEMS,
    PLAIN,
    copied,
    is_array,
    is_fixed,
    is_large,
    items_of,
)
from .stop import Stop
from .target import (
    class_attributes,
    has_state,
    object_attributes,
    room,
    slots_of,
    user_classes,
)

# Attributes whose names no code mentions are looked at so deep: ``self.config.rope.theta``.
DEPTH = 3
# A guard compares so many values of objects and containers, beside the attributes of modules.
_MOST_VALUES = 2048

_TENSORS = (Tensor, torch.nn.Parameter)

AddModule = Callable[[str, str, torch.nn.Module], None]


class GuardedValues:
    """The values that code which ran may have read, and the checks of them.

    Args:
        guard: The lines of the function that checks the state.
        tensors: The tensors of the state.
        mentioned: Names that the code mentions which ran.
        reads_by_name: Whether the code may have read attributes whose names it does not mention.

    More than 12 methods, because containers, objects, classes and tensors lead to each other.
    """

    def __init__(
        self,
        guard: GuardSource,
        tensors: GuardedTensors,
        mentioned: frozenset[str],
        *,
        reads_by_name: bool,
    ) -> None:
        self._guard, self._tensors = guard, tensors
        self._mentioned, self._reads_by_name = mentioned, reads_by_name
        self._walked: dict[int, int] = {}  # id of an object -> depth that was left there
        self._module_classes: set[type] = set()
        self._classes: set[type] = set()  # Those whose own attributes are checked.
        self._left = _MOST_VALUES
        # Values to be looked at, by the depth that is left: path, source, value, is it mentioned.
        self._waiting: list[list[tuple[str, str, Any, bool]]] = [[] for _ in range(DEPTH + 1)]
        self._held: list[Any] = []  # Alive while ids stand for them.

    def may_read(self, name: str) -> bool:
        """Return whether code may have read an attribute of this name."""
        return self._reads_by_name or name in self._mentioned

    def add_tensor(self, path: str, source: str, tensor: Tensor) -> None:
        """Add a tensor, and what Python code has put on it; most have nothing."""
        self._tensors.add(path, source, tensor)
        for name, value in list(tensor.__dict__.items()):
            if name in self._mentioned:
                text = f"{source}.__dict__[{name!r}]"
                self.add(f"{path}.{name}", text, value)

    def add(
        self,
        path: str,
        source: str,
        value: Any,
        depth: int = DEPTH,
        *,
        is_mentioned: bool = True,
    ) -> None:
        """Add the value that ``source`` reads; ``walk`` looks at what is within."""
        if isinstance(value, PLAIN) or is_fixed(value):  # Most are; nothing within can change.
            self._add_plain(path, source, value)
        else:
            self._waiting[max(depth, 0)].append((path, source, value, is_mentioned))

    def add_item(
        self,
        path: str,
        mapping: str,
        key: str,
        value: Any,
        depth: int = DEPTH,
        *,
        is_mentioned: bool = True,
    ) -> None:
        """Add the value that a mapping has under a key; see ``add``."""
        if isinstance(value, PLAIN) or is_fixed(value):
            self._guard.check_item(path, mapping, key, value)
        else:
            self.add(path, f"{mapping}[{key!r}]", value, depth, is_mentioned=is_mentioned)

    def walk(self, add_module: AddModule) -> None:
        """Look at all values that wait, those first from which the walk may go deepest.

        Args:
            add_module: Adds the checks of a module: gets a path, a variable and the module.
        """
        while True:
            depth = next((d for d in range(DEPTH, -1, -1) if self._waiting[d]), None)
            if depth is None:
                return
            waiting, self._waiting[depth] = self._waiting[depth], []
            for path, source, value, is_mentioned in waiting:
                if isinstance(value, torch.nn.Module):
                    add_module(path, self._guard.let(source), value)
                else:
                    self._add_value(path, source, value, depth, is_mentioned=is_mentioned)

    def _add_plain(self, path: str, source: str, value: Any) -> None:
        known = self._guard.name(value)
        self._guard.check(path, f"{source} is {known} or ae_same({source}, {known})")

    def _add_value(
        self, path: str, source: str, value: Any, depth: int, *, is_mentioned: bool
    ) -> None:
        if type(value) in _TENSORS:
            self.add_tensor(path, source, value)
        elif isinstance(value, CONTAINERS) or is_array(value):
            self._add_container(path, source, value, depth, is_mentioned=is_mentioned)
        else:
            self._add_object(path, source, value, depth, is_mentioned=is_mentioned)

    def _add_container(
        self, path: str, source: str, value: Any, depth: int, *, is_mentioned: bool
    ) -> None:
        guard, is_open = self._guard, not is_large(value)
        count = 0 if is_array(value) or not is_open else len(value)
        if not is_open or not self._may_add(count, path, is_mentioned=is_mentioned):
            if is_mentioned:
                raise Stop("large_attribute", f"{path} has more than {MOST_ITEMS} items")
            length = f"ae_len({source}) == {len(value)}"
            guard.check(path, f"{source} is {guard.weak(value)} and {length}")
            return
        local = guard.let(source)
        guard.check(path, f"ae_same({local}, {guard.name(copied(value))})")
        if is_array(value):
            return
        self._add_items(path, local, value, depth, is_mentioned=is_mentioned)
        if room(type(value)) not in ("builtins", "collections") and not hasattr(value, "_fields"):
            self._add_attributes(path, local, value, depth, is_mentioned=is_mentioned)

    def _add_items(
        self, path: str, local: str, value: Any, depth: int, *, is_mentioned: bool
    ) -> None:
        """Look at the objects and tensors within a container; ``same`` compares the rest."""
        if isinstance(value, dict):
            listed: Iterable[tuple[Any, Any]] = list(dict.items(value))
        else:
            listed = enumerate(items_of(value))
        for place, (name, one) in enumerate(listed):
            if isinstance(one, PLAIN):
                continue
            is_text = type(name) in (int, str)
            shown = f"{path}[{name!r}]" if is_text else f"{path}[{name!r}, item {place}]"
            key = repr(name) if is_text else self._guard.weak(name)
            # Of a set, ``same`` has found each object there.
            is_set = isinstance(value, set | frozenset)
            source = self._guard.weak(one) if is_set else f"{local}[{key}]"
            if isinstance(one, CONTAINERS):
                self._add_items(
                    shown, self._guard.let(source), one, depth, is_mentioned=is_mentioned
                )
            else:
                self.add(shown, source, one, depth - 1, is_mentioned=is_mentioned)

    def _add_object(
        self, path: str, source: str, value: Any, depth: int, *, is_mentioned: bool
    ) -> None:
        guard = self._guard
        local = guard.let(source)
        guard.check(path, f"{local} is {guard.weak(value)}")
        if isinstance(value, type):
            if room(value) not in ("builtins", "torch"):
                self._add_class(value)
            return
        is_iterator = hasattr(type(value), "__next__")
        if is_mentioned and is_iterator and room(type(value)) in ("builtins", "itertools"):
            raise Stop("python_state", f"{path} is an iterator, and its place cannot be compared")
        if has_state(value):
            kind = guard.name(type(value))
            guard.check(f"the class of {path}", f"ae_type({local}) is {kind}")
            self._add_attributes(path, local, value, depth, is_mentioned=is_mentioned)

    def _add_attributes(
        self, path: str, local: str, value: Any, depth: int, *, is_mentioned: bool
    ) -> None:
        before = self._walked.get(id(value), -1)
        if before >= depth + is_mentioned * (DEPTH + 1):
            return
        self._walked[id(value)] = depth + is_mentioned * (DEPTH + 1)
        self._held.append(value)
        guard = self._guard
        state: Any = getattr(value, "__dict__", None)
        attributes = object_attributes(value)
        space = ""
        if isinstance(state, dict):
            space = guard.let(f"{local}.__dict__")
            absent = guard.name(self._mentioned.difference(state))
            new = f"{space}.keys().isdisjoint({absent})"
            guard.check(f"the attributes of {path}", new)
        for name in slots_of(value):
            if name in self._mentioned and name not in attributes:
                guard.check(f"{path}.{name}", f"not ae_has({local}, {name!r})")
        for name, one in attributes.items():
            is_named = name in self._mentioned or isinstance(value, functools.partial)
            if not is_named and not (self._reads_by_name and depth > 0):
                continue
            inner = f"{path}.{name}"
            if self._may_add(1, inner, is_mentioned=is_mentioned and is_named):
                is_mine = is_mentioned and is_named
                if space and name in state:
                    self.add_item(inner, space, name, one, depth - 1, is_mentioned=is_mine)
                else:
                    self.add(inner, f"{local}.{name}", one, depth - 1, is_mentioned=is_mine)
        self._add_class(type(value))

    def _may_add(self, count: int, path: str, *, is_mentioned: bool) -> bool:
        """Return whether so many values more may be compared in each call.

        Raises:
            Stop: They may not, and the code mentions them.
        """
        if count <= self._left:
            self._left -= count
            return True
        if is_mentioned:
            what = f"with {path}, its attributes have more than {_MOST_VALUES} values"
            raise Stop("large_attribute", what)
        return False

    def add_module_class(self, what: str, local: str, kind: type) -> None:
        """Add the class of the module in the variable ``local``."""
        guard = self._guard
        known = guard.name(kind)
        guard.check(f"the class of {what}", f"ae_type({local}) is {known}")
        if kind in self._module_classes:
            return
        self._module_classes.add(kind)
        for name in ("forward", "__call__"):
            # Of torch's own classes, too: somebody may replace a method there.
            found = getattr(kind, name, None)
            if isinstance(found, types.FunctionType):
                text = f"{name} of {kind.__qualname__}"
                guard.check(text, f"{known}.{name} is {guard.name(found)}")
        self._add_class(kind)

    def _add_class(self, kind: type) -> None:
        for owner in user_classes(kind):
            if owner in self._classes:
                continue
            self._classes.add(owner)
            space = self._guard.name(vars(owner))
            self._guard.check(
                f"the attributes of {owner.__qualname__}",
                f"ae_len({space}) == {len(vars(owner))}",
            )
            for name, value in class_attributes(owner):
                is_mentioned = name in self._mentioned
                if is_mentioned or (self._reads_by_name and isinstance(value, PLAIN)):
                    text = f"{name} of {owner.__qualname__}"
                    self.add_item(text, space, name, value, is_mentioned=is_mentioned)
