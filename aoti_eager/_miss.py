"""One call whose key is not in the table: find its kernel, or compile and check it, or decline.

With ``_kernel_cache`` the only place that decides policy, and the one that turns an error of ours
into "run the original".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import get_ident
from typing import Any, Protocol

from torch import Tensor

from . import _backend
from ._compat import OpOverload
from ._compile import Compiled
from ._declines import call_decline
from ._entries import failed_entry, ready_entry
from ._entry import Entry, Status
from ._kernel import Kernel, call_inputs
from ._key import ANY_THREADS, kernel_key
from ._live_check import LiveCheck
from ._native_key import native_key, words_of_values
from ._original import OriginalKernel
from ._passthrough import passthrough
from ._python_function import Description, PythonFunction
from ._schema import Kind, OpSchema
from ._stats import OpCounters
from ._store import StoredEntry
from ._table import Decline, Table, TableKey
from ._template import call_template
from ._toolchain import Toolchain
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
    UnsupportedFunctionError,
)

log = logging.getLogger("aoti_eager")

# Threads that wait for the compiler. What they call meanwhile (in a signal handler) must not wait
# for them.
compiling: set[int] = set()

_NOTHING = object()


class Cache(Protocol):
    """What a miss needs of the kernel cache that it happened in."""

    op: OpOverload
    schema: OpSchema
    dispatch_key: str
    original: OriginalKernel
    counters: OpCounters
    entrance: Callable[..., Any]
    lookup: Callable[[TableKey], Kernel | None]
    table: Table
    toolchain: Toolchain
    function: PythonFunction | None

    def describe_function(self) -> tuple[Description | None, list[Tensor]]:
        """Return the op's Python function as data, if it has one, and its constants."""

    def key_context(
        self, toolchain: Toolchain, function: Description | None
    ) -> Sequence[tuple[str, Any]]:
        """Return what the key holds besides arguments and settings."""

    def decline(
        self, key: TableKey, reason: str, message: str, words: bytes | None = None
    ) -> Decline:
        """Decline calls under ``key`` from now on; ``words`` is the same key in C++."""


