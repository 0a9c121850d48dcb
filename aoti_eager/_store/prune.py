"""Remove entries and verdicts that a later process should decide on again, or cannot use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

from .._base.store_format import WANTED_FILE, children
from .._base.store_removal import remove
from .._base.trusted_files import open_directory
from ..errors import StoreError, UntrustedFileError
from .entry import Entry, Status
from .environment import current_environment
from .kept_queue import read_wanted, update_wanted
from .new_entries import identity_of
from .store import Store, StoredEntry, store_at
from .verdict import Verdicts


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What ``prune`` removed, or would remove.

    Attributes:
        declined: How many remembered failures: entries that were declined or quarantined.
        slower: How many verdicts of this processor that had a losing time.
        stale: How many entries of other environments.
        compiler: How many entries of the compiler that was named.
        orphans: How many verdicts, of any processor, on keys that have no entry.
        dry_run: Whether nothing was removed.
    """

    declined: int
    slower: int
    stale: int
    compiler: int = 0
    orphans: int = 0
    dry_run: bool = False


def prune(
    *,
    declined: bool = False,
    stale: bool = False,
    compiler: str | None = None,
    dry_run: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PruneReport:
    """Remove what is to be tried again, or cannot be used here, and return how much there was.

    Running processes keep what they have decided; the next process decides anew.

    Args:
        declined: Remove the remembered failures of the current environment (entries that were
            declined or quarantined), and this processor's verdicts on kernels that lost on either
            hit path. Keys that were begun in vain too often are begun again.
        stale: Remove the entries of other environments, and verdicts, of any processor, on keys
            that have no entry.
        compiler: Remove the entries of the current environment that a C++ compiler has made, and
            the failures met with that compiler. The compiler is one whose version line has this
            text in it, or whose identity begins with this text (``inspect`` shows both).
        dry_run: Remove nothing; only return how much would go.
        cache_dir: The store's directory.

    Raises:
        ValueError: Nothing is asked for.
        StoreError: The store cannot be written, or is not ours.
    """
    if not (declined or stale or compiler):
        raise ValueError("nothing to remove: choose declined, stale or both, or a compiler")
    store = store_at(cache_dir)
    if not dry_run:
        store.require_marker()
    environment = current_environment()
    numbers = {"stale": 0, "compiler": 0, "declined": 0}
    gone: list[Path] = []
    for found in list(store.scan()):
        if not isinstance(found, StoredEntry):
            continue  # Damaged entries are left to verify; a newer format is another version's.
        if found.entry.environment != environment:
            why = "stale" if stale else ""
        elif compiler and _is_made_by(found.entry, compiler):
            why = "compiler"
        else:
            is_failure = found.entry.status is not Status.READY
            why = "declined" if declined and is_failure else ""
        if why:
            numbers[why] += 1
            gone.append(found.path)
            if not dry_run:
                store.discard(found.path)
    losers = _forget_losers(store, dry_run) if declined else 0
    if declined and not dry_run:
        _forget_tries(store)
    orphans = _forget_orphans(store, gone, dry_run) if stale else 0
    return PruneReport(**numbers, slower=losers, orphans=orphans, dry_run=dry_run)


def orphan_verdicts(store: Store, gone: Container[Path] = ()) -> list[tuple[str, ...]]:
    """Return the verdicts on keys that have no entry in the store: names from its root.

    Args:
        store: The store.
        gone: Directories of entries that do not count.

    Raises:
        StoreError: The store cannot be read, or others can write to it.
    """
    digests = {found.path.parent.name for found in store.scan() if found.path not in gone}
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


def _forget_orphans(store: Store, gone: list[Path], dry_run: bool) -> int:
    """Remove the verdicts on keys without an entry; return how many there were."""
    places = orphan_verdicts(store, set(gone))
    if dry_run:
        return len(places)
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


def _forget_losers(store: Store, dry_run: bool) -> int:
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
        removed += 1
        if dry_run:
            continue
        try:
            verdicts.remove(digest)
        except OSError as error:
            path = verdicts.directory / f"{digest}.json"
            message = f"{path}: cannot be removed: {error.strerror or error}"
            raise StoreError(error.errno, message) from error
    return removed
