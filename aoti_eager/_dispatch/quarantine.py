"""Take a library out of use whose results differ from the original's."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from .._base.warn_once import warn_once
from .._compile_service import cache_context, queue
from .._compile_service.cache_context import CacheContext
from .._store.entry import Entry
from .._store.store import StoredEntry
from .._store.stored_failures import as_failure
from ..errors import StoreError
from .kernel_lookup import find
from .kernel_request import KernelRequest


def quarantine(
    call: KernelRequest,
    found: StoredEntry,
    problems: Sequence[str],
    context: CacheContext,
    *,
    at_once: bool = False,
) -> None:
    """Decline a call's key and quarantine its entry, because the library's results differ.

    Args:
        call: The call whose results were compared.
        found: The entry.
        problems: The differences, in words.
        context: The store of the entry.
        at_once: Whether the caller waits for the write; else the write is done in the background.
    """
    message = "; ".join(problems)
    call.cache.counters.failures.add()
    call.decline("mismatch", message)
    if found.entry.guards is not None:
        call.table.distrust(found.entry.digest)

    def write() -> None:
        try:
            # The verdict may say that the library was checked, and another library of the same
            # bytes may come.
            with contextlib.suppress(OSError):
                context.verdicts.remove(found.entry.digest)
            stored = found if context.tiers is None else context.tiers.copy(found)
            context.store.quarantine(as_failure(stored), "mismatch", message)
            if context.tiers is not None:
                context.tiers.quarantine(found, message)
        except StoreError as error:
            warn_once("store", f"{error}; kernels are not kept, originals run instead")

    if at_once:
        write()
    else:
        queue.background.run_background_write(write)


def quarantine_serving(call: KernelRequest, entry: Entry, message: str) -> None:
    """Decline a key whose library has served a call wrongly, and quarantine its entry.

    The call counts as declined.
    """
    context = cache_context.current()
    found = None
    with contextlib.suppress(StoreError):
        found = find(call, context)
    if found is not None and found.entry.digest == entry.digest:
        quarantine(call, found, [message], context)
    else:  # The entry was removed meanwhile.
        call.cache.counters.failures.add()
        call.decline("mismatch", message)
        if entry.guards is not None:
            call.table.distrust(entry.digest)
    call.cache.counters.declined("mismatch").add()
