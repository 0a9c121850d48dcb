"""What the caches of all ops share: the store, the environment, the compile workers.

One ``CacheContext`` belongs to a cache directory and a CPU target; ``current`` returns the one for
the current settings.
"""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from .._base import scheduling
from .._base.at_exit import at_exit
from .._base.cpu import Target, cpu_features, cpu_target
from .._base.data_class import dataclass
from .._base.late_import import importing
from .._base.torch_compat.dispatcher import privateuse1_device_type
from .._base.warn_once import log
from .._store.environment import Environment, current_environment
from .._store.store import Store
from .._store.verdict import Verdicts
from ..config import add_check, config
from ..errors import EntryDamagedError, StoreError
from . import queue

if TYPE_CHECKING:
    from .._store.store import StoredEntry
    from .._store.tiers import Tiers
    from .worker_pool import CompileService


@dataclass(frozen=True, slots=True)
class CacheContext:
    """The store at one directory with what is needed to fill it.

    Attributes:
        store: The entries.
        target: The instruction set that kernels are compiled for.
        features: The CPU's features.
        own_service: Workers to use in place of the low-priority workers; ``None`` for the latter.
        tiers: The stores behind the cache directory; ``None`` if there are none.
    """

    store: Store
    target: Target
    features: frozenset[str]
    own_service: CompileService | None = None
    tiers: Tiers | None = None

    @property
    def service(self) -> CompileService:
        """Return the compile workers that a call waits for."""
        return _workers(self.target, 0).service()

    @property
    def background_service(self) -> CompileService:
        """Return the compile workers that no call waits for."""
        return self.own_service or _workers(self.target, _BACKGROUND_NICE).service()

    @property
    def environment(self) -> Environment:
        """Return the current environment, computed anew: Inductor's settings may have changed."""
        return current_environment()

    @property
    def toolchain(self) -> Path:
        """Return the directory of what the compile workers keep."""
        return self.store.root / "toolchain"

    @property
    def verdicts(self) -> Verdicts:
        """Return this processor's verdicts on the store's libraries."""
        return Verdicts(self.store.root) if self.tiers is None else self.tiers.verdicts

    def store_of(self, found: StoredEntry) -> Store:
        """Return the store that an entry was read from: the cache directory's, or a tier's."""
        tier = None if self.tiers is None else self.tiers.tier_of(found)
        return self.store if tier is None else tier.store

    def discard(self, error: EntryDamagedError) -> None:
        """Remove the damaged entry that ``error`` is about, if the store can be written."""
        path = getattr(error, "path", None)
        if path is None:
            return
        try:
            self.store.discard(path)
        except StoreError as problem:
            log.info("%s", problem)


# By how much the priority of workers that no call waits for is lower than the script's. It is the
# lowest priority only where ``share`` gives such workers windows: otherwise a script that uses all
# cores for hours would never get its kernels.
_BACKGROUND_NICE = scheduling.BEHIND


class _Workers:
    """The compile workers for one target with one priority, which serve every cache directory.

    The handler that ends the workers is registered here, although the module that starts them is
    imported at the first request for a worker. So exit handlers that the script registers in
    between run before the workers end.
    """

    def __init__(self, target: Target, nice: int) -> None:
        self._target = target
        self._nice = nice
        self._service: CompileService | None = None
        self.ended = False
        atexit.register(self._end)

    def service(self) -> CompileService:
        """Return the workers; they are set up at the first call."""
        if self._service is None:
            with importing():  # Before the lock, which each miss takes.
                from .worker_pool import CompileService
        with _lock:
            if self._service is None:
                self._service = CompileService(
                    self._target, workers=config.workers, nice=self._nice, ends_at_exit=False
                )
                self._service.ended = self.ended
            return self._service

    def started(self) -> CompileService | None:
        """Return the workers; ``None`` if nobody has asked for them."""
        return self._service

    def _end(self) -> None:
        self.ended = True
        if self._service is not None:
            self._service.end()


_contexts: dict[tuple[Path, str, tuple[str, ...]], CacheContext] = {}
_pools: dict[tuple[Target, int], _Workers] = {}  # by target and nice
_lock = threading.RLock()

# Checked where the setting is made or first read, and not inside of a call.
add_check("cpu_target", lambda setting: cpu_target(cpu_features(), setting))


def _workers(target: Target, nice: int) -> _Workers:
    with _lock:
        found = _pools.get((target, nice))
        if found is None:
            found = _pools[target, nice] = _Workers(target, nice)
        return found


def current() -> CacheContext:
    """Return the cache context of the cache directory, CPU target and tiers that are set now."""
    root, setting, tiers = config.cache_dir, config.cpu_target, config.tiers
    with _lock:
        context = _contexts.get((root, setting, tiers))
        if context is None:
            features = cpu_features()
            target = cpu_target(features, setting)
            store = Store(root, lock_timeout_s=config.lock_timeout_s, preferred_target=target.name)
            context = CacheContext(
                store=store,
                target=target,
                features=features,
                tiers=_tiers(store, tiers, target.name) if root is not None and tiers else None,
            )
            _workers(target, 0)  # Now: exit handlers that are registered later run before theirs.
            _workers(target, _BACKGROUND_NICE)
            _contexts[root, setting, tiers] = context
        # Settings may have changed since the directory was first used.
        context.store.lock_timeout_s = config.lock_timeout_s
        return context


def _tiers(store: Store, names: tuple[str, ...], target: str) -> Tiers:
    with importing():  # Most users have no tiers.
        from .._store.tiers import Tiers
    return Tiers(store, names, target)


def device_type(dispatch_key: str) -> str:
    """Return the device type that a Dense backend key stands for: ``CUDA`` -> ``cuda``."""
    if dispatch_key == "PrivateUse1":
        return privateuse1_device_type()
    return dispatch_key.lower()


def close_workers() -> None:
    """End the compile workers; the next compile starts new ones."""
    for service in _started():
        service.close()


def _started() -> list[CompileService]:
    return [one for pool in list(_pools.values()) if (one := pool.started()) is not None]


def _end() -> None:
    queue.background.end(close_workers)


at_exit(_end)
_pid = os.getpid()


def is_ending() -> bool:
    """Return whether Python is ending and the compile workers are gone for good."""
    return any(pool.ended for pool in list(_pools.values()))


def is_forked() -> bool:
    """Return whether this process is a forked child of the one that imported us."""
    return os.getpid() != _pid


def _after_fork() -> None:
    # The pipes are the parent's; a lock may have been held by a thread that is not here.
    global _lock
    _lock = threading.RLock()
    for service in _started():
        service.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
