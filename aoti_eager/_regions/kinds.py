"""The variants of a region by the keys of calls: added, put into order, and dropped."""

from __future__ import annotations

import os
import threading
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .stop import Stop

if TYPE_CHECKING:
    from .variant import Variant

# A variant is dropped after so many calls in turn that came with another state than any variant's,
# if no further variants are recorded.
_MISSES = 64

# Of all regions, and never held for long; a forked child has another one.
_lock = threading.RLock()


class Kinds:
    """The kinds of calls of one region for which a library may serve.

    Attributes:
        by_key: The variants, by the keys of calls' arguments. The lists are never changed: threads
            go through them.
        dropped: How many variants were dropped, as no call has had their state for long.
    """

    def __init__(self) -> None:
        self.by_key: dict[Any, list[Variant]] = {}
        self.dropped = 0

    @property
    def variants(self) -> list[Variant]:
        """Return all variants."""
        return [one for listed in list(self.by_key.values()) for one in listed]

    def add(self, key: Any, variant: Variant, *, again: bool) -> None:
        """Add a variant; ``again`` if the key's variants may have been dropped before."""
        with _lock:
            if again and self.dropped:
                self.dropped -= 1
            self.by_key[key] = [*self.by_key.get(key, ()), variant]

    def to_front(self, key: Any, variant: Variant) -> None:
        """Have a variant's state be looked at first in the next call of a key."""
        with _lock:
            listed = self.by_key.get(key, ())
            if variant in listed:
                self.by_key[key] = [variant, *[one for one in listed if one is not variant]]

    def remove(self, key: Any, variant: Variant) -> None:
        """Take a variant out; the caller lets go of its kernel."""
        with _lock:
            left = [one for one in self.by_key.get(key, ()) if one is not variant]
            self.by_key[key] = left
            if not left:
                del self.by_key[key]

    def _drop_lost(self) -> bool:
        """Drop the variants that no call can have any more; return whether there were some."""
        lost = [
            (key, one) for key, listed in list(self.by_key.items()) for one in listed if one.is_lost
        ]
        for key, one in lost:
            self.remove(key, one)
            one.release()
        return bool(lost)

    def match(self, key: Any, given: Sequence[Tensor]) -> tuple[Variant, list[Tensor]] | None:
        """Return the variant of a call of a key, and its library's inputs; ``None`` for no variant.

        Calls of regions do the same by themselves, as that is faster.
        """
        for one in self.by_key.get(key, ()):
            inputs = one.inputs(given)
            if inputs is not None and not (one.is_unsure and not one.has_key(inputs)):
                return one, inputs
        return None

    def is_full(self, key: Any, most: int, stopped: Container[Any]) -> bool:
        """Return whether no call of a key is recorded, because there are ``most`` variants.

        A key whose variants were all dropped has another one, at the calls of stopped keys that are
        recorded once more.
        """
        if len(self.variants) + self.dropped < most:
            return False
        if self._drop_lost():
            return False
        return not self.dropped or key in self.by_key or key not in stopped

    def miss(self, key: Any, *, may_drop: bool) -> Stop | None:
        """Count a call of a key whose state is no variant's: an attribute may change in each call.

        Args:
            key: The key.
            may_drop: Whether variants that no call has had for long are dropped.

        Returns:
            Why the key is not served, if no variant is left; else ``None``.
        """
        listed = self.by_key.get(key, [])
        for one in listed:
            one.missed += 1
        dead = [one for one in listed if one.missed >= _MISSES]
        if not dead or not may_drop:
            return None
        what = dead[0].what_changed() or "the types or sizes of parameters"
        with _lock:
            self.dropped += len(dead)
            left = [one for one in self.by_key.get(key, ()) if one not in dead]
            self.by_key[key] = left
            if not left:
                del self.by_key[key]
        for one in dead:
            one.release()
        if left:
            return None
        return Stop("too_many_signatures", f"it keeps changing: {what} (region_cap)")


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
