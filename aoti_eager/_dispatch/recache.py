"""Mode ``recache``: what the store has under a key is removed before the key's first lookup.

So every kernel that the process needs is made anew, and replaces the one that was there. A kernel
that the process itself has made stays.
"""

from __future__ import annotations

from .._compile_service.cache_context import CacheContext
from .._keys.kernel_key import ANY_THREADS
from ..errors import EntryDamagedError
from .kernel_request import KernelRequest

# The store, and the digest of a key or the name of an op, whose entries were removed.
_begun: set[tuple[str, str]] = set()
# A key has an entry for each instruction set.
_MOST_ENTRIES = 8


def begin_anew(call: KernelRequest, context: CacheContext) -> None:
    """Remove the entries of a call's key, and its op's dynamic kernels, once in a process.

    Raises:
        StoreError: The entries cannot be read or removed. They are not used: the call runs its
            original, and a later call tries again.
    """
    store, environment, features = context.store, context.environment, context.features
    for key in (call.key.with_threads(ANY_THREADS), call.key):
        place = str(store.root), key.digest
        if place not in _begun:
            for _ in range(_MOST_ENTRIES):
                try:
                    found = store.find(key, environment, features)
                except EntryDamagedError as error:
                    context.discard(error)
                    continue
                if found is None:
                    break
                store.discard(found.path)
            _begun.add(place)
    place = str(store.root), call.key.op
    if call.may_be_dynamic and place not in _begun:
        for found in store.find_dynamic(call.key.op, environment, features):
            store.discard(found.path)
        _begun.add(place)
