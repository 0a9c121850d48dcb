"""Compares plain values and containers with what they were: numbers, text, lists, dicts, sets.

What is kept of a container holds no module and no tensor alive: those are kept weakly.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
# Two values of one of these types are the same if they are equal.
_EXACT = frozenset({bool, int, str, bytes, type(None), torch.dtype, torch.device})
CONTAINERS = (tuple, list, dict, set, frozenset, deque, bytearray)
# Containers with more items, those of inner containers included, are not compared in each call.
MOST_ITEMS = 256


class _Weak(weakref.ref[Any]):
    """Stands for an object that is kept weakly."""

    __slots__ = ()


class _Item:
    """Stands for an object in a set: equal for one and the same object, whatever its class says."""

    __slots__ = ("held",)

    def __init__(self, value: Any) -> None:
        self.held = weakly(value)

    def __hash__(self) -> int:
        return 0  # Sets of objects are small: see MOST_ITEMS.

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Item) and self.value is other.value is not None

    @property
    def value(self) -> Any:
        """Return the object; ``None`` if the object is gone."""
        return self.held() if type(self.held) is _Weak else self.held


class _Copy:
    """The contents of a container of a class of its own, or of one without an order."""

    __slots__ = ("kind", "plain")

    def __init__(self, kind: type, plain: Any) -> None:
        self.kind = kind
        self.plain = plain


def is_array(value: Any) -> bool:
    """Return whether a value is an array of numpy's, which this package does not import."""
    return type(value).__name__ == "ndarray" and type(value).__module__ == "numpy"


def is_fixed(value: Any) -> bool:
    """Return whether a value is a tuple of few plain values: one look at its identity may do."""
    if type(value) is not tuple or len(value) > MOST_ITEMS:
        return False
    return all(isinstance(one, PLAIN) for one in value)


def items_of(value: Any) -> Iterable[Any]:
    """Return the items of a container; the values of a dict."""
    if isinstance(value, dict):
        return list(dict.values(value))
    return () if isinstance(value, bytearray) else list(value)


def is_large(value: Any) -> bool:
    """Return whether a container has more than ``MOST_ITEMS`` items, at all its levels."""
    if is_array(value):
        return bool(value.size > MOST_ITEMS)
    left, waiting = MOST_ITEMS, [value]
    while waiting:
        one = waiting.pop()
        left -= len(one)
        if left < 0:
            return True
        # The items of a container within itself never end, so such a container is large.
        waiting += [inner for inner in items_of(one) if isinstance(inner, CONTAINERS)]
    return False


def weakly(value: Any) -> Any:
    """Return what stands for an object in a copy; the object itself where that cannot be weak."""
    try:
        return _Weak(value)
    except TypeError:
        return value


def copied(value: Any) -> Any:
    """Return a copy of containers within containers, for ``same``.

    The container must not be large: see ``is_large``.
    """
    kind = type(value)
    if kind is list or kind is tuple:
        return kind([copied(one) for one in value])
    if kind is dict:
        return {copied(name): copied(one) for name, one in list(value.items())}
    if isinstance(value, PLAIN):
        return value
    if is_array(value):
        return _Copy(kind, _array_contents(value))
    if isinstance(value, set | frozenset):
        return _Copy(kind, {_of_set(one) for one in list(value)})
    if isinstance(value, dict):
        return _Copy(kind, copied(dict(dict.items(value))))
    if isinstance(value, CONTAINERS):
        return _Copy(kind, copied(list(value)))
    return weakly(value)


def same(value: Any, known: Any) -> bool:
    """Return whether a value equals what ``copied`` has returned: types, order and objects, too."""
    kind = type(known)
    if kind is _Weak:
        return value is not None and known() is value
    if kind is _Copy:
        return type(value) is known.kind and _same_contents(value, known.plain)
    if value is known and not isinstance(known, CONTAINERS):
        return True
    if type(value) is not kind:
        return False
    if kind in _EXACT:  # First, as this runs in each call of a region.
        return bool(value == known)
    if isinstance(value, float | complex):
        return repr(value) == repr(known)  # NaN equals NaN, and -0.0 differs from 0.0.
    if kind is list or kind is tuple:
        return len(value) == len(known) and all(map(same, value, known))
    if kind is dict:
        return (
            len(value) == len(known)
            and all(map(same, value, known))
            and all(map(same, value.values(), known.values()))
        )
    return isinstance(value, PLAIN) and bool(value == known)


def _same_contents(value: Any, known: Any) -> bool:
    if is_array(value):
        return bool(_array_contents(value) == known)
    if isinstance(value, set | frozenset):
        return len(value) == len(known) and {_of_set(one) for one in list(value)} == known
    if isinstance(value, dict):
        return same(dict(dict.items(value)), known)
    return same(list(value), known)


def _array_contents(value: Any) -> tuple[Any, ...]:
    if value.dtype.hasobject:
        return id(value), value.shape  # Its items are objects: only which array it is.
    return value.dtype.str, value.shape, value.strides, value.tobytes()


def _of_set(value: Any) -> Any:
    """Return what tells an item of a set from each other one: 1 and True and 1.0 are equal."""
    if isinstance(value, tuple | frozenset):
        inner = frozenset if isinstance(value, frozenset) else tuple
        return type(value), inner([_of_set(one) for one in value])
    if isinstance(value, PLAIN):
        return type(value), repr(value) if isinstance(value, float | complex) else value
    return _Item(value)
