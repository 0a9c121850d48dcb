"""One call whose key is not in the table: find its kernel, have it made, or decline.

``Miss`` turns an error of ours into "run the original".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

from .._base.late_import import importing
from .._base.torch_compat.dispatcher import raw_schema
from .._compile_service import cache_context
from .._store.store import StoredEntry
from ..config import config
from ..errors import (
    OriginalKernelError,
    StoreError,
)
from .argument_watch import ArgumentWatch
from .asking_modules import (
    compiling,
    prepare_comparison,
    prepare_in_call,
    prepare_unless_forked,
)
from .call_reader import read_call
from .decision import Refusal, kernel_or_refusal, put, refusal_of
from .gate import Gate
from .kernel import Kernel
from .kernel_lookup import find
from .kernel_request import Cache, KernelRequest, keep_decline
from .key_state import BEING_COMPARED, COMPILING, Decline
from .live_check import LiveCheck
from .recorder import record
from .table import TableKey

if TYPE_CHECKING:
    from torch import Tensor

    from .._keys.dynamic_plan import Plan
    from .candidate import Candidate

log = logging.getLogger("aoti_eager")

_NOTHING = object()
# Separate compile workers for each worker of a data loader would oversubscribe the cores.
_FORKED = Refusal("forked", "the compile workers are the parent's")


class Miss:
    """One call whose key is not in the table: find, or make and compare, its kernel, or decline.

    More than 12 methods, because the call's result, and what the call counts as, are found out on
    each way.
    """

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
        self._inputs: list[Tensor] = []
        self._call: KernelRequest | None = None

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
            self._decline(refusal_of(self._op, error))
            return self._original() if self._result is _NOTHING else self._result
        finally:
            if not self._counted:
                self._cache.counters.misses.add()

    def _resolve(self) -> Any:
        cache, table, dynamic = self._cache, self._table, self._table.dynamic
        read = read_call(cache, table, self._table_key, self._toolchain, self._args, self._kwargs)
        self._words, self._inputs = read.words, read.inputs
        if read.refusal is not None:
            return self._decline_and_run_original(read.refusal)
        call = self._call = read.request
        if call is None:  # Another thread changed what the function uses since the call began.
            return self._original()
        live = LiveCheck(cache.op, call.template, cache.original, self._keyset, read.inputs)
        record(call.key, call.function, cache.op)
        _go_on(call)
        try:
            found = find(call, cache_context.current())
        except StoreError as error:
            if config.strict:
                raise
            return self._decline_and_run_original(refusal_of(self._op, error))
        if found is not None:
            if call.may_be_dynamic and found.entry.guards is None:
                dynamic.note(cache.schema, call.key)
            return self._serve(call, live, found)
        tiers = cache_context.current().tiers
        if tiers is not None and tiers.remote and _asks_remotes(call):
            with importing():
                from .remote_lookup import ask_remotes

            ask_remotes(call, cache_context.current())
        if config.mode == "cache_only":
            message = f"{self._op}: not in the cache"
            return self._decline_and_run_original(Refusal("not_in_cache", message))
        if config.mode != "sync":
            return self._run_and_count(call)
        plan = None
        if call.may_be_dynamic:
            plan, passes = dynamic.plan(cache.schema, call.key)
            if passes:
                return self._original()
        if plan is None:
            refusal = dynamic.refusal(cache.schema, call.key, table.static_count)
            if refusal is not None:
                return self._decline_and_run_original(Refusal("specialisation_cap", refusal))
        return self._make(call, live, None, plan)

    # -- a kernel from the store --

    def _serve(self, call: KernelRequest, live: LiveCheck, found: StoredEntry) -> Any:
        """Return the result of a call whose key has an entry."""
        context, gate = cache_context.current(), Gate(call)
        judged = gate.judge(found, context)
        awaits = not _is_in_background(call)
        if gate.needs_worker(judged, is_awaited=awaits):
            return self._make(call, live, found, None) if awaits else self._queue(call, found)
        kernel = kernel_or_refusal(call, judged, context)
        if isinstance(kernel, Refusal):
            return self._decline_and_run_original(kernel)
        if not gate.wants_check(found.entry, judged.verdict):
            return self._run(call, kernel)
        if not prepare_comparison(is_awaited=awaits):
            message = "its comparison was not imported before the fork"
            return self._decline_and_run_original(Refusal("forked", message))
        from .candidate import Candidate

        candidate = Candidate(call, judged, kernel, context)
        if awaits:
            before = live.copies()
            result = self._original()
            candidate.compare(live, result, before)
            self._count(self._table.declines.get(self._table_key))
            return result
        return self._offer(call, candidate)

    def _run(self, call: KernelRequest, kernel: Kernel) -> Any:
        """Return the kernel's result; the kernel serves the key's calls from now on."""
        was_native = kernel.native() is not None
        put(call, kernel)
        self._counted = True
        try:
            return self._cache.python_kernel(self._keyset, *self._args, **self._kwargs)
        except BaseException as error:
            self._raised = error  # The original's, or a run's that may have written to an argument.
            raise
        finally:
            if kernel.native() is not None and not was_native:
                put(call, kernel)  # C++ takes some kernels after their first run.

    def _offer(self, call: KernelRequest, candidate: Candidate) -> Any:
        """Return the original's result; a library that a worker has tried is compared with it."""
        call.decline(
            COMPILING,
            "its kernel is compared",
            self._cache.counters.pending(),
            progress=BEING_COMPARED,
        )
        self._counted = True
        try:
            return candidate.serve(self._keyset, self._args, self._kwargs)
        except BaseException as error:
            self._raised = error
            raise

    # -- a kernel from the compiler --

    def _run_first(self, call: KernelRequest) -> bool:
        """Run the original, and return whether the call may have a kernel.

        The original runs first: an invalid call raises its own exception, and nothing else runs.
        """
        watch = ArgumentWatch(call, self._inputs)
        start = time.thread_time()  # CPU time: waits for a core do not count.
        self._original()
        self._taken_s = time.thread_time() - start
        refusal = watch.refusal()
        if refusal is not None:
            self._decline(refusal)
        return refusal is None

    def _run_and_count(self, call: KernelRequest) -> Any:
        """Return the original's result; the key's kernel is asked for when it is likely to pay."""
        if not self._run_first(call):
            return self._result
        if cache_context.is_forked():
            self._decline(_FORKED)
            return self._result
        prepare_in_call()
        from . import rare
        from .asking import Asked

        asked = rare.rares.called(call, cache_context.current(), self._taken_s)
        self._counted = asked is None
        if asked is Asked.FULL:
            _want(call)
        if asked in (Asked.FULL, Asked.MANY):
            self._decline(_queue_full(self._op))
        elif asked is Asked.CAPPED:
            self._cache.counters.declined("specialisation_cap").add()
            self._counted = True
        return self._result

    def _queue(self, call: KernelRequest, found: StoredEntry) -> Any:
        """Return the original's result; a worker measures or tries the library meanwhile."""
        result = self._original()
        if cache_context.is_forked():
            self._decline(_FORKED)
            return result
        prepare_in_call()
        from .pending import compile_later

        if not compile_later(call, found):
            self._decline(_queue_full(self._op))
        return result

    def _make(
        self, call: KernelRequest, live: LiveCheck, found: StoredEntry | None, plan: Plan | None
    ) -> Any:
        """Return the original's result; the key is decided on before the call returns.

        Args:
            call: The call.
            live: The comparison for the call.
            found: The key's entry, if its library has to be measured only.
            plan: For a dynamic specialisation.
        """
        prepare_in_call()
        before = live.copies()  # Though ``check`` is off: it may be on when the kernel comes.
        if not self._run_first(call):
            return self._result
        from .pending import compile_now

        result = self._result
        if found is None and plan is None:
            self._table.dynamic.start_static(self._cache.schema, call.key)
        ident = get_ident()
        compiling.add(ident)
        try:
            compile_now(call, lambda one: one.compare(live, result, before), found, plan)
        finally:
            compiling.discard(ident)
            self._count(self._table.declines.get(self._table_key))
        return result

    # -- outcomes --

    def _original(self) -> Any:
        try:
            self._result = self._cache.original(self._keyset, self._args, self._kwargs)
        except BaseException as error:
            self._raised = error
            raise
        return self._result

    def _decline(self, refusal: Refusal) -> None:
        """Decline this key from the next call on; this call has a result, or runs the original."""
        if self._call is not None:
            decline = self._call.decline(refusal.reason, refusal.message, entry=refusal.entry)
        else:
            count = self._cache.counters.declined(refusal.reason)
            decline = Decline(refusal.reason, refusal.message, count, self._words)
            keep_decline(self._table, self._table_key, decline, self._op)
        self._count(decline)

    def _decline_and_run_original(self, refusal: Refusal) -> Any:
        self._decline(refusal)
        return self._original()

    def _count(self, decline: Decline | None) -> None:
        """Count this call as declined, if its key is."""
        if decline is not None and not decline.is_undecided and not self._counted:
            decline.count.add()
            self._counted = True


