"""The dynamic kernels of one op: those of the store, and which of them this process has loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .._compile_service.cache_context import CacheContext
from .._keys.kernel_key import KernelKey
from .._keys.key_words import key_words
from .._keys.schema import OpSchema
from .._store.entry import Entry, Status
from .._store.store import StoredEntry
from .._store.stored_failures import standing
from .._store.stored_pattern import serves
from ..config import config

T = TypeVar("T")


class DynamicKernels:
    """The dynamic kernels of one op in one table.

    More than 12 methods, because each is one step under the lock.
    """

    def __init__(self) -> None:
        self._known: dict[str, StoredEntry] | None = None
        self._changes = 0  # counts changes to ``_known``
        self._runners: dict[tuple[str, bool], Any] = {}
        self._distrusted: set[str] = set()
        self._counted: set[str] = set()
        self._lock = threading.RLock()

    def find(self, schema: OpSchema, key: KernelKey, context: CacheContext) -> StoredEntry | None:
        """Return the dynamic specialisation that serves ``key``'s calls, if there is one.

        Of several, the one with the fewest symbols is returned: it is the most specialised.

        Raises:
            StoreError: The store cannot be read.
        """
        if config.dynamic is False:
            return None
        words = key_words(schema, key)
        if words is None:
            return None
        stored = self.read(key.op, context)
        with self._lock:
            known = [one for one in stored.values() if self._is_usable(one)]
        serving = [one for one in known if serves(schema, one, key, words)]
        return min(serving, key=_symbols, default=None)

    def read(self, op: str, context: CacheContext) -> dict[str, StoredEntry]:
        """Return the store's dynamic specialisations of the op, by digest; they are read once.

        The store is not read under the lock, which calls of other threads may wait for.

        Raises:
            StoreError: The store cannot be read.
        """
        while True:
            with self._lock:
                known, changes = self._known, self._changes
            if known is not None:
                return known
            found = context.store.find_dynamic(op, context.environment, context.features)
            found = [one for one in found if standing(context.store, one) is not None]
            if context.tiers is not None and config.mode != "recache":
                digests = [one.entry.digest for one in found]
                found += context.tiers.find_dynamic(
                    op, context.environment, context.features, digests
                )
            with self._lock:
                if self._known is None and self._changes == changes:
                    self._known = {one.entry.digest: one for one in found}

    def add(self, found: StoredEntry) -> None:
        """Use a specialisation that this process, or another one, has just compiled."""
        with self._lock:
            self._counted.add(found.entry.digest)
            self._changes += 1
            if self._known is not None:
                self._known[found.entry.digest] = found

    def look_again(self) -> None:
        """Look into the store again: another process may have compiled what is missing here."""
        with self._lock:
            self._changes += 1
            self._known = None

    def forget(self) -> None:
        """Look into the store again: an entry has turned out to be damaged or deleted."""
        with self._lock:
            self._changes += 1
            self._known = None
            self._runners.clear()

    def distrust(self, digest: str) -> None:
        """Never use a specialisation again, whatever the store says: its results were wrong."""
        with self._lock:
            self._distrusted.add(digest)
            self._runners = {k: runner for k, runner in self._runners.items() if k[0] != digest}

    def is_distrusted(self, found: Entry) -> bool:
        """Return whether the results of an entry's library were wrong in this process."""
        return found.digest in self._distrusted

    def runner(self, found: Entry, releases_gil: bool, load: Callable[[], T]) -> T:
        """Return the loaded library of a specialisation, which its calls share."""
        with self._lock:
            runner: T | None = self._runners.get((found.digest, releases_gil))
            if runner is None:
                runner = self._runners[found.digest, releases_gil] = load()
                self._counted.add(found.digest)
            return runner

    def is_loaded(self, found: StoredEntry, releases_gil: bool) -> bool:
        """Return whether the library of ``found`` is loaded already."""
        return (found.entry.digest, releases_gil) in self._runners

    @property
    def count(self) -> int:
        """Return how many dynamic kernels this process has made or loaded; the store has more."""
        with self._lock:
            known = [one for one in (self._known or {}).values() if self._is_usable(one)]
            return sum(one.entry.digest in self._counted for one in known)

    def unusable(self) -> list[StoredEntry]:
        """Return the specialisations that serve no calls: failures, and those that were wrong."""
        with self._lock:
            return [one for one in (self._known or {}).values() if not self._is_usable(one)]

    def after_fork(self) -> None:
        """Drop a lock that a thread of the parent may have held."""
        self._lock = threading.RLock()

    def _is_usable(self, found: StoredEntry) -> bool:
        entry = found.entry
        return entry.status is Status.READY and entry.digest not in self._distrusted


def _symbols(found: StoredEntry) -> int:
    return len(found.entry.guards.ranges) if found.entry.guards is not None else 0
