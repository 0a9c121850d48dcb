"""A snapshot of the attributes of a region's modules, to see whether a call has changed one."""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Any

import torch

from .copies import copied, same
from .target import (
    Target,
    class_attributes,
    has_state,
    object_attributes,
    own_attributes,
    tensors_of,
)

_DEPTH = 3


class Snapshot:
    """The attributes at the time when this was made."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._before = _attributes(target)

    def values(self) -> ItemsView[str, Any]:
        """Return the paths of all attributes, with their values at that time."""
        return self._before.items()

    def change(self) -> str | None:
        """Return the path of an attribute that has changed since, or ``None``."""
        now = _attributes(self._target)
        for path, value in now.items():
            if path not in self._before or not same(value, self._before[path]):
                return path
        return next((path for path in self._before if path not in now), None)


def _attributes(target: Target) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for path, module in target.modules():
        dot = f"{path}." if path else ""
        found[f"{dot}training"] = module.training
        for name, value in own_attributes(module):
            _add(found, dot + name, value, seen, _DEPTH)
        for owner, name, value in class_attributes(module):
            found[f"{name} of {owner.__qualname__}"] = copied(value)
        for _, name, tensor in tensors_of(module):
            found[dot + name] = tensor
            if tensor is not None and tensor.layout is torch.strided:
                found[f"{dot}{name} (memory)"] = tensor.data_ptr()
        for name, child in module._modules.items():
            found[f"{dot}{name} (module)"] = child
    for one in target.references():
        _add(found, one.name, one.value, seen, _DEPTH)
    return found


def _add(found: dict[str, Any], path: str, value: Any, seen: set[int], depth: int) -> None:
    found[path] = copied(value)
    if depth and has_state(value) and id(value) not in seen:
        seen.add(id(value))
        for name, one in object_attributes(value).items():
            _add(found, f"{path}.{name}", one, seen, depth - 1)