def _is_in_background(call: KernelRequest) -> bool:
    """Return whether the call must not do anything that takes long."""
    return config.mode != "sync" and call.toolchain.works_in_background


def _asks_remotes(call: KernelRequest) -> bool:
    """Return whether remote tiers may be asked: their kernels are torch's own compiler's."""
    is_ours = call.toolchain.works_in_background and not cache_context.is_forked()
    return is_ours and config.mode not in ("sync", "recache")


def _go_on(call: KernelRequest) -> None:
    """Ask for the kernels of the op that earlier processes wanted, if they have left any."""
    if call.table.goes_on or config.mode != "background" or config.cache_dir is None:
        return
    if not cache_context.current().store.has_wanted():
        call.table.goes_on = True
    elif prepare_unless_forked():
        from .resumed import go_on

        go_on(call.cache, call.table)


def _want(call: KernelRequest) -> None:
    """Leave the key to a later process: the queue of this one is full."""
    from .._store.kept_queue import record_of
    from .._store.wanted_calls import WantedCall

    if call.toolchain.works_in_background:
        wanted = WantedCall(call.key, str(raw_schema(call.cache.op)))
        record_of(cache_context.current().store.root).want(wanted, lambda: 1)


def _queue_full(op: str) -> Refusal:
    return Refusal("queue_full", f"{op}: too many keys wait for the compiler")
