"""A call without its tensors: how its kernel is found, loaded and judged."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .._base.cpp_compiler import compiler_identity
from .._base.data_class import dataclass
from .._base.sealed_library import SealedLibrary
from .._base.torch_compat.dispatcher import OpOverload
from .._base.warn_once import warn_of_function, warn_once
from .._compile_service import queue
from .._compile_service.cache_context import CacheContext
from .._compile_service.cache_context import current as current_backend
from .._compile_service.kernel_compiler import KernelCompiler
from .._keys.call_template import CallTemplate, call_template
from .._keys.kernel_key import ANY_THREADS, KernelKey
from .._keys.pattern import (
    number_arguments,
)
from .._keys.pattern_instances import (
    size_class,
)
from .._keys.schema import Kind, OpSchema
from .._native.op_kernel import NativeOp
from .._runner.kernel_runner import RELEASE_GIL_NUMEL
from .._store.entry import Entry, Status
from .._store.store import StoredEntry
from .._store.stored_failures import as_failure, standing
from .._store.stored_pattern import native_pattern
from .._store.verdict import PathTime, Verdict
from ..config import config
from ..errors import AotiEagerError, EntryDamagedError, StoreError
from .counters import Counter, OpCounters
from .kernel import Kernel
from .original import OriginalKernel
from .recheck import LIMIT_NUMEL, Recheck
from .table import (
    Decline,
    Progress,
    Table,
    TableKey,
)

if TYPE_CHECKING:
    from .._functions.description import Description, PythonFunction
    from .._keys.pattern_program import NativePattern

log = logging.getLogger("aoti_eager")


class Cache(Protocol):
    """What a call without a kernel needs of its op's kernel cache."""

    op: OpOverload
    schema: OpSchema
    dispatch_key: str
    original: OriginalKernel
    counters: OpCounters
    python_kernel: Callable[..., Any]
    lookup: Callable[[TableKey], Kernel | None]
    table: Table
    toolchain: KernelCompiler
    function: PythonFunction | None
    counts_writes: bool
    native: NativeOp | None

    def run_failed(self, error: RuntimeError, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of a call whose library raised."""

    def describe_function(self) -> tuple[Description | None, list[Tensor]]:
        """Return the op's Python function as data, if it has one, and its constants."""

    def key_context(
        self, toolchain: KernelCompiler, function: Description | None
    ) -> Sequence[tuple[str, Any]]:
        """Return the components of the key besides arguments and settings."""


@dataclass(frozen=True, slots=True, eq=False)
class KernelRequest:
    """A call of one op in one table, without its tensors.

    Attributes:
        cache: The op's kernel cache.
        table: The op's table at the time of the call; a scope may have ended since.
        table_key: The call's key in the table.
        key: The canonical key, with the call's thread count.
        template: The call without its tensors.
        function: The user's function behind the op, as data.
        toolchain: The op's kernel compiler at the time of the call.
        words: The key in C++; ``None`` if it has none.
        numel: How many elements all inputs have together.
        device: The device of the first input that is not on the CPU; ``None`` if all are.
    """

    cache: Cache
    table: Table
    table_key: TableKey
    key: KernelKey
    template: CallTemplate
    function: Description | None
    toolchain: KernelCompiler
    words: bytes | None
    numel: int
    device: torch.device | None

    # -- the store --

    def find(self, context: CacheContext) -> StoredEntry | None:
        """Return the key's entry, after its library's digest was compared.

        Damaged entries and lapsed failures are removed.

        Raises:
            StoreError: The store cannot be read, or is not ours.
        """
        environment = context.environment
        for key in (self.key.with_threads(ANY_THREADS), self.key):
            try:
                found = context.store.find(key, environment, context.features)
                found = standing(context.store, found)
                if found is not None and found.entry.status is Status.READY:
                    found = context.store.check_library(found)
            except EntryDamagedError as error:
                if config.strict:
                    raise
                log.warning("%s; it is removed and made anew", error)
                context.discard(error)
                continue
            except AotiEagerError as error:
                if isinstance(error, StoreError) and not hasattr(error, "path"):
                    raise
                log.warning("%s; it is passed over", error)
                continue
            if found is not None:
                return found
        return self._find_dynamic(context)

    def _find_dynamic(self, context: CacheContext) -> StoredEntry | None:
        """Return the dynamic specialisation that serves the call; a damaged one is removed."""
        if not self.may_be_dynamic:
            return None
        dynamic = self.table.dynamic
        found = dynamic.find(self.cache.schema, self.key, context)
        if found is None:
            return None
        if not dynamic.is_loaded(found, self._releases_gil):
            try:
                found = context.store.check_library(found)
            except EntryDamagedError as error:
                if config.strict:
                    raise
                log.warning("%s; it is removed and made anew", error)
                context.discard(error)
                dynamic.forget()
                return None
        return found

    @property
    def may_be_dynamic(self) -> bool:
        """Return whether dynamic kernels are made for the op."""
        return may_be_dynamic(self.cache, self.toolchain)

    @property
    def compiler_identity(self) -> str | None:
        """Return the identity of the C++ compiler that makes the key's library, if one does."""
        return compiler_identity() if self.toolchain.works_in_background else None

    @property
    def _releases_gil(self) -> bool:
        return self.numel >= RELEASE_GIL_NUMEL

    def load_stored(self, found: StoredEntry, context: CacheContext) -> Kernel:
        """Return the kernel of a stored entry.

        Raises:
            RunnerError: Its library cannot be loaded.
            StoreError: The library is not the one that was stored, or there is no memory for a
                copy.
        """
        return self.load(lambda: context.store.sealed_library(found), found.entry)

    def load(self, copy: Callable[[], SealedLibrary], entry: Entry) -> Kernel:
        """Return the kernel of an entry's library.

        Args:
            copy: Returns a copy of the library to load; not called if a dynamic specialisation is
                loaded already.
            entry: The entry.

        Raises:
            RunnerError: The library cannot be loaded.
            OSError: There is no space for a copy.
        """

        def load() -> Any:
            with copy() as library:
                return self.toolchain.load(library, entry, numel=self.numel, device=self.device)

        if entry.guards is None:
            runner = load()
        else:
            runner = self.table.dynamic.runner(entry, self._releases_gil, load)
        plain = all(
            argument.kind is Kind.TENSOR and isinstance(component, dict) and "dtype" in component
            for argument, (_, component) in zip(
                self.cache.schema.arguments, self.key.arguments, strict=True
            )
            if argument.is_tensor
        )
        parallel = dict(entry.key.context)["threads"] != ANY_THREADS
        kernel = Kernel(
            self.cache.schema,
            runner,
            entry.outputs,
            plain=plain,
            parallel=parallel,
            words=self.words,
        )
        kernel.certified = bool(config.certified)  # The miss has asked the certificates.
        kernel.is_dynamic = entry.guards is not None
        if kernel.is_dynamic:
            numbers = number_arguments(entry.key)
            kernel.take_numbers(call_template(self.cache.schema, self.key, numbers))
        kernel.pattern = self.pattern(entry)
        # A dynamic specialisation is shared with calls of other sizes.
        is_small = self.numel <= LIMIT_NUMEL or kernel.is_dynamic
        if is_small and self.toolchain.works_in_background and self.cache.dispatch_key == "CPU":
            Recheck(self, entry).attach(kernel)
        return kernel

    def pattern(self, entry: Entry) -> NativePattern | None:
        """Return how C++ recognises the calls that share an entry's library with this one."""
        return native_pattern(self.cache.schema, entry, self.key)

    # -- the gate --

    @property
    def threads(self) -> int:
        """Return the thread count of the call."""
        return int(dict(self.key.context)["threads"])

    @property
    def is_gated(self) -> bool:
        """Return whether a kernel for this call has to be measured before it serves."""
        return bool(config.gate) and self.toolchain.works_in_background

    @property
    def passes_gate(self) -> bool:
        """Return whether a kernel that serves now has passed the gate, or has none to pass."""
        return bool(config.gate) or not self.toolchain.works_in_background

    def verdict(self, found: StoredEntry, context: CacheContext) -> Verdict:
        """Return this processor's verdict on a stored library."""
        library = found.entry.library
        digest = found.entry.digest
        return context.verdicts.get(digest, "" if library is None else library.sha256)

    def time(self, verdict: Verdict, entry: Entry) -> PathTime | None:
        """Return the times on the hit path that will serve, or ``None`` if they were not taken."""
        path = "python" if self.cache.native is None else "native"
        return verdict.time(path, self.threads, self.size(entry))

    def size(self, entry: Entry) -> int | None:
        """Return the call's size class, for which a dynamic specialisation is measured."""
        return None if entry.guards is None else size_class(self.key)

    def measure(
        self, found: StoredEntry, verdict: Verdict, context: CacheContext, *, background: bool
    ) -> tuple[Verdict, PathTime | None]:
        """Return the verdict after a worker has tried and timed the library, and the decisive time.

        Raises:
            CompileError: The library must not be used, or no worker could tell.
        """
        measured = self.toolchain.measure(
            self.template,
            self.function,
            context,
            found.library_path,
            found.entry,
            background=background,
            compared=verdict.compared,
            size=self.size(found.entry),
        )
        verdict = replace(verdict, compared=verdict.compared or measured.compared)
        size = self.size(found.entry)
        verdict = verdict.with_times(measured.times, self.threads, size, measured.unmeasured)
        self.keep(verdict, found, context)
        # If the C++ hit path could not be timed, the times of Python's count: it is the slower one.
        taken = self.time(verdict, found.entry)
        return verdict, taken or verdict.time("python", self.threads, size)

    def keep(self, verdict: Verdict, found: StoredEntry, context: CacheContext) -> None:
        """Write a verdict into the store; if it cannot be written, only this process has it."""
        with contextlib.suppress(OSError):
            context.verdicts.put(found.entry.digest, verdict)

    # -- outcomes --

    @property
    def checks(self) -> bool:
        """Return whether a library's results are compared with the original's."""
        return bool(config.check) or self.cache.original.overridden

    def wants_check(self, entry: Entry, verdict: Verdict | None = None) -> bool:
        """Return whether a stored library must be compared here before it serves calls.

        A dynamic specialisation is compared in each size class: sums of many terms differ where
        sums of few terms do not.
        """
        size = self.size(entry)
        checked = (entry.checked and size is None) or (
            verdict is not None and verdict.is_checked(size)
        )
        return (self.checks and not checked) or self.cache.original.overridden

    def decline(
        self,
        reason: str,
        message: str,
        count: Counter | None = None,
        *,
        is_dynamic: bool = False,
        entry: Entry | None = None,
        progress: Progress | None = None,
        is_counted_in_python: bool = False,
    ) -> Decline:
        """Decline the key in its table from now on; ``count`` replaces the reason's counter.

        With the ``entry`` of a dynamic specialisation, all calls of its size class are declined.
        """
        count = count or self.cache.counters.declined(reason)
        pattern = None if entry is None else self.pattern(entry)
        is_dynamic = is_dynamic or (entry is not None and entry.guards is not None)
        decline = Decline(
            reason,
            message,
            count,
            self.words,
            is_dynamic,
            pattern,
            progress,
            is_counted_in_python,
        )
        self.table.decline(self.table_key, decline)
        log.info("%s: declined (%s): %s", self.key.op, reason, message)
        if reason == "mutates_constant":
            warn_of_function(self.key.op, message)
        return decline

    def differs(self, entry: Entry, message: str) -> None:
        """Decline the key and quarantine its entry: its library served a call wrongly."""
        context = current_backend()
        found = None
        with contextlib.suppress(StoreError):
            found = self.find(context)
        if found is not None and found.entry.digest == entry.digest:
            self.mismatches(found, [message], context)
        else:  # The entry was removed meanwhile.
            self.cache.counters.failures.add()
            self.decline("mismatch", message)
            if entry.guards is not None:
                self.table.distrust(entry.digest)
        self.cache.counters.declined("mismatch").add()

    def mismatches(
        self, found: StoredEntry, problems: Sequence[str], context: CacheContext
    ) -> None:
        """Decline the key and quarantine its entry, because its results differ."""
        message = "; ".join(problems)
        self.cache.counters.failures.add()
        self.decline("mismatch", message)
        if found.entry.guards is not None:
            self.table.distrust(found.entry.digest)

        def quarantine() -> None:
            try:
                # The verdict may say that the library was checked, and another library of the same
                # bytes may come.
                with contextlib.suppress(OSError):
                    context.verdicts.remove(found.entry.digest)
                context.store.quarantine(as_failure(found), "mismatch", message)
            except StoreError as error:
                warn_once("store", f"{error}; kernels are not kept, originals run instead")

        queue.background.run_background_write(quarantine)


def may_be_dynamic(cache: Cache, toolchain: KernelCompiler) -> bool:
    """Return whether dynamic kernels are made for the op of ``cache``."""
    return cache.function is None and toolchain.works_in_background and cache.dispatch_key == "CPU"


def refused(taken: PathTime | None, unmeasured: str = "") -> tuple[str, str]:
    """Return the reason and message of declining a library that does not beat the original.

    Args:
        taken: The library's times; ``None`` if it has none.
        unmeasured: Why the library has no times, if that is known.
    """
    if taken is None:
        why = f": {unmeasured}" if unmeasured else ""
        return "unmeasured", f"its library could not be timed against the original{why}"
    return "slower", f"its library takes {taken}"
