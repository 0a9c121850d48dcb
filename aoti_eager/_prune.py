"""Remove of a store what a later process should decide on again, or has no use for."""

from __future__ import annotations

from dataclasses import dataclass

from ._entry import Status
from ._environment import current_environment
from ._store import Store, StoredEntry
from ._verdict import NOT_A_VERDICT, Verdicts, decode_verdict
from .errors import StoreError


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What ``prune`` removed.

    Attributes:
        declined: How many remembered failures: entries that were declined or quarantined.
        slower: How many verdicts of this processor that had a losing time.
        stale: How many entries of other environments.
    """

    declined: int
    slower: int
    stale: int


def prune_store(store: Store, *, declined: bool, stale: bool) -> PruneReport:
    """Remove what is asked for, and return how much there was; see ``cache.prune``.

    Raises:
        StoreError: The store cannot be written, or is not ours.
    """
    environment = current_environment()
    failures = foreign = 0
    for found in list(store.scan()):
        if not isinstance(found, StoredEntry):
            continue  # Damaged ones are for verify, and a newer format's are another version's.
        if found.entry.environment != environment:
            if stale:
                store.discard(found.path)
                foreign += 1
        elif declined and found.entry.status is not Status.READY:
            store.discard(found.path)
            failures += 1
    return PruneReport(failures, _forget_losers(store) if declined else 0, foreign)


def _forget_losers(store: Store) -> int:
    """Remove this processor's verdicts that have a losing time; return how many there were."""
    if not store.is_trusted():
        return 0
    verdicts = Verdicts(store.root)
    removed = 0
    for digest in list(verdicts.digests()):
        try:
            verdict = decode_verdict((verdicts.directory / f"{digest}.json").read_bytes())
        except (OSError, *NOT_A_VERDICT):
            continue  # It counts as none, and the next measurement writes over it.
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
