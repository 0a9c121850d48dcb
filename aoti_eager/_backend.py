"""What the caches of all ops share: the store, the environment, the compile workers.

One ``Backend`` belongs to one cache directory and CPU target; ``current`` gives that of the moment.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from . import _background
from ._base import scheduling
from ._base.at_exit import at_exit
from ._base.data_class import dataclass
from ._compat import privateuse1_device_type
from ._compile import CompileService
from ._environment import Environment, Target, cpu_features, cpu_target, current_environment
from ._store import Store
from ._verdict import Verdicts
from ._warnings import log
from .config import add_check, config
from .errors import EntryDamagedError, StoreError


@dataclass(frozen=True, slots=True)
class Backend:
    """The store at one directory with what is needed to fill it."""

    store: Store
    service: CompileService
    background_service: CompileService
    target: Target
    features: frozenset[str]

    @property
    def environment(self) -> Environment:
        """Return the environment of this moment: settings of Inductor may have changed."""
        return current_environment()

    @property
    def toolchain(self) -> Path:
        """Return the directory of what the compile workers keep."""
        return self.store.root / "toolchain"

    @property
    def verdicts(self) -> Verdicts:
        """Return what was measured here of the store's libraries."""
        return Verdicts(self.store.root)

    def discard(self, error: EntryDamagedError) -> None:
        """Remove the damaged entry that ``error`` is about, if the store can be written."""
        path = getattr(error, "path", None)
        if path is None:
            return
        try:
            self.store.discard(path)
        except StoreError as problem:
            log.info("%s", problem)


_backends: dict[tuple[Path, str], Backend] = {}
_services: dict[tuple[Target, int], CompileService] = {}  # by target and nice
_lock = threading.RLock()

# Where the setting is made or read first, and not inside of a call.
add_check("cpu_target", lambda setting: cpu_target(cpu_features(), setting))

# By how much the priority of workers that nobody waits for is lower than the script's. Not the
# lowest there is, but where ``_share`` gives them windows: a script that uses all cores for hours
# would never get its kernels.
_BACKGROUND_NICE = scheduling.BEHIND


def _service(target: Target, nice: int) -> CompileService:
    """Return the compile workers for ``target``, which serve every cache directory."""
    if (target, nice) not in _services:
        _services[target, nice] = CompileService(target, workers=config.workers, nice=nice)
    return _services[target, nice]


def current() -> Backend:
    """Return the backend of the cache directory and the CPU target set at this moment."""
    root, setting = config.cache_dir, config.cpu_target
    with _lock:
        backend = _backends.get((root, setting))
        if backend is None:
            features = cpu_features()
            target = cpu_target(features, setting)
            backend = Backend(
                store=Store(
                    root, lock_timeout_s=config.lock_timeout_s, preferred_target=target.name
                ),
                service=_service(target, 0),
                background_service=_service(target, _BACKGROUND_NICE),
                target=target,
                features=features,
            )
            _backends[root, setting] = backend
        # Settings may have changed since the directory was first used.
        backend.store.lock_timeout_s = config.lock_timeout_s
        return backend


def device_type(dispatch_key: str) -> str:
    """Return the device type that a Dense backend key stands for: ``CUDA`` -> ``cuda``."""
    if dispatch_key == "PrivateUse1":
        return privateuse1_device_type()
    return dispatch_key.lower()


def close_workers() -> None:
    """End the compile workers; the next compile starts new ones."""
    for service in list(_services.values()):
        service.close()


def _end() -> None:
    _background.background.end(close_workers)


at_exit(_end)
_pid = os.getpid()


def is_ending() -> bool:
    """Return whether Python is ending and the compile workers are gone for good."""
    return any(service.ended for service in list(_services.values()))


def is_forked() -> bool:
    """Return whether this process is a forked child of the one that imported us."""
    return os.getpid() != _pid


def _after_fork() -> None:
    # The pipes are the parent's; a lock may have been held by a thread that is not here.
    global _lock
    _lock = threading.RLock()
    for service in list(_services.values()):
        service.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
