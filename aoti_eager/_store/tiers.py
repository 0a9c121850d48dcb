"""The tiers: stores behind the cache directory, looked at in order where it lacks a key.

A kernel that a tier has serves at once, and is copied into the cache directory beside the calls. A
tier that cannot be read is passed over. In a read-only tier nothing is ever written: no lock, no
time of use, no directory, and nothing is removed.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .._base.store_format import LIBRARY_FILE
from .._base.tier_names import TierName, tier_name
from .._base.warn_once import log, warn_once
from .._keys.kernel_key import KernelKey
from ..config import config
from ..errors import AotiEagerError
from .entry import Status
from .environment import Environment
from .puts import keep_limits
from .store import Store, StoredEntry
from .stored_failures import as_failure, still_holds
from .verdict import Verdict, Verdicts


class LocalTier:
    """One directory behind the cache directory.

    Args:
        name: The tier's name in the setting ``tiers``.
        preferred_target: The target whose entries are looked at first.

    Attributes:
        name: As in the setting: ``ro:/opt/kernels``.
        is_writable: Whether new kernels are copied into the directory.
        store: The store in the directory.
        counts: What the directory has given to this process: ``hits``, ``misses``, ``copies`` into
            the cache directory, ``given`` to the directory, ``errors``.
        last_error: The last error in words; empty if there was none.
    """

    def __init__(self, name: TierName, preferred_target: str) -> None:
        self.name = name.text
        self.is_writable = name.is_writable
        self.store = Store(
            Path(name.place),
            lock_timeout_s=config.lock_timeout_s,
            preferred_target=preferred_target,
        )
        self.counts: Counter[str] = Counter()
        self.last_error = ""

    def find(
        self, keys: Iterable[KernelKey], environment: Environment, features: frozenset[str]
    ) -> StoredEntry | None:
        """Return the first entry under one of ``keys``: a checked library, or a failure that holds.

        Never raises.
        """
        for key in keys:
            try:
                found = self.store.find(key, environment, features)
                if found is None or not still_holds(self.store, found):
                    continue
                return self.store.check_library(found) if _is_ready(found) else found
            except FileNotFoundError:
                continue  # Another process has evicted the entry meanwhile.
            except AotiEagerError as error:
                self.failed(error)
                if not hasattr(error, "path"):
                    return None  # It says something of the whole directory.
        return None

    def failed(self, error: Exception) -> None:
        """Count an error, and warn of the first of its kind: the tier is passed over."""
        self.counts["errors"] += 1
        self.last_error = str(error)
        cause = f"{type(error).__name__}-{getattr(error, 'errno', None)}"
        warn_once(f"tier:{self.name}:{cause}", f"tier {self.name}: {error}; it is passed over")


class Tiers:
    """The tiers of one cache directory, in order.

    Args:
        store: The store of the cache directory.
        names: The setting ``tiers``.
        preferred_target: The target whose entries are looked at first.

    Attributes:
        local: The directories among the tiers. A directory that is the cache directory is left out.
        remote: The other tiers, which no call asks (``_remote``).
    """

    def __init__(self, store: Store, names: Sequence[str], preferred_target: str) -> None:
        self._store = store
        taken = [tier_name(one) for one in names]
        self.local = [
            LocalTier(one, preferred_target)
            for one in taken
            if not one.is_remote and Path(one.place) != store.root
        ]
        self.remote = tuple(one for one in taken if one.is_remote)
        self._copied: set[Path] = set()
        self._lock = threading.RLock()

    def find(
        self, keys: Sequence[KernelKey], environment: Environment, features: frozenset[str]
    ) -> StoredEntry | None:
        """Return the entry of the nearest tier that has a kernel; else the nearest failure.

        A failure of one tier hides no kernel of another: the failure may be another compiler's.
        Never raises.
        """
        failure: StoredEntry | None = None
        for tier in self.local:
            found = tier.find(keys, environment, features)
            if found is not None and _is_ready(found):
                tier.counts["hits"] += 1
                if tier.is_writable:
                    tier.store.note_use(found)
                return found
            tier.counts["misses"] += 1
            failure = failure or found
        return failure

    def find_dynamic(
        self, op: str, environment: Environment, features: frozenset[str], known: Iterable[str]
    ) -> list[StoredEntry]:
        """Return the dynamic specialisations of an op whose digests are not ``known``.

        Never raises.
        """
        seen, found = set(known), []
        for tier in self.local:
            try:
                for one in tier.store.find_dynamic(op, environment, features):
                    if _is_ready(one) and one.entry.digest not in seen:
                        seen.add(one.entry.digest)
                        found.append(one)
            except AotiEagerError as error:
                tier.failed(error)
        return found

    def tier_of(self, found: StoredEntry) -> LocalTier | None:
        """Return the tier that an entry was read from; ``None`` for the cache directory."""
        if found.path.is_relative_to(self._store.root):
            return None
        return next((one for one in self.local if found.path.is_relative_to(one.store.root)), None)

    def checked(self, found: StoredEntry) -> StoredEntry | None:
        """Return a tier's entry with its library's bytes; ``None`` if it cannot be used."""
        tier = self.tier_of(found)
        assert tier is not None
        try:
            checked = tier.store.check_library(found)
        except FileNotFoundError:
            return None
        except AotiEagerError as error:
            tier.failed(error)
            return None
        tier.counts["hits"] += 1
        return checked

    def copy(self, found: StoredEntry) -> StoredEntry:
        """Return a tier's kernel as it lies in the cache directory, after it was copied there.

        What this processor's verdicts in the tiers say of the kernel is copied, too. Not in a call.

        Returns:
            ``found``, if it lies there already, is no kernel, or cannot be copied; the quarantined
            entry, if another process has found the kernel wrong meanwhile.
        """
        tier = self.tier_of(found)
        if tier is None or not _is_ready(found):
            return found
        try:
            stored = _copied(tier.store, found, self._store)
        except (AotiEagerError, OSError) as error:
            log.info("%s: is not copied into %s: %s", found.path, self._store.root, error)
            return found
        if not _is_ready(stored):
            return stored
        tier.counts["copies"] += 1
        assert stored.entry.library is not None
        verdict = self.verdicts.get(stored.entry.digest, stored.entry.library.sha256)
        with contextlib.suppress(OSError):  # Else it is measured again.
            if verdict != Verdict(verdict.library):
                self.verdicts.put(stored.entry.digest, verdict)
        keep_limits(self._store, stored.path)
        return stored

    def copy_later(
        self, found: StoredEntry, background_write: Callable[[Callable[[], None]], object]
    ) -> None:
        """Copy a tier's kernel into the cache directory, beside the calls; once, if that works."""
        if self.tier_of(found) is None or not _is_ready(found):
            return
        with self._lock:
            if found.path in self._copied:
                return
            self._copied.add(found.path)

        def write() -> None:
            if self.copy(found) is found:
                with self._lock:
                    self._copied.discard(found.path)  # The next lookup tries again.

        background_write(write)

    def give(self, found: StoredEntry) -> None:
        """Copy a new kernel of the cache directory into every writable directory; never raises."""
        if not _is_ready(found):
            return
        for tier in self.local:
            if tier.is_writable:
                with _passing_over(tier):
                    stored = _copied(self._store, found, tier.store)
                    tier.counts["given"] += 1
                    keep_limits(tier.store, stored.path)

    def quarantine(self, found: StoredEntry, message: str) -> None:
        """Quarantine a kernel in every writable directory that has the same one; never raises."""
        for tier in self.local:
            if tier.is_writable:
                with _passing_over(tier):
                    there = tier.store.same_entry(found.entry)
                    if there is not None and there.entry.library == found.entry.library:
                        tier.store.quarantine(as_failure(there), "mismatch", message)

    @property
    def verdicts(self) -> Verdicts:
        """Return this processor's verdicts in the cache directory and in the tiers."""
        return _TieredVerdicts(self._store.root, [tier.store.root for tier in self.local])


