"""Per op: key, lookup, hit, miss. The only place that decides policy.

It is also the one place that turns an error of ours into "run the original".
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from torch import Tensor

from . import _backend, _compat
from ._check import (
    copy_mutated,
    copy_tensor,
    differences,
    float64_reference,
    fresh_results,
)
from ._compat import OpOverload
from ._compile import Compiled
from ._declines import DEPENDS_ON_THREADS, call_decline, op_decline
from ._entrance import entrance
from ._entry import Entry, Status
from ._kernel import Kernel, call_inputs
from ._key import ANY_THREADS, KernelKey, kernel_key, table_key_function
from ._original import OriginalKernel
from ._passthrough import passing, passthrough
from ._runner import DEVICE_TYPES, LibraryRunner
from ._schema import Kind, op_schema
from ._stats import Counter, OpCounters
from ._store import StoredEntry
from ._template import call_template
from ._warnings import warn_once
from .config import config
from .errors import (
    AotiEagerError,
    CompileError,
    EntryDamagedError,
    OriginalKernelError,
    RunnerError,
    StoreError,
    UnsupportedArgumentError,
)

log = logging.getLogger("aoti_eager")

TableKey = tuple[Any, ...]


_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Decline:
    """The decision to keep the original kernel for a key."""

    reason: str
    message: str
    count: Counter


@dataclass(frozen=True, slots=True)
class _Tables:
    """The in-memory tables of one op for one cache directory."""

    kernels: dict[TableKey, Kernel]
    declines: dict[TableKey, Decline]


class KernelCache:
    """The kernel that is registered for one overload at one dispatch key.

    Args:
        op: The overload.
        dispatch_key: Name of a Dense backend key, ``CPU``.

    Raises:
        RuntimeError: The op has no kernel at that key.
    """

    def __init__(self, op: OpOverload, dispatch_key: str) -> None:
        self.op = op
        self.schema = op_schema(op)
        self.dispatch_key = dispatch_key
        self.original = OriginalKernel(op, self.schema, dispatch_key)
        self.counters = OpCounters()
        self.key = table_key_function(self.schema, dispatch_key)
        self._in_flight: dict[TableKey, threading.RLock] = {}
        self._flight_lock = threading.Lock()
        self._enabled = True
        reason = op_decline(op, self.schema)
        if reason is None and _backend.device_type(dispatch_key) not in DEVICE_TYPES:
            reason = "unsupported_device"
        self.lookup: Callable[[TableKey], Kernel | None]
        self.bypassed: bool
        self._always = None if reason is None else self.counters.declined(reason)
        self.always_declined = reason
        self._tables: dict[object, _Tables] = {}
        self.refresh()
        self.entrance = entrance(self)

    # -- state --

    def refresh(self) -> None:
        """Take over the mode; called after every change of a setting."""
        mode = config.mode
        tables = self._tables.setdefault(config.table_token, _Tables({}, {}))
        self._tables = {t: v for t, v in self._tables.items() if t in config.table_tokens}
        self._kernels, self._declines = tables.kernels, tables.declines
        # Bound once: looking the method up on every call costs as much as the lookup.
        self.lookup = self._kernels.get
        self.bypassed = not self._enabled or mode == "off" or self._always is not None
        self._counts_bypass = self._enabled and mode != "off" and self._always is not None
        if mode != "cache_only":
            # What was not in the cache may be compiled now.
            for key, decline in list(self._declines.items()):
                if decline.reason == "not_in_cache":
                    self._declines.pop(key, None)

    def set_enabled(self, enabled: bool) -> None:
        """Serve calls, or pass them through. A flag: safe while other threads call."""
        self._enabled = enabled
        self.refresh()

    def close(self) -> None:
        """Let go of all libraries: torch keeps the entrance of an op even after it is destroyed."""
        self._enabled = False
        self.refresh()
        for tables in self._tables.values():
            tables.kernels.clear()
            tables.declines.clear()

    def after_fork(self) -> None:
        """Forget what threads of the parent held: they are not in this process."""
        self._in_flight = {}
        self._flight_lock = threading.Lock()
        for kernel in self._kernels.values():
            kernel.lock = threading.Lock()

    def state_of(self, key: TableKey) -> Kernel | Decline | None:
        """Return what the tables hold under ``key``, for ``explain``; nothing is counted."""
        return self.lookup(key) or self._declines.get(key)

    # -- hit: inlined in the entrance; what follows is its way out --

    def run_failed(
        self,
        error: RuntimeError,
        keyset: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Return the original's result for a hit that raised, where nothing was mutated.

        Raises:
            RunnerError: The op writes to an argument, and the library may have begun to.
        """
        self.counters.failures.add()
        key = self.key(*args, **kwargs)
        self._decline(key, "run_failed", str(error)).count.add()
        self._kernels.pop(key, None)
        if self.schema.mutated:
            raise RunnerError(
                f"{self.schema.op}: the kernel library failed after it may have written to an "
                f"argument, so the original cannot run instead: {error}"
            ) from error
        warn_once(
            "run_failed",
            f"{self.schema.op}: a kernel library failed, the original runs from now on: {error}",
        )
        return self.original(keyset, args, kwargs)

    # -- pass through --

    def bypass(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the original's result: disabled, off, inside our own work, or never served."""
        if self._counts_bypass and self._always is not None and get_ident() not in passing:
            self._always.add()
        return self.original(keyset, args, kwargs)

    def _decline(self, key: TableKey, reason: str, message: str) -> Decline:
        decline = Decline(reason, message, self.counters.declined(reason))
        self._declines[key] = decline
        log.info("%s: declined (%s): %s", self.schema.op, reason, message)
        return decline

    # -- miss --

    def miss(
        self, key: TableKey, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the call's result and, if it can be had, put its kernel into the table."""
        decline = self._declines.get(key)
        if decline is not None:
            decline.count.add()
            return self.original(keyset, args, kwargs)
        if _compat.is_tracing():
            # Not remembered: the same key outside of the trace is worth a kernel.
            self.counters.declined("tracing").add()
            return self.original(keyset, args, kwargs)
        with self._single_flight(key):
            kernel = self.lookup(key)
            decline = self._declines.get(key)
            if kernel is None and decline is None:
                try:
                    return _Miss(self, key, keyset, args, kwargs).resolve()
                finally:
                    self._in_flight.pop(key, None)
        if decline is not None:
            decline.count.add()
            return self.original(keyset, args, kwargs)
        # Another thread compiled it meanwhile.
        return self.entrance(keyset, *args, **kwargs)

    def _single_flight(self, key: TableKey) -> threading.RLock:
        # One lock a key: threads that miss together wait for one compile. Re-entrant, because an
        # original may be a Python kernel that calls the op again.
        with self._flight_lock:
            return self._in_flight.setdefault(key, threading.RLock())


class _Miss:
    """One call whose key is not in the table: find, or compile and check, or decline."""

    def __init__(
        self,
        cache: KernelCache,
        key: TableKey,
        keyset: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._cache = cache
        self._table_key = key
        self._keyset = keyset
        self._args = args
        self._kwargs = kwargs
        self._op = cache.schema.op
        self._result: Any = _NOTHING
        self._raised: BaseException | None = None
        self._counted = False

    def resolve(self) -> Any:
        """Return the call's result; the table has a kernel or a decline for its key afterwards.

        Every call is counted once: as a hit if a stored kernel served it, as a decline if the
        original ran for a reason, else as a miss.
        """
        try:
            return self._resolve()
        except Exception as error:
            if error is self._raised or isinstance(error, OriginalKernelError) or config.strict:
                raise
            # An error of ours, in a call that PyTorch would have run: the original runs.
            log.exception("%s: internal error", self._op)
            warn_once("internal_error", f"{self._op}: {error!r}; the original runs instead")
            self._decline_next("internal_error", repr(error))
            return self._original() if self._result is _NOTHING else self._result
        finally:
            if not self._counted:
                self._cache.counters.misses.add()

    def _resolve(self) -> Any:
        cache = self._cache
        try:
            with passthrough():
                values = cache.schema.bind(self._args, self._kwargs)
                self._key = kernel_key(
                    cache.schema,
                    cache.dispatch_key,
                    values,
                    overridden=cache.original.overridden,
                )
                self._template = call_template(cache.schema, self._key)
        except UnsupportedArgumentError as error:
            return self._declined(error.reason, str(error))
        reason = call_decline(self._template)
        if reason is None and cache.schema.mutated and self._mutation_overlaps():
            reason = "mutated_argument_overlaps"
        if reason is not None:
            return self._declined(reason, f"{self._op}: {reason}")
        self._inputs = call_inputs(cache.schema, values)
        try:
            found = self._from_store()
        except StoreError as error:
            return self._store_failed(error)
        if found is not None:
            return self._serve(found)
        if config.mode == "cache_only":
            return self._declined("not_in_cache", f"{self._op}: not in the cache")
        if len(cache._kernels) >= config.static_cap:
            return self._declined(
                "specialisation_cap", f"{self._op}: has {config.static_cap} specialisations"
            )
        return self._compile()

    def _mutation_overlaps(self) -> bool:
        # The table key has the answer just before the four values of the context.
        return bool(self._table_key[-5])

    # -- a kernel from the store --

    def _from_store(self) -> StoredEntry | None:
        backend = _backend.current()
        for key in (self._key.with_threads(ANY_THREADS), self._key):
            try:
                found = backend.store.find(key, backend.environment, backend.features)
                if found is not None and found.entry.status is Status.READY:
                    backend.store.check_library(found)
            except EntryDamagedError as error:
                if config.strict:
                    raise
                log.warning("%s; it is removed and made anew", error)
                backend.discard(error)
                continue
            except AotiEagerError as error:
                if isinstance(error, StoreError) and not hasattr(error, "path"):
                    raise
                log.warning("%s; it is passed over", error)
                continue
            if found is not None:
                return found
        return None

    def _serve(self, found: StoredEntry) -> Any:
        entry = found.entry
        if entry.status is not Status.READY:
            reason = entry.reason or "mismatch"
            return self._declined(reason, entry.message or reason)
        try:
            kernel = self._load(found.library_path, entry)
        except RunnerError as error:
            return self._declined("library_unloadable", str(error))
        if self._wants_check(entry):
            before = self._copies()
            result = self._original()
            problems = self._check(kernel, entry.outputs, result, before)
            if problems:
                self._quarantine(found, problems)
                self._decline_next("mismatch", "; ".join(problems))
            else:
                self._publish_to_table(kernel)
            return result
        self._publish_to_table(kernel)
        self._counted = True
        return self._cache.entrance(self._keyset, *self._args, **self._kwargs)

    def _load(self, library: Any, entry: Entry) -> Kernel:
        runner = LibraryRunner(library, calls_aten=entry.calls_aten)
        plain = all(
            argument.kind is Kind.TENSOR and isinstance(component, dict) and "dtype" in component
            for argument, (_, component) in zip(
                self._cache.schema.arguments, self._key.arguments, strict=True
            )
            if argument.is_tensor
        )
        return Kernel(self._cache.schema, runner, entry.outputs, plain=plain)

    # -- a kernel from the compiler --

    def _compile(self) -> Any:
        before = self._copies() if self._checks else []
        sizes_before = [(t.shape, t.stride()) for t in self._inputs]
        # First of all: an invalid call raises the original's own exception, and nothing else runs.
        result = self._original()
        if sizes_before != [(t.shape, t.stride()) for t in self._inputs]:
            self._decline_next("out_resized", f"{self._op}: the original resized an argument")
            return result
        try:
            self._compile_and_check(result, before)
        except CompileError as error:
            self._cache.counters.failures.add()
            self._decline_next(error.reason, str(error))
            if not error.remember:
                if config.strict:
                    raise
                warn_once(error.reason, f"{error}; originals run instead")
        except StoreError as error:
            self._store_problem(error)
        return result

    def _compile_and_check(self, result: Any, before: list[Tensor]) -> None:
        backend = _backend.current()
        with backend.store.locked(self._key), backend.store.workspace() as work:
            # Another process may have compiled it while this one waited for the lock.
            found = self._from_store()
            if found is not None:
                self._adopt(found, result, before)
                return
            self._cache.counters.compiles.add()
            try:
                compiled = backend.service.compile(
                    self._key,
                    work,
                    backend.toolchain,
                    check=config.check,
                    timeout_s=config.compile_timeout_s,
                )
            except CompileError as error:
                if error.remember:
                    status = Status.QUARANTINED if error.reason == "mismatch" else Status.DECLINED
                    key = self._key
                    if error.reason not in DEPENDS_ON_THREADS:
                        key = key.with_threads(ANY_THREADS)
                    entry = self._entry(status, reason=error.reason, message=str(error), key=key)
                    backend.store.publish(entry, work, None, error.log)
                raise
            self._use(compiled, result, before, work)

    def _adopt(self, found: StoredEntry, result: Any, before: list[Tensor]) -> None:
        """Put an entry that another process published meanwhile into the table."""
        if found.entry.status is not Status.READY:
            reason = found.entry.reason or "mismatch"
            self._decline_next(reason, found.entry.message or reason)
            return
        try:
            kernel = self._load(found.library_path, found.entry)
        except RunnerError as error:
            self._decline_next("library_unloadable", str(error))
            return
        if self._wants_check(found.entry):
            problems = self._check(kernel, found.entry.outputs, result, before)
            if problems:
                self._quarantine(found, problems)
                self._decline_next("mismatch", "; ".join(problems))
                return
        self._publish_to_table(kernel)

    def _use(self, compiled: Compiled, result: Any, before: list[Tensor], work: Any) -> None:
        backend = _backend.current()
        threads = dict(self._key.context)["threads"]
        # Code without parallel regions is the same for every thread count, unless it has none
        # only because there was one thread to compile for.
        any_threads = not compiled.parallel and threads > 1
        entry = self._entry(
            Status.READY,
            outputs=compiled.outputs,
            calls_aten=compiled.calls_aten,
            checked=self._checks,
            provenance=(("compiler", compiled.compiler),),
            key=self._key.with_threads(ANY_THREADS) if any_threads else self._key,
        )
        try:
            kernel = self._load(compiled.library, entry)
        except RunnerError as error:
            raise CompileError("library_unloadable", str(error), remember=False) from error
        problems: list[str] = []
        if self._checks:
            problems = self._check(kernel, entry.outputs, result, before)
        if problems:
            message = "; ".join(problems)
            entry = self._entry(
                Status.QUARANTINED, reason="mismatch", message=message, key=entry.key
            )
            backend.store.publish(entry, work, compiled.library, message)
            log.warning("%s: its library is quarantined: %s", self._op, message)
            self._cache.counters.failures.add()
            self._decline_next("mismatch", message)
            return
        # Usable even if the store turns out to be full: the library is mapped already.
        self._publish_to_table(kernel)
        backend.store.publish(entry, work, compiled.library, "")

    def _entry(self, status: Status, *, key: KernelKey | None = None, **fields: Any) -> Entry:
        backend = _backend.current()
        return Entry(
            status=status,
            key=key or self._key,
            environment=backend.environment,
            target=backend.target.name,
            requires=backend.target.requires,
            **fields,
        )

    # -- check --

    @property
    def _checks(self) -> bool:
        return bool(config.check) or self._cache.original.overridden

    def _wants_check(self, entry: Entry) -> bool:
        """Return whether a stored library must be compared here before it serves calls."""
        return (self._checks and not entry.checked) or self._cache.original.overridden

    def _copies(self) -> list[Tensor]:
        with passthrough():
            return copy_mutated(self._template, self._inputs)

    def _check(
        self,
        kernel: Kernel,
        outputs: Sequence[Mapping[str, Any]],
        result: Any,
        before: list[Tensor],
    ) -> list[str]:
        """Return what differs between the library's run and the original's ``result``."""
        with passthrough():
            problems = self._compare(kernel, outputs, result, self._inputs, before)
            if problems:
                # Another thread may have written to the arguments meanwhile: once more, with
                # copies that are ours alone.
                problems = self._compare_on_copies(kernel, outputs)
            return problems

    def _compare(
        self,
        kernel: Kernel,
        outputs: Sequence[Mapping[str, Any]],
        result: Any,
        after: Sequence[Tensor],
        before: Sequence[Tensor],
    ) -> list[str]:
        mine = copy_mutated(self._template, before)
        try:
            with kernel.lock:
                got = kernel.run(mine)
        except RuntimeError as error:
            return [f"the library raised: {error}"]
        expected = fresh_results(outputs, result, len(self._cache.schema.returns))

        def reference() -> Any:
            copies = [copy_tensor(tensor) for tensor in before]
            return float64_reference(self._template, copies, self._cache.op, outputs)

        return differences(self._template, expected, got, after, mine, reference)

    def _compare_on_copies(self, kernel: Kernel, outputs: Sequence[Mapping[str, Any]]) -> list[str]:
        before = [copy_tensor(tensor) for tensor in self._inputs]
        theirs = [copy_tensor(tensor) for tensor in before]
        args, kwargs = self._template.arguments(theirs, as_number=lambda number: number.item())
        result = self._cache.original(self._keyset, args, kwargs)
        return self._compare(kernel, outputs, result, theirs, before)

    # -- outcomes --

    def _original(self) -> Any:
        try:
            self._result = self._cache.original(self._keyset, self._args, self._kwargs)
        except BaseException as error:
            self._raised = error
            raise
        return self._result

    def _publish_to_table(self, kernel: Kernel) -> None:
        self._cache._kernels[self._table_key] = kernel

    def _decline_next(self, reason: str, message: str) -> None:
        """Decline this key from the next call on; this call has its result."""
        decline = self._cache._decline(self._table_key, reason, message)
        if not self._counted:
            decline.count.add()
            self._counted = True

    def _declined(self, reason: str, message: str) -> Any:
        self._decline_next(reason, message)
        return self._original()

    def _quarantine(self, found: StoredEntry, problems: list[str]) -> None:
        self._cache.counters.failures.add()
        try:
            _backend.current().store.quarantine(found, "mismatch", "; ".join(problems))
        except StoreError as error:
            self._store_problem(error)

    def _store_problem(self, error: StoreError) -> None:
        if config.strict:
            raise error
        warn_once("store", f"{error}; kernels are not kept, originals run instead")
        if self._cache.lookup(self._table_key) is None:
            self._decline_next("store_unwritable", str(error))

    def _store_failed(self, error: StoreError) -> Any:
        self._store_problem(error)
        return self._original()
