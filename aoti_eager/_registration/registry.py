"""Put kernels into PyTorch's dispatcher and take them out again.

PyTorch's dispatcher is not safe against changes while other threads call: its readers take no lock.
Register before concurrent calls and unregister after them; everything else (``disable``, modes,
scopes) only flips flags inside our own kernels.

Longer than 350 lines, because all that changes what is registered shares one lock and its tables.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from types import TracebackType

import torch

from .._base.at_exit import at_exit
from .._base.torch_compat import dispatcher
from .._base.torch_compat.dispatcher import OpOverload
from .._compile_service import device_backends, native_path, queue, this_torch
from .._dispatch import recheck
from .._dispatch.counters import OpStats, unfinished_of_others
from .._dispatch.kernel_cache import KernelCache
from .._dispatch.key_state import QUEUED
from .._dispatch.original import OriginalKernel
from .._keys.declines import REASONS
from .._keys.schema import op_schema, qualified_name
from ..config import config
from ..errors import RegistrationError
from .miss_imports import prepare_for_misses
from .registered_op import Installed, install
from .resolve import (
    Op,
    can_serve,
    check_dispatch_key,
    has_composite_kernel,
    refused_composite,
    resolve,
)
from .totals import store_totals

_lock = threading.RLock()
_observers: list[Callable[[], None]] = []
_installed: dict[tuple[str, str], Installed] = {}
# Kernels in callers' libraries; the libraries decide how long the kernels stay.
_foreign: list[tuple[weakref.ref[torch.library.Library], KernelCache]] = []
_retired: dict[str, OpStats] = {}  # counts of ops that were unregistered
# Whether an op may be served by Python though C++ could serve it.
_may_switch = True


class Registration:
    """Ops that are served by kernel libraries until ``unregister``; also a context manager.

    Attributes:
        dispatch_key: Name of the dispatch key.
        ops: Qualified names of the overloads that were registered.
        skipped: Overloads that were left out, with the reason of each: those of a named packet that
            cannot be served, and all while this torch may not serve.
    """

    def __init__(self, dispatch_key: str) -> None:
        self.dispatch_key = dispatch_key
        # Not id(self): a handle may be dropped, and its id given to another.
        self._token = object()
        self.ops: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Registration of {len(self.ops)} ops at {self.dispatch_key}>"

    def disable(self) -> None:
        """Pass calls through to the originals. A flag in the kernel: safe at any time.

        An op that another registration holds too stays in use until that one is disabled as well.
        """
        self._set(False)

    def enable(self) -> None:
        """Serve calls again after ``disable``. A flag in the kernel: safe at any time."""
        self._set(True)

    def select(self, ops: Collection[str]) -> None:
        """Serve those of its ops that are named, and pass the calls of the others through.

        Args:
            ops: Qualified names, as in the attribute ``ops``; others are passed over.
        """
        with _lock:
            for name in self.ops:
                _installed[name, self.dispatch_key].set_holder(self._token, name in ops)

    def unregister(self) -> None:
        """Restore what was registered before, in any order with other registrations.

        Not while other threads call the ops: PyTorch's dispatcher crashes on that. A second call
        does nothing.
        """
        with _lock:
            ops, self.ops = self.ops, ()
            for name in ops:
                _release(name, self.dispatch_key, self._token)

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unregister()

    def _set(self, enabled: bool) -> None:
        with _lock:
            for name in self.ops:
                _installed[name, self.dispatch_key].set_holder(self._token, enabled)


def register(ops: Op | Iterable[Op], dispatch_key: str = "CPU") -> Registration:
    """Serve the calls of ``ops`` by kernel libraries, and return the handle that undoes it.

    Call it before other threads call the ops: PyTorch's dispatcher is not safe against changes
    while calls run.

    Args:
        ops: An op's name, alone (``"aten::gelu"``: all overloads that can be served) or with its
            overload (``"aten::add.Tensor"``), an ``OpOverload``, an ``OpOverloadPacket``, or a
            list of these.
        dispatch_key: Name of a Dense backend key: ``CPU``, ``CUDA``, ``XPU``, ``PrivateUse1``, ...

    Raises:
        UnknownOpError: There is no op of that name.
        CompositeImplicitOpError: The op is decomposed before it reaches a backend.
        RegistrationError: The op has no kernel at ``dispatch_key``, or the key is no backend's.
        ConfigError: A setting holds a value that it does not take.
    """
    config.validate()
    check_dispatch_key(dispatch_key)
    registration = Registration(dispatch_key)
    wanted, registration.skipped = resolve(ops, dispatch_key)
    if not can_serve():
        if this_torch.is_refused():
            why = REASONS[this_torch.REASON]
            registration.skipped.update((qualified_name(op), why) for op in wanted)
        return registration
    native = native_path.prepare()  # before the lock: it may wait for a build
    with _lock:
        if native:
            switch_to_native()
        try:
            for op in wanted:
                name = qualified_name(op)
                _hold(op, name, dispatch_key, registration._token)
                registration.ops = (*registration.ops, name)
        except BaseException:
            registration.unregister()
            raise
    try:
        recheck.publish()
        prepare_for_misses()
    except BaseException:
        registration.unregister()  # The caller gets no handle.
        raise
    return registration


def register_cache(cache: KernelCache) -> Registration:
    """Serve the calls of an op that this package has just defined, and that nobody calls yet."""
    registration = Registration(cache.dispatch_key)
    with _lock:
        installed = Installed(cache.op, cache)
        installed.install(None)
        _note_native(cache)
        _installed[cache.schema.op, cache.dispatch_key] = installed
        installed.set_holder(registration._token, True)
    registration.ops = (cache.schema.op,)
    return registration


def impl(library: torch.library.Library, op: Op, dispatch_key: str = "CPU") -> None:
    """Register ``op`` in the caller's ``library``, for as long as the library lives.

    Args:
        library: The caller's library; its namespace must be the op's, or ``op`` must be qualified.
        op: As for ``register``; a name without a namespace is taken in the library's.
        dispatch_key: Name of a Dense backend key.

    Raises:
        UnknownOpError: There is no op of that name.
        CompositeImplicitOpError: The op is decomposed before it reaches a backend.
        RegistrationError: The op has no kernel at ``dispatch_key``, or the key is no backend's.
        ConfigError: A setting holds a value that it does not take.
    """
    config.validate()
    check_dispatch_key(dispatch_key)
    if isinstance(op, str) and "::" not in op:
        op = f"{library.ns}::{op}"
    wanted, _ = resolve(op, dispatch_key)
    for overload in wanted:
        if has_composite_kernel(overload, dispatch_key):
            raise refused_composite(overload, "a library of the caller's")
    this_torch.may_serve()  # The kernels decline calls until it does.
    with _lock:
        for overload in wanted:
            cache, _ = _make_cache(overload, dispatch_key)
            install(library, overload, cache)
            _foreign.append((weakref.ref(library), cache))
            _note_native(cache)
    recheck.publish()


def registered_ops() -> list[str]:
    """Return the qualified names of all overloads that are registered, sorted."""
    with _lock:
        return sorted({cache.schema.op for cache in caches()})


def caches() -> list[KernelCache]:
    """Return the kernels that are in the dispatcher, those in callers' libraries included."""
    with _lock:
        foreign = _living_foreign()
        return [i.cache for i in _installed.values()] + foreign


