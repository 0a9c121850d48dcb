"""Remove entries and verdicts that a later process should decide on again, or cannot use."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from .._base.store_format import WANTED_FILE, children
from .._base.store_removal import remove
from .._base.trusted_files import open_directory
from ..errors import StoreError, UntrustedFileError
from .entry import Entry, Status
from .environment import current_environment
from .kept_queue import read_wanted, update_wanted
from .new_entries import identity_of
from .store import Store, StoredEntry
from .verdict import Verdicts


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What ``prune`` removed.

    Attributes:
        declined: How many remembered failures: entries that were declined or quarantined.
        slower: How many verdicts of this processor that had a losing time.
        stale: How many entries of other environments.
        compiler: How many entries of the compiler that was named.
        orphans: How many verdicts, of any processor, on keys that have no entry.
    """

    declined: int
    slower: int
    stale: int
    compiler: int = 0
    orphans: int = 0


def prune_store(
    store: Store, *, declined: bool, stale: bool, compiler: str | None = None
) -> PruneReport:
    """Remove what is asked for, and return how much there was; see ``cache.prune``.

    Raises:
        StoreError: The store cannot be written, or is not ours.
    """
    store.require_marker()
    environment = current_environment()
    failures = foreign = made = 0
    for found in list(store.scan()):
        if not isinstance(found, StoredEntry):
            continue  # Damaged entries are left to verify; a newer format is another version's.
        if found.entry.environment != environment:
            if stale:
                store.discard(found.path)
                foreign += 1
        elif compiler and _is_made_by(found.entry, compiler):
            store.discard(found.path)
            made += 1
        elif declined and found.entry.status is not Status.READY:
            store.discard(found.path)
            failures += 1
    losers = 0
    if declined:
        losers = _forget_losers(store)
        _forget_tries(store)
    orphans = _forget_orphans(store) if stale else 0
    return PruneReport(failures, losers, foreign, made, orphans)


def orphan_verdicts(store: Store) -> list[tuple[str, ...]]:
    """Return the verdicts on keys that have no entry in the store: names from its root.

    Raises:
        StoreError: The store cannot be read, or others can write to it.
    """
    digests = {found.path.parent.name for found in store.scan()}
    orphans: list[tuple[str, ...]] = []
    try:
        with open_directory(store.root) as root, root.directory("verdicts") as verdicts:
            for processor in children(verdicts, "verdicts"):
                with contextlib.suppress(OSError), verdicts.directory(processor) as directory:
                    for name in children(directory, "verdicts", processor):
                        digest, _, kind = name.partition(".")
                        if kind == "json" and digest not in digests:
                            orphans.append(("verdicts", processor, name))
    except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
        pass  # There are no verdicts, or only untrusted ones, which ``verify`` reports as damaged.
    except OSError as error:
        raise StoreError(error.errno, f"{store.root}: cannot be read: {error.strerror}") from error
    return orphans


def _is_made_by(entry: Entry, compiler: str) -> bool:
    version = dict(entry.provenance).get("compiler", "")
    return compiler in version or (identity_of(entry) or "").startswith(compiler)


def _forget_orphans(store: Store) -> int:
    """Remove the verdicts on keys without an entry; return how many there were."""
    places = orphan_verdicts(store)
    try:
        with store.marked() as root:
            return 0 if root is None else sum(remove(root, *place) for place in places)
    except StoreError:
        raise
    except OSError as error:
        message = f"{store.root}: its verdicts cannot be removed: {error.strerror or error}"
        raise StoreError(error.errno, message) from error


def _forget_tries(store: Store) -> None:
    """Reset the tries of kept keys: keys that were begun in vain too often are begun again."""
    if not any(one.tries for one in read_wanted(store.root).values()):
        return
    try:
        update_wanted(
            store.root, lambda kept: {name: replace(one, tries=0) for name, one in kept.items()}
        )
    except OSError as error:
        message = f"{store.root / WANTED_FILE}: cannot be written: {error.strerror or error}"
        raise StoreError(error.errno, message) from error


def _forget_losers(store: Store) -> int:
    """Remove this processor's verdicts that have a losing time; return how many there were."""
    if not store.is_trusted():
        return 0
    verdicts = Verdicts(store.root)
    removed = 0
    for digest in verdicts.digests():
        verdict = verdicts.read(digest)
        if verdict is None:
            continue  # An unreadable verdict counts as none; the next measurement overwrites it.
        if all(time.wins for time in verdict.times.values()):
            continue
        try:
            verdicts.remove(digest)
        except OSError as error:
            path = verdicts.directory / f"{digest}.json"
            message = f"{path}: cannot be removed: {error.strerror or error}"
            raise StoreError(error.errno, message) from error
        removed += 1
    return removed
