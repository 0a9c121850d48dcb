"""Copies of plain values and of containers of them, and whether two of them are the same."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from .stop import Stop

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def same(value: Any, known: Any) -> bool:
    """Return whether two plain values, or containers of them, are equal and of the same types."""
    if value is known:
        return True
    if isinstance(known, _Copy):
        mine = copied(value)
        return type(mine) is _Copy and mine.kind is known.kind and same(mine.plain, known.plain)
    if type(value) is not type(known):
        return False
    if isinstance(value, float | complex):
        return repr(value) == repr(known)  # NaN equals NaN, and -0.0 differs from 0.0.
    if isinstance(value, list | tuple | deque):
        return len(value) == len(known) and all(map(same, value, known))
    if isinstance(value, dict):
        return list(value) == list(known) and all(map(same, value.values(), known.values()))
    if isinstance(value, (*PLAIN, set, frozenset)):
        return bool(value == known)
    return False


class _Copy:
    """The contents of a container of a class of its own."""

    __slots__ = ("kind", "plain")

    def __init__(self, kind: type, plain: Any) -> None:
        self.kind = kind
        self.plain = plain


def copied(value: Any, depth: int = 8) -> Any:
    """Return a copy of containers within containers; everything else is the object itself.

    Raises:
        Stop: Containers lie too deep in each other, or in themselves.
    """
    kind = type(value)
    if kind not in (list, tuple, dict) and not _is_other(kind):
        return set(value) if kind is set else value
    if depth == 0:
        raise Stop("large_attribute", "an attribute has containers within containers, too deep")
    if kind is list or kind is tuple:
        return kind([copied(one, depth - 1) for one in value])
    if kind is dict:
        return {name: copied(one, depth - 1) for name, one in list(value.items())}
    return _Copy(kind, copied(_as_plain(value), depth - 1))


def _is_other(kind: type) -> bool:
    return kind is not set and issubclass(kind, list | dict | set | deque | bytearray)


def _as_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(dict.items(value))
    return set(value) if isinstance(value, set) else list(value)
