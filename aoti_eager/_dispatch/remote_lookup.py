"""What remote tiers have: asked for beside the calls, and looked up by the key's next call."""

from __future__ import annotations

from .._base.late_import import importing
from .._compile_service.cache_context import CacheContext
from .._keys.kernel_key import ANY_THREADS
from .._store.store import StoredEntry
from ..config import config
from .kernel_request import KernelRequest


def ask_remotes(call: KernelRequest, context: CacheContext) -> None:
    """Leave a note of a call's key, which the cache directory and the local tiers lack.

    The call goes on as if there were no remote tiers.
    """
    assert context.tiers is not None
    with importing():
        from .._remote.courier import courier_of
        from .._remote.lacking import Lacking

    lacking = Lacking(
        (call.key.with_threads(ANY_THREADS), call.key),
        context.environment,
        context.features,
        call.may_be_dynamic and config.dynamic is not False,
        lambda stored: _arrived(call, stored),
    )
    courier_of(context.store, context.tiers.remote).ask(lacking)


def _arrived(call: KernelRequest, stored: StoredEntry) -> None:
    """Have the key's next call look into the store, unless something was decided meanwhile.

    A key that waits for a worker stays in the queue: the worker finds the entry.
    """
    from .rare import rares

    if call.table.closed:
        return
    if stored.entry.guards is not None:
        call.table.dynamic.kernels.look_again()
    decline = call.table.declines.get(call.table_key)
    if not rares.forget(call) and decline is not None and decline.reason == "not_in_cache":
        call.table.forget_decline(call.table_key)