class Miss:
    """One call whose key is not in the table: find, or compile and check, or decline."""

    def __init__(
        self,
        cache: Cache,
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
        # Of this moment: another thread may register another backend meanwhile.
        self._toolchain = cache.toolchain
        self._result: Any = _NOTHING
        self._raised: BaseException | None = None
        self._counted = False
        self._words: bytes | None = None

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
                self._function, constants = cache.describe_function()
                self._key = kernel_key(
                    cache.schema,
                    cache.dispatch_key,
                    values,
                    overridden=cache.original.overridden,
                    more=cache.key_context(self._toolchain, self._function),
                )
                self._template = call_template(cache.schema, self._key)
                overlaps = bool(cache.schema.mutated) and self._mutation_overlaps()
                self._words = native_key(cache.schema, self._key, overlaps=overlaps)
        except UnsupportedArgumentError as error:
            self._words = words_of_values(cache.schema, cache.dispatch_key, values)
            return self._declined(error.reason, str(error))
        except UnsupportedFunctionError as error:
            return self._declined("unsupported_function", f"{self._op}: its function {error}")
        reason = call_decline(self._template)
        if reason is None and overlaps:
            reason = "mutated_argument_overlaps"
        if reason is not None:
            return self._declined(reason, f"{self._op}: {reason}")
        if cache.function is not None and cache.function.snapshot()[0] != self._table_key[0]:
            # Another thread changed what the function uses since this call's key was made.
            return self._original()
        self._inputs = [*call_inputs(cache.schema, values), *constants]
        self._live = LiveCheck(cache.op, self._template, cache.original, self._keyset, self._inputs)
        try:
            found = self._from_store()
        except StoreError as error:
            return self._store_failed(error)
        if found is not None:
            return self._serve(found)
        if config.mode == "cache_only":
            return self._declined("not_in_cache", f"{self._op}: not in the cache")
        if len(cache.table.kernels) >= config.static_cap:
            return self._declined(
                "specialisation_cap", f"{self._op}: has {config.static_cap} specialisations"
            )
        return self._compile()

    def _mutation_overlaps(self) -> bool:
        # The table key has the answer just before the four values of the context.
        # A function's state and constants come first.
        with_constants = self._cache.function is not None and self._table_key[1]
        return bool(self._table_key[-5] or with_constants)

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
        if kernel.parallel and _backend.is_forked():
            return self._declined("forked", "OpenMP's threads stayed with the parent")
        if self._wants_check(entry):
            before = self._live.copies()
            result = self._original()
            problems = self._live.problems(kernel, entry.outputs, result, before)
            if problems:
                self._quarantine(found, problems)
                self._decline_next("mismatch", "; ".join(problems))
            else:
                self._publish_to_table(kernel)
            return result
        was_native = kernel.native() is not None
        self._publish_to_table(kernel)
        self._counted = True
        try:
            return self._cache.entrance(self._keyset, *self._args, **self._kwargs)
        except BaseException as error:
            self._raised = error  # The original's, or a run that may have written to an argument.
            raise
        finally:
            if kernel.native() is not None and not was_native:
                self._publish_to_table(kernel)  # C++ takes some kernels after their first run.

    def _load(self, library: Any, entry: Entry) -> Kernel:
        runner = self._toolchain.load(library, entry, self._inputs)
        plain = all(
            argument.kind is Kind.TENSOR and isinstance(component, dict) and "dtype" in component
            for argument, (_, component) in zip(
                self._cache.schema.arguments, self._key.arguments, strict=True
            )
            if argument.is_tensor
        )
        parallel = dict(entry.key.context)["threads"] != ANY_THREADS
        return Kernel(
            self._cache.schema,
            runner,
            entry.outputs,
            plain=plain,
            parallel=parallel,
            words=self._words,
        )

    # -- a kernel from the compiler --

    def _compile(self) -> Any:
        before = self._live.copies() if self._checks else []
        sizes_before = [(t.shape, t.stride()) for t in self._inputs]
        # First of all: an invalid call raises the original's own exception, and nothing else runs.
        result = self._original()
        if (
            self._cache.function is not None
            and self._cache.function.snapshot()[0] != self._table_key[0]
        ):
            self._decline_next("mutates_constant", f"{self._op}: a call changes what it uses")
            return result
        if sizes_before != [(t.shape, t.stride()) for t in self._inputs]:
            self._decline_next("out_resized", f"{self._op}: the original resized an argument")
            return result
        ident = get_ident()
        compiling.add(ident)
        try:
            self._compile_and_check(result, before)
        except CompileError as error:
            self._cache.counters.failures.add()
            self._decline_next(error.reason, str(error))
            if not error.remember:
                if config.strict:
                    raise
                if not _backend.is_ending():
                    warn_once(error.reason, f"{error}; originals run instead")
        except StoreError as error:
            self._store_problem(error)
        finally:
            compiling.discard(ident)
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
                compiled = self._toolchain.compile(self._template, self._function, backend, work)
            except CompileError as error:
                if error.remember:
                    target, requires = self._toolchain.target(backend)
                    entry = failed_entry(
                        self._key,
                        backend.environment,
                        target,
                        requires,
                        reason=error.reason,
                        message=str(error),
                    )
                    backend.store.publish(entry, work, None, error.log)
                raise
            self._use(compiled, result, before, work, backend)

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
        if kernel.parallel and _backend.is_forked():
            # Before the check: it would run the kernel, too.
            self._decline_next("forked", "OpenMP's threads stayed with the parent")
            return
        if self._wants_check(found.entry):
            problems = self._live.problems(kernel, found.entry.outputs, result, before)
            if problems:
                self._quarantine(found, problems)
                self._decline_next("mismatch", "; ".join(problems))
                return
        self._publish_to_table(kernel)

    def _use(
        self,
        compiled: Compiled,
        result: Any,
        before: list[Tensor],
        work: Any,
        # That of the compile: the setting may be another by now, and the code is not.
        backend: _backend.Backend,
    ) -> None:
        target, requires = self._toolchain.target(backend)
        entry = ready_entry(
            self._key,
            backend.environment,
            target,
            requires,
            outputs=compiled.outputs,
            calls_aten=compiled.calls_aten,
            parallel=compiled.parallel,
            compiler=compiled.compiler,
            checked=self._checks,
            portable=self._toolchain.is_portable,
        )
        try:
            kernel = self._load(compiled.library, entry)
        except RunnerError as error:
            raise CompileError("library_unloadable", str(error), remember=False) from error
        if kernel.parallel and _backend.is_forked():
            self._decline_next("forked", "OpenMP's threads stayed with the parent")
            return
        problems: list[str] = []
        if self._checks:
            problems = self._live.problems(kernel, entry.outputs, result, before)
        if problems:
            message = "; ".join(problems)
            entry = replace(entry, status=Status.QUARANTINED, reason="mismatch", message=message)
            backend.store.publish(entry, work, compiled.library, message)
            log.warning("%s: its library is quarantined: %s", self._op, message)
            self._cache.counters.failures.add()
            self._decline_next("mismatch", message)
            return
        # Usable even if the store turns out to be full: the library is mapped already.
        self._publish_to_table(kernel)
        backend.store.publish(entry, work, compiled.library, "")

    @property
    def _checks(self) -> bool:
        return bool(config.check) or self._cache.original.overridden

    def _wants_check(self, entry: Entry) -> bool:
        """Return whether a stored library must be compared here before it serves calls."""
        return (self._checks and not entry.checked) or self._cache.original.overridden

    # -- outcomes --

    def _original(self) -> Any:
        try:
            self._result = self._cache.original(self._keyset, self._args, self._kwargs)
        except BaseException as error:
            self._raised = error
            raise
        return self._result

    def _publish_to_table(self, kernel: Kernel) -> None:
        self._cache.table.put(self._table_key, kernel)

    def _decline_next(self, reason: str, message: str) -> None:
        """Decline this key from the next call on; this call has its result."""
        decline = self._cache.decline(self._table_key, reason, message, self._words)
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
