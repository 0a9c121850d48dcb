"""The calls of an op that got a static kernel each, and what varies among them, in words."""

from __future__ import annotations

from collections import deque
from typing import Any

from .._keys.kernel_key import KernelKey

_MOST_KEYS = 64


class StaticCalls:
    """The keys of the last static kernels of one op in one table."""

    def __init__(self) -> None:
        self._keys: deque[KernelKey] = deque(maxlen=_MOST_KEYS)

    def add(self, key: KernelKey) -> None:
        """Remember a call that gets a static kernel."""
        self._keys.append(key)

    def changing(self, key: KernelKey) -> list[str]:
        """Return how ``key`` differs from the calls that are most like it: ``x.size(0)``."""
        differing = [found for one in list(self._keys) if (found := _differing(key, one))]
        least = min(map(len, differing), default=0)
        return sorted({name for found in differing if len(found) == least for name in found})


def _differing(key: KernelKey, other: KernelKey) -> set[str]:
    found: set[str] = set()
    theirs = dict(other.arguments)
    for name, mine in key.arguments:
        found |= _in_value(name, mine, theirs.get(name))
    context = dict(other.context)
    return found | {f"the {name}" for name, one in key.context if context.get(name) != one}


def _in_value(name: str, mine: Any, theirs: Any) -> set[str]:
    if mine == theirs:
        return set()
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return {one for i, pair in pairs for one in _in_value(f"{name}[{i}]", *pair)}
    if not (isinstance(mine, dict) and isinstance(theirs, dict) and "sizes" in mine):
        return {name}
    sizes = [mine["sizes"], theirs.get("sizes", [])]
    if len(sizes[0]) != len(sizes[1]):
        return {f"{name}.dim()"}
    changed = {f"{name}.size({d})" for d, (m, t) in enumerate(zip(*sizes, strict=True)) if m != t}
    others = {k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)} - {"sizes"}
    if changed:
        others.discard("strides")  # Strides follow from the sizes, most often.
    return changed | {f"{name}.{'stride()' if one == 'strides' else one}" for one in others}
