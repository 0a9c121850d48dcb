"""Kernels that are wrong on some data: the right library of another op, on either hit path."""

from __future__ import annotations

import aoti_eager
from aoti_eager._dispatch.kernel_cache import KernelCache
from aoti_eager._registration import registry


def cache_of(op: str) -> KernelCache:
    """Return the kernel cache of a registered op."""
    (cache,) = (cache for cache in registry.caches() if cache.schema.op == op)
    return cache


def put_library_of(donor: KernelCache, cache: KernelCache) -> None:
    """Have the only kernel of ``cache`` run the library of ``donor``'s only kernel."""
    ((key, kernel),) = cache.table.kernels.items()
    (other,) = donor.table.kernels.values()
    kernel.run, kernel.native = other.run, other.native
    cache.table.put(key, kernel)


def rechecks(op: str) -> int:
    """Return how many calls of an op were compared while it was served."""
    return aoti_eager.stats().get(op, aoti_eager.OpStats()).rechecks