def _living_foreign() -> list[KernelCache]:
    """Return the kernels in callers' libraries; those whose library is gone are retired."""
    for pair in list(_foreign):
        if not dispatcher.is_alive(pair[0]()):
            _foreign.remove(pair)
            _retire(pair[1])
    return [cache for _, cache in _foreign]


def find_cache(op: OpOverload, dispatch_key: str) -> KernelCache | None:
    """Return the kernel of ``op`` at ``dispatch_key``, or ``None`` if it is not registered."""
    # By name: torch.ops may give another object for an op that was made again.
    name = qualified_name(op)
    installed = _installed.get((name, dispatch_key))
    if installed is not None:
        return installed.cache
    with _lock:
        foreign = _living_foreign()
    return next(
        (c for c in foreign if c.schema.op == name and c.dispatch_key == dispatch_key), None
    )


def stats() -> dict[str, OpStats]:
    """Return what happened to the calls of each op in this process, by qualified name."""
    with _lock:
        registered = caches()  # first: it may retire some caches
        totals = dict(_retired)
        for cache in registered:
            totals[cache.schema.op] = totals.get(cache.schema.op, OpStats()) + cache.stats()
        for op, number in unfinished_of_others().items():
            totals[op] = totals.get(op, OpStats()) + OpStats(unfinished={QUEUED: number})
    return dict(sorted(totals.items()))


