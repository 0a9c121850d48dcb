"""Remembered failures of a store: which still hold, and their removal when they do not."""

from __future__ import annotations

import time
from dataclasses import replace

from .._base.cpp_compiler import compiler_identity
from .._base.warn_once import log
from ..errors import StoreError
from .entry import Remembered, Status
from .new_entries import identity_of
from .remembered import holds
from .store import Store, StoredEntry


def met_now(identity: str | None) -> Remembered:
    """Return an entry's record of a failure that has just been met.

    Args:
        identity: The identity of the compiler that made the library, or failed to.
    """
    return Remembered(int(time.time()), identity)


def as_failure(found: StoredEntry) -> StoredEntry:
    """Return an entry with a failure's record of this moment, for ``Store.quarantine``."""
    entry = replace(found.entry, remembered=met_now(identity_of(found.entry)))
    return replace(found, entry=entry)


def still_holds(store: Store, found: StoredEntry) -> bool:
    """Return whether an entry is ready, or a failure that keeps its key from being compiled now."""
    entry = found.entry
    if entry.status is Status.READY:
        return True
    return holds(
        entry,
        written_at=store.written_at(found),
        now=time.time(),
        compiler=compiler_identity(),
        log=_log(store, found) if entry.remembered is None else "",
    )


def _log(store: Store, found: StoredEntry) -> str:
    """Return what the compiler wrote; empty if the log cannot be read."""
    try:
        return store.read_log(found)
    except StoreError:
        return ""


def standing(store: Store, found: StoredEntry | None) -> StoredEntry | None:
    """Return ``found``; if it is a failure that has lapsed, remove it and return ``None``.

    In a store that cannot be written, the failure goes on: no other answer could be kept there.
    """
    if found is None or still_holds(store, found):
        return found
    try:
        # Otherwise ``publish`` of a new failure would find the lapsed one, and keep that.
        store.discard_if_unchanged(found)
    except StoreError as error:
        log.info("%s", error)
        return found
    log.info("%s: its %s has lapsed, and is tried again", found.path, found.entry.reason)
    return None
