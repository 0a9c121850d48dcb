"""A key whose kernel is being made: in the queue, or while its call waits (mode ``sync``)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from .._base.handover import let_others_run
from .._base.torch_compat.dispatcher import raw_schema
from .._compile_service import cache_context, queue
from .._compile_service.cache_context import CacheContext
from .._keys.dynamic_plan import Plan
from .._store.kept_queue import record_of
from .._store.new_entries import is_remembered
from .._store.store import StoredEntry
from .._store.wanted_calls import WantedCall
from ..config import config
from ..errors import CompileError, StoreError
from .candidate import Candidate
from .counters import Counter
from .decision import Refusal, kernel_or_refusal, put, refusal_of
from .gate import Gate
from .kernel_request import KernelRequest
from .key_state import COMPILING
from .making import Making

log = logging.getLogger("aoti_eager")


def compile_later(
    call: KernelRequest,
    found: StoredEntry | None = None,
    plan: Plan | None = None,
    context: CacheContext | None = None,
    calls: int = 1,
) -> bool:
    """Queue a key and keep its original meanwhile; return false if the queue is full.

    Args:
        call: The call that missed.
        found: The key's entry, if there is one that has to be measured first.
        plan: For a dynamic specialisation.
        context: The cache context of the call; ``None`` for the current one.
        calls: How often this process has called the key.
    """
    if not queue.background.has_room:
        return False
    pending = Pending(call, found, plan, context, calls)
    let_others_run()
    submitted = False
    try:
        pending.begin()  # The table first: a worker must not finish before it.
        let_others_run()
        submitted = queue.background.submit(pending)
    finally:
        if not submitted:  # Also on Ctrl-C: otherwise the key would never be decided on.
            pending.give_up()
    return submitted


def compile_now(
    call: KernelRequest,
    compare: Callable[[Candidate], None],
    found: StoredEntry | None = None,
    plan: Plan | None = None,
) -> None:
    """Make a call's kernel, and decide on its key, before the call returns (mode ``sync``).

    Nothing is declined meanwhile: calls of other threads with the same key wait, and then hit.

    Args:
        call: The call that missed; its original has run.
        compare: Compares a library with the call's result, and decides on it.
        found: As for ``compile_later``.
        plan: As for ``compile_later``.

    Raises:
        CompileError: There is no kernel, and the setting ``strict`` is on; likewise below.
        StoreError: The store cannot be read or written.
    """
    pending = Pending(call, found, plan, compare=compare)
    awaited = call.table.awaited
    try:
        pending.begin()
        while (delay := pending.run()) is not None:
            time.sleep(delay)
    finally:  # Another thread may wait for the same key.
        if awaited.get(call.table_key) is pending:
            awaited.pop(call.table_key, None)


def decline_meanwhile(call: KernelRequest) -> None:
    """Keep the original until the dynamic kernel that may serve the call is made."""
    message = "a dynamic kernel is being made"
    call.decline(COMPILING, message, call.cache.counters.misses, is_dynamic=True)


class Pending:
    """A key whose kernel is being made: see ``_compile_service.queue.Job``.

    Args:
        call: The call that missed.
        found: The key's entry, if there is one that has to be measured first.
        plan: For a dynamic specialisation.
        context: The cache context of the call; ``None`` for the current one.
        calls: How often this process has called the key.
        compare: For a call that waits (mode ``sync``): compares a library with the call's result.
            ``None`` in the background, where the key's next call compares it.

    Attributes:
        count: Counts the key's calls while the key is pending; they are misses.

    More than 12 methods, because the queue, ``explain`` and the report each ask for something else.
    """

    def __init__(
        self,
        call: KernelRequest,
        found: StoredEntry | None,
        plan: Plan | None = None,
        context: CacheContext | None = None,
        calls: int = 1,
        *,
        compare: Callable[[Candidate], None] | None = None,
    ) -> None:
        self._call = call
        self._calls_so_far = calls
        self._plan = plan
        self._compare = compare
        self._is_dynamic = plan is not None or (
            found is not None and found.entry.guards is not None
        )
        self._context = context or cache_context.current()
        self._making = Making(call, self._context, found, plan, is_awaited=compare is not None)
        self.count: Counter = call.cache.counters.pending()
        self._record = record_of(self._context.store.root)
        self._calls_before = self._record.calls_before(call.key.op, self._making.digest)
        # A call that waits leaves nothing undone; and a device's compiler is the script's own.
        if compare is None and call.toolchain.works_in_background:
            wanted = WantedCall(call.key, str(raw_schema(call.cache.op)), plan)
            self._record.want(wanted, lambda: self._calls)

    def begin(self) -> None:
        """Keep the original while the kernel is being made; calls of a key that is awaited wait."""
        call = self._call
        if self._compare is not None:
            call.table.awaited[call.table_key] = self
            return
        if self._plan is not None:
            call.table.dynamic.begin(self._plan)
        call.decline(
            COMPILING,
            "its kernel is being made",
            self.count,
            is_dynamic=self._is_dynamic,
            progress=self,
        )

    def give_up(self) -> None:
        """Take ``begin`` back: the key's next call asks again."""
        call = self._call
        call.table.forget_decline(call.table_key)
        if self._plan is not None:
            call.table.dynamic.end(self._plan, call.table.forget_decline)

    @property
    def _calls(self) -> int:
        return self._calls_so_far + self.count.value  # The calls since the key was queued.

    @property
    def rank(self) -> tuple[int, int, int]:
        """Return the priority of the key: a stored library that has to be measured comes first.

        Then the keys that were called most, calls of earlier processes included; among equals, the
        keys of this process.
        """
        return int(self._making.is_stored), self._calls + self._calls_before, 1

    @property
    def state(self) -> str:
        """Return the state of the key, one of ``key_state.STATES``."""
        return self._making.state

    @property
    def step(self) -> str:
        """Return the step that a worker is in, and the time since; empty if no worker is asked."""
        return self._making.step

    def run(self) -> float | None:
        """Get the key's entry from a worker and decide, or return the seconds to wait.

        Raises:
            CompileError: Only for a call that waits, with the setting ``strict``; likewise below.
            StoreError: The store cannot be read or written.
        """
        call, plan = self._call, self._plan
        delay = None
        try:
            # If the op was unregistered, or the scope has ended, nothing is decided.
            delay = None if call.table.closed else self._guarded_run()
        finally:  # Whatever has happened: otherwise the family would wait forever.
            if delay is None:
                self._record.release(self._making.digest)
            ends = delay is None and self._compare is None and not call.table.closed
            if ends and plan is not None:
                call.table.dynamic.end(plan, call.table.forget_decline)
        return delay

    def _guarded_run(self) -> float | None:
        try:
            delay = self._run()
            if delay is None:
                self._record.decided(self._making.digest)
            return delay
        except CompileError as error:
            self._not_compiled(error)
        except Exception as error:
            if self._raises and isinstance(error, StoreError):
                raise
            self._refuse(refusal_of(self._call.key.op, error, uses_store=True))
            if self._raises:
                raise
        return None

    @property
    def _raises(self) -> bool:
        """Return whether errors of ours are raised in the call."""
        return self._compare is not None and bool(config.strict)

    def _not_compiled(self, error: CompileError) -> None:
        """Decide on a key whose kernel cannot be made."""
        call = self._call
        if cache_context.is_ending():
            return
        if is_remembered(error):
            self._record.decided(self._making.digest)
        call.cache.counters.failures.add()
        if self._plan is not None and error.remember:
            # The next call of this key asks for a static kernel.
            log.info("%s: no dynamic kernel (%s): %s", call.key.op, error.reason, error)
            call.table.dynamic.kernels.look_again()
            call.table.forget_decline(call.table_key)
            return
        self._refuse(refusal_of(call.key.op, error))
        if self._raises and not error.remember:
            raise error

    def _run(self) -> float | None:
        call, context = self._call, self._context
        judged = self._making.run()
        if isinstance(judged, float):
            return judged
        let_others_run()
        kernel = kernel_or_refusal(call, judged, context)
        let_others_run()
        if isinstance(kernel, Refusal):
            if kernel.reason == "library_unloadable" and self._making.begins_again():
                return 0.0
            if kernel.reason == "library_unloadable" and self._making.compiled:
                raise CompileError(kernel.reason, f"{call.key.op}: {kernel.message}")
            self._refuse(kernel)
            return None
        gate = Gate(call)
        if gate.is_on and not judged.gated:
            return 0.0  # The gate has been switched on meanwhile.
        if not gate.wants_check(judged.found.entry, judged.verdict):
            put(call, kernel)
            return None
        candidate = Candidate(call, judged, kernel, context)
        if self._compare is None:
            call.table.offer(call.table_key, candidate)
        else:
            self._compare(candidate)
        return None

    def _refuse(self, refusal: Refusal) -> None:
        self._call.decline(refusal.reason, refusal.message, entry=refusal.entry)