class _TieredVerdicts(Verdicts):
    """Verdicts that are written into the cache directory, and read from the tiers, too."""

    def __init__(self, root: Path, others: Sequence[Path]) -> None:
        super().__init__(root)
        self._others = [Verdicts(other) for other in others]

    def get(self, digest: str, library: str) -> Verdict:
        found = super().get(digest, library)
        for other in self._others:
            more = other.get(digest, library)
            found = replace(
                found,
                checked=found.checked or more.checked,
                checked_sizes=found.checked_sizes | more.checked_sizes,
                compared=found.compared or more.compared,
                times={**more.times, **found.times},
            )
        return found


def _is_ready(found: StoredEntry) -> bool:
    return found.entry.status is Status.READY


def _copied(source: Store, found: StoredEntry, target: Store) -> StoredEntry:
    """Return an entry as it lies in ``target``, after it was put there.

    A kernel that was quarantined there stays quarantined.

    Raises:
        StoreError: The library is not what was published, or ``target`` cannot be written.
        OSError: There is no space.
    """
    there = target.same_entry(found.entry)
    if there is not None and there.entry.status is not Status.DECLINED:
        return there
    content = found.content or source.check_library(found).content
    assert content is not None
    assert found.entry.library is not None
    with target.workspace() as work:
        library = work / LIBRARY_FILE
        library.write_bytes(content)
        sha256 = found.entry.library.sha256
        return target.publish(found.entry, work, library, "", sha256=sha256)


@contextlib.contextmanager
def _passing_over(tier: LocalTier) -> Iterator[None]:
    try:
        yield
    except (AotiEagerError, OSError) as error:
        tier.failed(error)
