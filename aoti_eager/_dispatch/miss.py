"""One call whose key is not in the table: find, or compile and check, its kernel, or decline.

Policy is decided in this module, ``asking``, ``kernel_cache``, ``pending`` and ``rare`` only.
``Miss`` turns an error of ours into "run the original".
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._base.cpu import cpu_features, cpu_target
from .._base.late_import import importing
from .._base.sealed_library import sealed_file
from .._base.torch_compat.dispatcher import raw_schema
from .._base.warn_once import warn_of_function, warn_once
from .._compile_service import cache_context
from .._compile_service.cache_context import CacheContext
from .._keys.call_template import CallTemplate, call_template
from .._keys.declines import call_decline
from .._keys.kernel_key import KernelKey, kernel_key
from .._keys.key_words import native_key, words_of_values
from .._keys.unsaid_writes import UnsaidWrites
from .._native.passthrough import passthrough
from .._store.entry import Entry, Status
from .._store.new_entries import failed_entry, is_remembered, ready_entry
from .._store.store import StoredEntry
from .._store.stored_failures import as_failure, met_now
from .._store.verdict import Verdict
from ..config import config
from ..errors import (
    CompileError,
    LockTimeoutError,
    OriginalKernelError,
    RunnerError,
    StoreError,
    UnsupportedArgumentError,
    UnsupportedFunctionError,
)
from .certificates import refusal as certificate_refusal
from .kernel import Kernel, call_inputs
from .kernel_request import Cache, KernelRequest, refused
from .live_check import LiveCheck
from .recorder import record
from .table import (
    BEING_COMPARED,
    COMPILING,
    Decline,
    TableKey,
)

if TYPE_CHECKING:
    from .._compile_service.replies import Compiled
    from .._functions.description import Description
    from .._keys.dynamic_plan import Plan
    from .pending import Candidate

log = logging.getLogger("aoti_eager")

# Threads that wait for the compiler. A call that such a thread makes meanwhile (in a signal
# handler) must not wait for the compiler.
compiling: set[int] = set()

_NOTHING = object()


_is_prepared = False


def prepare() -> None:
    """Import the modules that ask for kernels, so that calls need not wait for the import.

    A process whose kernels are all in the store never needs these modules.
    """
    global _is_prepared
    if not _is_prepared:
        with importing():
            from .._compile_service import replies, worker_pool  # noqa: F401
            from . import asking, pending, rare, resumed  # noqa: F401
        _is_prepared = True


def _has_other_threads() -> bool:
    """Return whether the script has threads besides the current one; ours write to no argument."""
    others = (one for one in threading.enumerate() if one is not threading.current_thread())
    return not all(one.name.startswith("aoti_eager") for one in others)


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
        # Snapshot: another thread may register a different backend meanwhile.
        self._toolchain = cache.toolchain
        self._table = cache.table
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
                function, constants = cache.describe_function()
                key = kernel_key(
                    cache.schema,
                    cache.dispatch_key,
                    values,
                    overridden=cache.original.overridden,
                    more=cache.key_context(self._toolchain, function),
                )
                template = call_template(cache.schema, key)
                overlaps = bool(cache.schema.mutated) and self._mutation_overlaps()
                self._words = native_key(cache.schema, key, overlaps=overlaps)
        except UnsupportedArgumentError as error:
            self._words = words_of_values(cache.schema, cache.dispatch_key, values)
            return self._declined(error.reason, str(error))
        except UnsupportedFunctionError as error:
            if cache.function is not None and cache.function.is_refused:
                # Refused for good: neither Python nor C++ looks at what a refused function uses.
                self._words = words_of_values(cache.schema, cache.dispatch_key, values)
            message = f"{self._op}: its function {error}"
            if cache.function is not None and cache.function.refusal is not None:
                warn_of_function(self._op, message)
            return self._declined("unsupported_function", message)
        reason = call_decline(template)
        if reason is None and overlaps:
            reason = "mutated_argument_overlaps"
        if reason is not None:
            return self._declined(reason, f"{self._op}: {reason}")
        target = cpu_target(cpu_features(), config.cpu_target)
        refused_for = certificate_refusal(cache.schema, key, target, required=config.certified)
        if refused_for is not None:
            return self._declined("uncertified", refused_for)
        if cache.function is not None and cache.function.snapshot()[0] != self._table_key[0]:
            # Another thread changed what the function uses since this call's key was made.
            return self._original()
        self._inputs = [*call_inputs(cache.schema, values), *constants]
        self._call = self._keyed_call(key, template, function)
        self._live = LiveCheck(cache.op, template, cache.original, self._keyset, self._inputs)
        record(key, function, cache.op)
        self._go_on()
        try:
            found = self._call.find(cache_context.current())
        except StoreError as error:
            return self._store_failed(error)
        if found is not None:
            if self._call.may_be_dynamic and found.entry.guards is None:
                self._table.dynamic.note(cache.schema, key)
            return self._serve(found)
        if config.mode == "cache_only":
            return self._declined("not_in_cache", f"{self._op}: not in the cache")
        plan, dynamic = None, self._table.dynamic
        if config.mode != "sync":
            return self._run_and_count()
        if self._call.may_be_dynamic:
            plan, passes = dynamic.plan(cache.schema, key)
            if passes:
                return self._original()
        if plan is None:
            refusal = dynamic.refusal(cache.schema, key, self._table.static_count)
            if refusal is not None:
                return self._declined("specialisation_cap", refusal)
        return self._compile(plan)

    def _prepared(self) -> bool:
        """Import what asks for kernels, and return whether it is there; not in a forked child.

        A child gets no kernels in the background. Another thread of its parent may have been
        importing a module that ours need, which stays locked in the child for good.
        """
        if not _is_prepared and cache_context.is_forked():
            return False
        self._prepare()
        return True

    @staticmethod
    def _prepare() -> None:
        """Import what asks for kernels."""
        if not _is_prepared:
            ident = get_ident()
            compiling.add(ident)  # A signal handler's call meanwhile finds half of a module.
            try:
                prepare()
            finally:
                compiling.discard(ident)

    def _go_on(self) -> None:
        """Ask for the kernels of the op that earlier processes wanted, if they have left any."""
        if self._table.goes_on or config.mode != "background" or config.cache_dir is None:
            return
        if cache_context.current().store.has_wanted():
            if self._prepared():
                from .resumed import go_on

                go_on(self._cache, self._table)
        else:
            self._table.goes_on = True

    def _keyed_call(
        self, key: KernelKey, template: CallTemplate, function: Description | None
    ) -> KernelRequest:
        inputs = self._inputs
        return KernelRequest(
            cache=self._cache,
            table=self._table,
            table_key=self._table_key,
            key=key,
            template=template,
            function=function,
            toolchain=self._toolchain,
            words=self._words,
            numel=sum(tensor.numel() for tensor in inputs),
            device=next((t.device for t in inputs if t.device.type != "cpu"), None),
        )

    def _mutation_overlaps(self) -> bool:
        # The table key has the answer just before the four values of the context. For an op with a
        # Python function, the key begins with the function's state and an answer that includes the
        # constants.
        with_constants = self._cache.function is not None and self._table_key[1]
        return bool(self._table_key[-5] or with_constants)

    # -- a kernel from the store --

    def _serve(self, found: StoredEntry) -> Any:
        entry, context = found.entry, cache_context.current()
        if entry.status is not Status.READY:
            reason = entry.reason or "mismatch"
            return self._declined(reason, entry.message or reason)
        verdict = self._call.verdict(found, context)
        refused = self._refused(found, verdict, context)
        if refused is not None:
            return refused()
        try:
            kernel = self._call.load_stored(found, context)
        except (RunnerError, OSError) as error:
            return self._declined("library_unloadable", str(error))
        kernel.gated = self._call.passes_gate
        taken = self._call.time(verdict, entry)
        kernel.saves_us = 0.0 if taken is None else taken.saves_us
        if kernel.parallel and cache_context.is_forked():
            return self._declined("forked", "OpenMP's threads stayed with the parent")
        if self._call.wants_check(entry, verdict) and self._in_background:
            if not self._prepared():
                return self._declined("forked", "its comparison was not imported before the fork")
            from .pending import Candidate

            arrival = Candidate(self._call, found, verdict, kernel, context, compared=True)
            return self._arrived(arrival)
        if self._call.wants_check(entry, verdict):
            before = self._live.copies()
            result = self._original()
            self._check(found, kernel, result, before)
            return result
        was_native = kernel.native() is not None
        self._publish_to_table(kernel)
        self._counted = True
        try:
            return self._cache.python_kernel(self._keyset, *self._args, **self._kwargs)
        except BaseException as error:
            self._raised = error  # The original's, or a run's that may have written to an argument.
            raise
        finally:
            if kernel.native() is not None and not was_native:
                self._publish_to_table(kernel)  # C++ takes some kernels after their first run.

    def _arrived(self, arrival: Candidate) -> Any:
        """Return the original's result; a library that a worker has tried is compared with it."""
        self._call.decline(
            COMPILING,
            "its kernel is compared",
            self._cache.counters.pending(),
            progress=BEING_COMPARED,
        )
        self._counted = True
        try:
            return arrival.serve(self._keyset, self._args, self._kwargs)
        except BaseException as error:
            self._raised = error
            raise

    @property
    def _in_background(self) -> bool:
        """Return whether the call must not do anything that takes long."""
        return config.mode != "sync" and self._call.toolchain.works_in_background

    def _refused(
        self, found: StoredEntry, verdict: Verdict, context: CacheContext
    ) -> Callable[[], Any] | None:
        """Return what to do with the call if a stored library does not serve it now, or ``None``.

        A library that was not measured here is measured in this call, or in the background.
        """
        call = self._call
        taken = call.time(verdict, found.entry) if call.is_gated else None
        untried = call.wants_check(found.entry, verdict) and not self._is_compared(verdict)
        may_serve = taken is not None and taken.wins if call.is_gated else True
        if self._in_background and ((call.is_gated and taken is None) or (may_serve and untried)):
            return lambda: self._later(found)
        if not call.is_gated:
            return None
        if taken is None:
            try:
                verdict, taken = call.measure(found, verdict, context, background=False)
            except CompileError as error:
                message = str(error)
                return lambda: self._declined("unmeasured", message)
        if taken is None or not taken.wins:
            return lambda: self._declined(*refused(taken, verdict.unmeasured), entry=found.entry)
        return None

    def _is_compared(self, verdict: Verdict) -> bool:
        """Return whether a worker has compared the library, so that a call may run it once more."""
        return verdict.compared and not self._cache.original.overridden

    def _check(self, found: StoredEntry, kernel: Kernel, result: Any, before: list[Tensor]) -> None:
        """Use a stored library if it gives what the original gave; otherwise quarantine it."""
        problems = self._live.problems(kernel, found.entry.outputs, result, before)
        if problems:
            self._quarantine(found, problems)
            self._decline_next("mismatch", "; ".join(problems))
            return
        self._publish_to_table(kernel)
        if not self._cache.original.overridden:
            context = cache_context.current()
            verdict = self._call.verdict(found, context)
            size = self._call.size(found.entry)
            self._call.keep(verdict.with_check(size), found, context)

    # -- a kernel from the compiler --

    def _run_first(self) -> bool:
        """Run the original, and return whether the call may have a kernel.

        The original runs first: an invalid call raises its own exception, and nothing else runs.
        """
        sizes_before = [(t.shape, t.stride()) for t in self._inputs]
        function = self._cache.function
        writes = None if function is None else UnsaidWrites(self._call.template, self._inputs)
        start = time.thread_time()  # CPU time: waits for a core do not count.
        self._original()
        self._taken_s = time.thread_time() - start
        if function is not None and writes is not None:
            problem = writes.problem()
            if problem is not None and _has_other_threads():
                problem = None  # Another thread may have written: the worker's trace decides.
            if problem is None and function.snapshot()[0] != self._table_key[0]:
                problem = "changes what it finds by name in a call"
            if problem is not None:
                self._decline_next("mutates_constant", f"{self._op}: its function {problem}")
                return False
        if sizes_before != [(t.shape, t.stride()) for t in self._inputs]:
            self._decline_next("out_resized", f"{self._op}: the original resized an argument")
            return False
        return True

    def _run_and_count(self) -> Any:
        """Return the original's result; the key's kernel is asked for when it is likely to pay."""
        if not self._run_first():
            return self._result
        if cache_context.is_forked():
            # Separate compile workers for each worker of a data loader would oversubscribe the
            # cores.
            self._decline_next("forked", "the compile workers are the parent's")
            return self._result
        self._prepare()
        from . import rare
        from .asking import Asked

        asked = rare.rares.called(self._call, cache_context.current(), self._taken_s)
        self._counted = asked is None
        if asked is Asked.FULL:
            self._want()
        if asked in (Asked.FULL, Asked.MANY):
            self._decline_next("queue_full", f"{self._op}: too many keys wait for the compiler")
        elif asked is Asked.CAPPED:
            self._cache.counters.declined("specialisation_cap").add()
            self._counted = True
        return self._result

    def _compile(self, plan: Plan | None) -> Any:
        self._prepare()
        before = self._live.copies() if self._call.checks else []
        if not self._run_first():
            return self._result
        result = self._result
        if plan is None:
            self._table.dynamic.start_static(self._cache.schema, self._call.key)
        ident = get_ident()
        compiling.add(ident)
        try:
            self._compile_and_check(result, before, plan)
        except CompileError as error:
            self._cache.counters.failures.add()
            self._decline_next(error.reason, str(error))
            if error.log:
                log.debug("%s: %s: %s", self._op, error.reason, error.log)
            if not error.remember:
                if config.strict:
                    raise
                if not cache_context.is_ending():
                    warn_once(error.reason, f"{error}; originals run instead")
        except StoreError as error:
            self._store_problem(error)
        finally:
            compiling.discard(ident)
        return result

    def _later(self, found: StoredEntry) -> Any:
        """Return the original's result; a worker measures or compares the library meanwhile."""
        result = self._original()
        self._queue(found)
        return result

    def _queue(self, found: StoredEntry) -> None:
        if cache_context.is_forked():
            # Separate compile workers for each worker of a data loader would oversubscribe the
            # cores.
            self._decline_next("forked", "the compile workers are the parent's")
            return
        self._prepare()
        from .pending import compile_later

        if not compile_later(self._call, found):
            self._decline_next("queue_full", f"{self._op}: too many keys wait for the compiler")

    def _want(self) -> None:
        """Leave the key to a later process: the queue of this one is full."""
        from .._store.kept_queue import (
            record_of,
        )
        from .._store.wanted_calls import (
            WantedCall,
        )

        if self._toolchain.works_in_background:
            record = record_of(cache_context.current().store.root)
            record.want(WantedCall(self._call.key, str(raw_schema(self._cache.op))), lambda: 1)

    def _compile_and_check(self, result: Any, before: list[Tensor], plan: Plan | None) -> None:
        context = cache_context.current()
        with context.store.locked(self._call.key), context.store.workspace() as work:
            # Another process may have compiled it while this one waited for the lock.
            if plan is not None:
                self._table.dynamic.look_again()
            found = self._call.find(context)
            if found is not None:
                self._adopt(found, result, before)
                return
            if plan is not None:
                self._table.dynamic.start(plan)
            self._cache.counters.compiles.add()
            try:
                compiled = self._toolchain.compile(
                    self._call.template, self._call.function, context, work, plan
                )
            except CompileError as error:
                if is_remembered(error):
                    target, requires = self._toolchain.target(context)
                    entry = failed_entry(
                        self._call.key if plan is None else plan.pattern,
                        context.environment,
                        target,
                        requires,
                        reason=error.reason,
                        message=str(error),
                        remembered=met_now(self._call.compiler_identity),
                        guards=None if plan is None else plan.guards,
                    )
                    stored = context.store.publish(entry, work, None, error.log)
                    if plan is not None:
                        self._table.dynamic.add(stored)
                if plan is None or not is_remembered(error):
                    raise
                # The next call of this key asks for a static kernel.
                log.info("%s: no dynamic kernel (%s): %s", self._op, error.reason, error)
                return
            self._use(compiled, result, before, work, context)

    def _adopt(self, found: StoredEntry, result: Any, before: list[Tensor]) -> None:
        """Put an entry that another process published meanwhile into the table."""
        if found.entry.status is not Status.READY:
            reason = found.entry.reason or "mismatch"
            self._decline_next(reason, found.entry.message or reason)
            return
        context = cache_context.current()
        verdict = self._call.verdict(found, context)
        if self._call.is_gated:
            taken = self._call.time(verdict, found.entry)
            if taken is None:
                verdict, taken = self._call.measure(found, verdict, context, background=False)
            if taken is None or not taken.wins:
                self._decline_next(*refused(taken, verdict.unmeasured))
                return
        try:
            kernel = self._call.load_stored(found, context)
        except (RunnerError, OSError) as error:
            self._decline_next("library_unloadable", str(error))
            return
        kernel.gated = self._call.passes_gate
        if kernel.parallel and cache_context.is_forked():
            # Before the check, which would run the kernel, too.
            self._decline_next("forked", "OpenMP's threads stayed with the parent")
            return
        if self._call.wants_check(found.entry, verdict):
            self._check(found, kernel, result, before)
        else:
            self._publish_to_table(kernel)

    def _use(
        self,
        compiled: Compiled,
        result: Any,
        before: list[Tensor],
        work: Path,
        # The context of the compile: the settings may have changed since, the code has not.
        context: CacheContext,
    ) -> None:
        target, requires = self._toolchain.target(context)
        entry = ready_entry(
            self._call.key if compiled.pattern is None else compiled.pattern,
            context.environment,
            target,
            requires,
            outputs=compiled.outputs,
            calls_aten=compiled.calls_aten,
            parallel=compiled.parallel,
            compiler=compiled.compiler,
            identity=compiled.identity,
            lost_signs=compiled.lost_signs,
            checked=self._call.checks,
            portable=self._toolchain.is_portable,
            guards=compiled.guards,
        )
        try:
            kernel = self._call.load(lambda: sealed_file(compiled.library, compiled.sha256), entry)
        except (RunnerError, OSError) as error:
            raise CompileError("library_unloadable", str(error)) from error
        if kernel.parallel and cache_context.is_forked():
            self._decline_next("forked", "OpenMP's threads stayed with the parent")
            return
        problems: list[str] = []
        if self._call.checks:
            problems = self._live.problems(kernel, entry.outputs, result, before)
        if problems:
            message = "; ".join(problems)
            entry = replace(
                entry,
                status=Status.QUARANTINED,
                reason="mismatch",
                message=message,
                remembered=met_now(compiled.identity),
            )
            stored = context.store.publish(
                entry, work, compiled.library, message, sha256=compiled.sha256
            )
            if entry.guards is not None:
                self._table.dynamic.add(stored)
                self._table.distrust(entry.digest)
            log.warning("%s: its library is quarantined: %s", self._op, message)
            self._cache.counters.failures.add()
            self._decline_next("mismatch", message)
            return
        self._use_if_faster(kernel, compiled, entry)
        found = context.store.publish(entry, work, compiled.library, "", sha256=compiled.sha256)
        if entry.guards is not None:
            self._table.dynamic.add(found)
        size = self._call.size(entry)
        if found.entry.library is not None and (self._call.is_gated or size is not None):
            verdict = Verdict(found.entry.library.sha256, compared=compiled.compared)
            verdict = verdict.with_times(
                compiled.times, self._call.threads, size, compiled.unmeasured
            )
            if size is not None and self._call.checks:
                verdict = verdict.with_check(size)
            self._call.keep(verdict, found, context)

    def _use_if_faster(self, kernel: Kernel, compiled: Compiled, entry: Entry) -> None:
        """Put the kernel into the table, unless it was measured to lose.

        The kernel is usable even if the store turns out to be full: its library is mapped already.
        """
        call = self._call
        if call.is_gated:
            size = call.size(entry)
            times = Verdict("").with_times(compiled.times, call.threads, size)
            taken = call.time(times, entry) or times.time("python", call.threads, size)
            if taken is None or not taken.wins:
                self._decline_next(*refused(taken, compiled.unmeasured), entry=entry)
                return
        kernel.gated = call.passes_gate
        self._publish_to_table(kernel)

    # -- outcomes --

    def _original(self) -> Any:
        try:
            self._result = self._cache.original(self._keyset, self._args, self._kwargs)
        except BaseException as error:
            self._raised = error
            raise
        return self._result

    def _publish_to_table(self, kernel: Kernel) -> None:
        self._table.put(self._table_key, kernel)

    def _decline_next(self, reason: str, message: str, *, entry: Entry | None = None) -> None:
        """Decline this key from the next call on; this call has its result.

        With the ``entry`` of a dynamic specialisation, all calls of its size class are declined.
        """
        count = self._cache.counters.declined(reason)
        is_dynamic = entry is not None and entry.guards is not None
        pattern = self._call.pattern(entry) if entry is not None and is_dynamic else None
        decline = Decline(reason, message, count, self._words, is_dynamic, pattern)
        self._table.decline(self._table_key, decline)
        log.info("%s: declined (%s): %s", self._op, reason, message)
        if reason == "mutates_constant":
            warn_of_function(self._op, message)
        if not self._counted:
            decline.count.add()
            self._counted = True

    def _declined(self, reason: str, message: str, *, entry: Entry | None = None) -> Any:
        self._decline_next(reason, message, entry=entry)
        return self._original()

    def _quarantine(self, found: StoredEntry, problems: list[str]) -> None:
        self._cache.counters.failures.add()
        if found.entry.guards is not None:
            self._table.distrust(found.entry.digest)
        try:
            cache_context.current().store.quarantine(
                as_failure(found), "mismatch", "; ".join(problems)
            )
        except StoreError as error:
            self._store_problem(error)

    def _store_problem(self, error: StoreError) -> None:
        if config.strict:
            raise error
        reason = "store_unwritable"
        if isinstance(error, LockTimeoutError):
            reason = "locked"
            warn_once("locked", f"{error}; originals run instead")
        else:
            warn_once("store", f"{error}; kernels are not kept, originals run instead")
        if self._cache.lookup(self._table_key) is None:
            self._decline_next(reason, str(error))

    def _store_failed(self, error: StoreError) -> Any:
        self._store_problem(error)
        return self._original()
