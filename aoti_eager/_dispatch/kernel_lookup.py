"""Find the entry that serves a call in the store."""

from __future__ import annotations

import logging

from .._base.handover import let_others_run
from .._compile_service.cache_context import CacheContext
from .._keys.kernel_key import ANY_THREADS
from .._store.entry import Status
from .._store.store import StoredEntry
from .._store.stored_failures import standing
from ..config import config
from ..errors import AotiEagerError, EntryDamagedError, StoreError
from .kernel_request import KernelRequest

log = logging.getLogger("aoti_eager")


def find(call: KernelRequest, context: CacheContext) -> StoredEntry | None:
    """Return the entry of the call's key, after its library's digest was compared.

    Damaged entries and lapsed failures are removed.

    Raises:
        StoreError: The store cannot be read, or is not ours.
    """
    environment = context.environment
    for key in (call.key.with_threads(ANY_THREADS), call.key):
        try:
            found = context.store.find(key, environment, context.features)
            let_others_run()
            found = standing(context.store, found)
            if found is not None and found.entry.status is Status.READY:
                found = context.store.check_library(found)
        except FileNotFoundError:
            continue  # Another process has evicted the entry meanwhile: a miss.
        except EntryDamagedError as error:
            _discard(error, context)
            continue
        except AotiEagerError as error:
            if isinstance(error, StoreError) and not hasattr(error, "path"):
                raise
            log.warning("%s; it is passed over", error)
            continue
        if found is not None:
            context.store.note_use(found)
            return found
    return _find_dynamic(call, context)


def _find_dynamic(call: KernelRequest, context: CacheContext) -> StoredEntry | None:
    """Return the dynamic specialisation that serves the call; a damaged one is removed."""
    if not call.may_be_dynamic:
        return None
    dynamic = call.table.dynamic
    found = dynamic.kernels.find(call.cache.schema, call.key, context)
    if found is None or dynamic.kernels.is_loaded(found, call.releases_gil):
        return found
    try:
        checked = context.store.check_library(found)
    except FileNotFoundError:
        dynamic.kernels.look_again()  # Another process has evicted the entry since it was read.
        return None
    except EntryDamagedError as error:
        _discard(error, context)
        dynamic.kernels.forget()
        return None
    context.store.note_use(checked)
    return checked


def _discard(error: EntryDamagedError, context: CacheContext) -> None:
    if config.strict:
        raise error
    log.warning("%s; it is removed and made anew", error)
    context.discard(error)