def _hold(op: OpOverload, name: str, dispatch_key: str, holder: object) -> None:
    installed = _installed.get((name, dispatch_key))
    if installed is None:
        composite = has_composite_kernel(op, dispatch_key)
        original = OriginalKernel(op, op_schema(op), "AutogradCPU") if composite else None
        cache, above = _make_cache(op, dispatch_key)
        installed = Installed(op, cache)
        installed.install(above)
        _note_native(cache)
        _installed[name, dispatch_key] = installed
        if original is not None:
            try:
                from .composite_gradients import composite_gradients

                installed.gradients = composite_gradients(op, cache.schema, original, SERVING)
            except BaseException:
                del _installed[name, dispatch_key]
                installed.uninstall()
                raise
            on_native(installed.gradients.attach_native)
            installed.gradients.attach_native()
    installed.set_holder(holder, True)


def _release(name: str, dispatch_key: str, holder: object) -> None:
    installed = _installed[name, dispatch_key]
    installed.set_holder(holder, None)
    if installed.holders:
        return
    if installed.gradients is not None:
        forget_native(installed.gradients.attach_native)
        installed.gradients.close()
    del _installed[name, dispatch_key]
    installed.uninstall()
    _retire(installed.cache)


def _retire(cache: KernelCache) -> None:
    """Keep the counts of a kernel that is no longer registered."""
    name = cache.schema.op
    # Keys without a decision get no decision here any more.
    _retired[name] = _retired.get(name, OpStats()) + replace(cache.stats(), unfinished={})
    cache.close()


def switch_to_native() -> None:
    """Use the C++ hit path from now on; no op is called while ops are registered."""
    global _may_switch
    with _lock:
        if not _may_switch:
            return
        foreign = {(cache.op, cache.dispatch_key) for _, cache in _foreign}
        for (_, dispatch_key), installed in list(_installed.items()):
            # A second kernel of ours, in a caller's library, would become the original of C++.
            if (installed.cache.op, dispatch_key) not in foreign:
                installed.switch_to_native()
        for cache in caches():
            if cache.native is None and not cache.asks_native:
                cache.refresh()  # Python serves it, and asks C++ now whether to pass calls through.
        recheck.publish_first()  # C++ compares no served call before it is told when it may.
        for observer in list(_observers):
            observer()
        _may_switch = False
        for cache in caches():
            _note_native(cache)


def _note_native(cache: KernelCache) -> None:
    """Note whether C++ could serve an op that Python serves; under the lock."""
    global _may_switch
    if cache.native is None and (cache.function is None or cache.function.is_constant):
        _may_switch = True


class _Serving:
    """What ``_autograd.differentiable`` needs of this module."""

    @staticmethod
    def register(op: OpOverload) -> Registration:
        return register(op)

    @staticmethod
    def find(op: OpOverload) -> KernelCache | None:
        return find_cache(op, "CPU")


SERVING = _Serving()


def on_native(observer: Callable[[], None]) -> None:
    """Call ``observer`` whenever ops are put under the C++ hit path; no op is called meanwhile."""
    _observers.append(observer)


def forget_native(observer: Callable[[], None]) -> None:
    """Stop calling ``observer``: see ``on_native``."""
    if observer in _observers:
        _observers.remove(observer)


def _make_cache(op: OpOverload, dispatch_key: str) -> tuple[KernelCache, KernelCache | None]:
    """Return a kernel to register, and our kernel that is registered already, if there is one."""
    ours = find_cache(op, dispatch_key)
    try:
        composite = has_composite_kernel(op, dispatch_key)
        return KernelCache(op, dispatch_key, above=ours, is_composite=composite), ours
    except RuntimeError as error:
        raise RegistrationError(f"{qualified_name(op)}: {error}") from error


def _config_changed() -> None:
    for cache in caches():
        cache.refresh()


def _room_in_queue() -> None:
    for cache in caches():
        cache.table.forget_declines("queue_full")


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for cache in caches():
        cache.after_fork()


at_exit(lambda: store_totals(stats()))
config.on_change(_config_changed)
device_backends.on_change(_config_changed)
this_torch.on_change(_config_changed)
queue.on_room(_room_in_queue)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
