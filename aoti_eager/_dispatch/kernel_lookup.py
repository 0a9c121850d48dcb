"""Find the entry that serves a call: in the store, and in the tiers behind it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .._base.handover import let_others_run
from .._base.late_import import importing
from .._compile_service.cache_context import CacheContext
from .._keys.kernel_key import ANY_THREADS, KernelKey
from .._store.entry import Status
from .._store.store import StoredEntry
from .._store.stored_failures import standing
from ..config import config
from ..errors import AotiEagerError, EntryDamagedError, StoreError
from .kernel_request import KernelRequest
from .tier_copies import copy_later

log = logging.getLogger("aoti_eager")


def find(call: KernelRequest, context: CacheContext) -> StoredEntry | None:
    """Return the entry of the call's key, after its library's digest was compared.

    Damaged entries and lapsed failures are removed. A failure in the cache directory hides no
    kernel of a tier, nor does an error; a kernel that was found wrong does.

    Raises:
        StoreError: The store cannot be read, or is not ours, and no tier has a kernel.
    """
    if config.mode == "recache":
        with importing():
            from .recache import begin_anew

        begin_anew(call, context)
    keys = (call.key.with_threads(ANY_THREADS), call.key)
    found = failure = None
    try:
        found = _find_in_store(keys, context)
    except StoreError as error:
        if context.tiers is None:
            raise
        failure = error
    is_failure = found is None or found.entry.status is Status.DECLINED
    if context.tiers is not None and is_failure and config.mode != "recache":
        behind = context.tiers.find(keys, context.environment, context.features)
        if behind is not None and (found is None or behind.entry.status is Status.READY):
            copy_later(behind, context)
            return behind
    if failure is not None:
        raise failure
    if found is not None:
        context.store.note_use(found)
        return found
    return _find_dynamic(call, context)


def _find_in_store(keys: Sequence[KernelKey], context: CacheContext) -> StoredEntry | None:
    """Return the entry under one of ``keys`` in the cache directory.

    Raises:
        StoreError: The store cannot be read, or is not ours.
    """
    environment = context.environment
    for key in keys:
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
            return found
    return None


def _find_dynamic(call: KernelRequest, context: CacheContext) -> StoredEntry | None:
    """Return the dynamic specialisation that serves the call; a damaged one is removed."""
    if not call.may_be_dynamic:
        return None
    dynamic = call.table.dynamic
    found = dynamic.kernels.find(call.cache.schema, call.key, context)
    if found is None or dynamic.kernels.is_loaded(found, call.releases_gil):
        return found
    if context.tiers is not None and context.tiers.tier_of(found) is not None:
        behind = context.tiers.checked(found)
        if behind is None:
            dynamic.kernels.look_again()
        else:
            copy_later(behind, context)
        return behind
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
