"""A snapshot of the attributes of a region's modules, to see whether a call has changed one."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .plain_values import CONTAINERS, PLAIN, copied, is_array, is_large, items_of, same
from .target import (
    Target,
    class_attributes,
    has_state,
    object_attributes,
    own_attributes,
    tensors_of,
    user_classes,
)

_DEPTH = 3
# A snapshot holds so many values of objects and containers; beyond them, a container or an object
# is compared by its identity only.
_MOST_VALUES = 50_000


# A method, and what stands for one on a class: no state of the class.
_METHODS = (types.FunctionType, property, classmethod, staticmethod)


class Snapshot:
    """The attributes at the time when this was made."""

    def __init__(self, target: Target) -> None:
        self._target = target
        found = _Attributes(target)
        self._before = {
            path: _Large(value) if path in found.large else copied(value)
            for path, value in found.values.items()
        }
        self._containers = found.containers
        self._values = found.values

    def take_values(self) -> Iterable[tuple[str, Any]]:
        """Return the paths of all attributes with their values, which are let go of."""
        values, self._values = self._values, {}
        return values.items()

    def change(self) -> str | None:
        """Return the path of an attribute that has changed since, or ``None``."""
        now = _Attributes(self._target).values
        for path, value in now.items():
            if path not in self._before or not _is_as(value, self._before[path]):
                return path
        return next((path for path in self._before if path not in now), None)

    def attribute_that_is(self, container: Any) -> str | None:
        """Return the path of the attribute that is this very list or dict, or ``None``."""
        return self._containers.get(id(container))


class _Large:
    """Stands for a container whose items are not compared."""

    __slots__ = ("length", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.length = value, len(value)


def _is_as(value: Any, before: Any) -> bool:
    if type(before) is _Large:
        return value is before.value and len(value) == before.length
    return same(value, before)


class _Attributes:
    """The attributes of a target's modules, of their classes, and of the objects that they have.

    Attributes:
        values: The attributes by their paths.
        large: The paths of the containers that are compared by their identity and length alone.
        containers: The paths of lists and dicts, by ``id``.
    """

    def __init__(self, target: Target) -> None:
        self.values: dict[str, Any] = {}
        self.large: set[str] = set()
        self.containers: dict[int, str] = {}
        self._seen: dict[int, int] = {}  # id of an object -> depth that was left there
        self._classes: set[type] = set()
        self._left = _MOST_VALUES
        for path, module in target.modules():
            self._add_module(f"{path}." if path else "", module)
            self._add_class(type(module))
        for one in target.references():
            self._add(one.name, one.value, _DEPTH)

    def _add_module(self, dot: str, module: torch.nn.Module) -> None:
        self.values[f"{dot}training"] = module.training
        for _, name, tensor in tensors_of(module):
            self._add_tensor(dot + name, tensor)
        for name, child in list(module._modules.items()):
            self.values[f"{dot}{name} (module)"] = child
        for name, value in own_attributes(module):
            if type(value) not in (Tensor, torch.nn.Parameter):
                self._add(dot + name, value, _DEPTH)

    def _add_class(self, kind: type) -> None:
        for owner in user_classes(kind):
            if owner in self._classes:
                continue
            self._classes.add(owner)
            for name, value in class_attributes(owner):
                if not isinstance(value, _METHODS):
                    self._add(f"{name} of {owner.__qualname__}", value, _DEPTH)

    def _add_tensor(self, path: str, tensor: Tensor | None) -> None:
        self.values[path] = tensor
        if tensor is not None and tensor.layout is torch.strided:
            memory = tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
            self.values[f"{path} (memory)"] = memory

    def _add(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, PLAIN):
            self.values[path] = value
        elif type(value) in (Tensor, torch.nn.Parameter):
            self._add_tensor(path, value)
        elif isinstance(value, CONTAINERS) or is_array(value):
            self._add_container(path, value, depth)
        else:
            self.values[path] = value
            if isinstance(value, type):
                self._add_class(value)
        if depth > self._seen.get(id(value), 0) and has_state(value):
            self._seen[id(value)] = depth
            attributes = object_attributes(value)
            self._left -= len(attributes)
            if self._left > 0:
                for name, one in attributes.items():
                    self._add(f"{path}.{name}", one, depth - 1)

    def _add_container(self, path: str, value: Any, depth: int) -> None:
        self.values[path] = value
        if isinstance(value, list | dict):
            self.containers[id(value)] = path
        if is_large(value) or self._left <= 0:
            self.large.add(path)
        elif not is_array(value):
            self._left -= len(value)
            self._add_items(path, value, depth)

    def _add_items(self, path: str, value: Any, depth: int) -> None:
        for place, one in enumerate(items_of(value)):
            if isinstance(one, CONTAINERS) and not isinstance(one, PLAIN):
                if isinstance(one, list | dict):
                    self.containers[id(one)] = path
                self._add_items(path, one, depth)
            elif has_state(one):
                self._add(f"{path}[item {place}]", one, depth - 1)
