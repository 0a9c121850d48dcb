"""Copies of kernels between the cache directory and the tiers, and evictions: beside the calls."""

from __future__ import annotations

from .._base.late_import import importing
from .._compile_service import queue
from .._compile_service.cache_context import CacheContext
from .._store.store import StoredEntry


def in_cache_dir(found: StoredEntry, context: CacheContext) -> StoredEntry:
    """Return a kernel as it lies in the cache directory, copied there if it is a tier's.

    Not in a call of the background's mode. A kernel that cannot be copied is returned as it is.
    """
    return found if context.tiers is None else context.tiers.copy(found)


def copy_later(found: StoredEntry, context: CacheContext) -> None:
    """Copy a tier's kernel into the cache directory."""
    if context.tiers is not None:
        context.tiers.copy_later(found, queue.background.run_background_write)


def give(found: StoredEntry, context: CacheContext) -> None:
    """Copy a new kernel into the writable tiers."""
    tiers = context.tiers
    if tiers is None:
        return
    if any(one.is_writable for one in tiers.local):
        queue.background.run_background_write(lambda: tiers.give(found))
    if any(one.is_writable for one in tiers.remote):
        with importing():
            from .._remote.courier import courier_of
        courier_of(context.store, tiers.remote).give(found)


def evict_later(found: StoredEntry, context: CacheContext) -> None:
    """Keep the limits of the store after an entry that a call has put."""
    with importing():
        from .._store.puts import keep_limits
    queue.background.run_background_write(lambda: keep_limits(context.store, found.path))
