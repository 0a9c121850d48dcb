"""A key whose kernel is made in the background, and the first call that its library may serve.

Policy is decided in this module, ``asking``, ``kernel_cache``, ``miss`` and ``rare`` only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._base.torch_compat.dispatcher import raw_schema
from .._base.warn_once import warn_once
from .._compile_service import cache_context, queue
from .._compile_service.cache_context import CacheContext
from .._keys.dynamic_plan import Plan
from .._native.passthrough import passthrough
from .._store.entry import Status
from .._store.kept_queue import (
    record_of,
)
from .._store.new_entries import is_remembered
from .._store.store import StoredEntry
from .._store.verdict import Verdict
from .._store.wanted_calls import (
    WantedCall,
)
from ..config import config
from ..errors import (
    AotiEagerError,
    CompileError,
    LockTimeoutError,
    StoreError,
)
from .counters import Counter
from .kernel import Kernel, call_inputs
from .kernel_request import KernelRequest, refused
from .live_check import LiveCheck
from .making import Making, let_others_run
from .table import COMPILING

log = logging.getLogger("aoti_eager")

# A call that takes longer, or has more elements, is not run a second time in the caller's thread:
# the comparison in the worker, on made-up data, must do.
LIVE_CHECK_LIMIT_S = 200e-6
LIVE_CHECK_LIMIT_NUMEL = 1 << 16
# A call that takes that long by chance (a cold cache, a busy core) leaves the comparison to the
# next call. After so many slow calls, no further call is waited for.
_SLOW_CALLS = 4


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
    dynamic = plan is not None or (found is not None and found.entry.guards is not None)
    submitted = False
    try:
        # The table first: a worker must not finish before it.
        if plan is not None:
            call.table.dynamic.begin(plan)
        call.decline(
            COMPILING,
            "its kernel is being made",
            pending.count,
            is_dynamic=dynamic,
            progress=pending,
        )
        submitted = queue.background.submit(pending)
    finally:
        if not submitted:  # Also on Ctrl-C: otherwise the key would never be decided on.
            call.table.forget_decline(call.table_key)
            if plan is not None:
                call.table.dynamic.end(plan, call.table.forget_decline)
    return submitted


def decline_meanwhile(call: KernelRequest) -> None:
    """Keep the original until the dynamic kernel that may serve the call is made."""
    message = "a dynamic kernel is being made"
    call.decline(COMPILING, message, call.cache.counters.misses, is_dynamic=True)


class Pending:
    """A key in the queue: see ``_compile_service.queue.Job``.

    Attributes:
        count: Counts the key's calls while the key is pending; they are misses.
    """

    def __init__(
        self,
        call: KernelRequest,
        found: StoredEntry | None,
        plan: Plan | None = None,
        context: CacheContext | None = None,
        calls: int = 1,
    ) -> None:
        self._call = call
        self._calls_so_far = calls
        self._plan = plan
        self._context = context or cache_context.current()
        self._making = Making(call, self._context, found, plan)
        self.count: Counter = call.cache.counters.pending()
        self._record = record_of(self._context.store.root)
        self._calls_before = self._record.calls_before(call.key.op, self._making.digest)
        if call.toolchain.works_in_background:  # Else the script's own compiler makes it.
            wanted = WantedCall(call.key, str(raw_schema(call.cache.op)), plan)
            self._record.want(wanted, lambda: self._calls)

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
        """Return the state of the key, one of ``table.STATES``."""
        return self._making.state

    def run(self) -> float | None:
        """Get the key's entry from a worker and decide, or return the seconds to wait."""
        call, plan = self._call, self._plan
        delay = None
        try:
            # If the op was unregistered, or the scope has ended, nothing is decided.
            delay = None if call.table.closed else self._guarded_run()
        finally:  # Whatever has happened: otherwise the family would wait forever.
            if delay is None:
                self._record.release(self._making.digest)
            if delay is None and plan is not None and not call.table.closed:
                call.table.dynamic.end(plan, call.table.forget_decline)
        return delay

    def _guarded_run(self) -> float | None:
        call = self._call
        try:
            delay = self._run()
            if delay is None:
                self._record.decided(self._making.digest)
            return delay
        except CompileError as error:
            if cache_context.is_ending():
                return None
            if is_remembered(error):
                self._record.decided(self._making.digest)
            call.cache.counters.failures.add()
            if error.log:
                log.debug("%s: %s: %s", call.key.op, error.reason, error.log)
            if self._plan is not None and error.remember:
                # The next call of this key asks for a static kernel.
                log.info("%s: no dynamic kernel (%s): %s", call.key.op, error.reason, error)
                call.table.dynamic.forget()
                call.table.forget_decline(call.table_key)
                return None
            call.decline(error.reason, str(error))
            if not error.remember:
                warn_once(error.reason, f"{error}; originals run instead")
        except LockTimeoutError as error:  # For a key that a device's compiler makes here.
            call.decline("locked", str(error))
            warn_once("locked", f"{error}; originals run instead")
        except (StoreError, OSError) as error:
            call.decline("store_unwritable", str(error))
            warn_once("store", f"{error}; kernels are not kept, originals run instead")
        except AotiEagerError as error:
            call.decline("library_unloadable", str(error))
        except Exception as error:
            log.exception("%s: internal error", call.key.op)
            call.decline("internal_error", repr(error))
            warn_once("internal_error", f"{call.key.op}: {error!r}; the original runs instead")
        return None

    def _run(self) -> float | None:
        call, context = self._call, self._context
        made = self._making.run()
        if isinstance(made, float):
            return made
        found, verdict, gated, taken = made.found, made.verdict, made.gated, made.taken
        entry = found.entry
        if entry.status is not Status.READY:
            call.decline(entry.reason or "mismatch", entry.message or "see the log of its entry")
            return None
        overridden = call.cache.original.overridden
        if gated and (taken is None or not taken.wins):
            call.decline(*refused(taken, verdict.unmeasured), entry=entry)
            return None
        let_others_run()
        found = context.store.check_library(found)
        let_others_run()
        kernel = call.load_stored(found, context)
        kernel.gated = gated or not call.toolchain.works_in_background
        kernel.saves_us = 0.0 if taken is None else taken.saves_us
        let_others_run()
        if call.is_gated and not gated:
            return 0.0  # The gate has been switched on meanwhile.
        if call.wants_check(entry, verdict):
            arrival = Candidate(call, found, verdict, kernel, context, compared=not overridden)
            call.table.offer(call.table_key, arrival)
        else:
            _put(call, kernel)
        return None


def _put(call: KernelRequest, kernel: Kernel) -> None:
    """Use ``kernel``, unless a setting that has changed since it was chosen rules it out."""
    call.table.put(call.table_key, kernel)
    ruled_out = kernel.is_dynamic and config.dynamic is False
    if ruled_out or (call.is_gated and not kernel.gated):
        # The kernel cache may have dropped such kernels before this one was in the table.
        call.table.drop_kernels(lambda one: one is kernel)


class Candidate:
    """A loaded library that the key's next call compares with the original before it serves."""

    def __init__(
        self,
        call: KernelRequest,
        found: StoredEntry,
        verdict: Verdict,
        kernel: Kernel,
        # The context of the key: by the time of a call, the settings may name another store.
        context: CacheContext,
        *,
        compared: bool,
    ) -> None:
        self._call = call
        self._found = found
        self._verdict = verdict
        self._kernel = kernel
        # Whether the comparison on made-up data counts: not if somebody has overridden the op.
        self._compared = compared and verdict.compared
        self._slow_calls = 0
        self._context = context
        self._is_used = False

    def serve(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the original's result, and decide on the library, or leave that to a later call.

        Only the call that has taken the candidate out of the table calls this.
        """
        call = self._call
        if self._is_used:
            return self._served(keyset, args, kwargs)
        call.cache.counters.misses.add()
        result = nothing = object()
        raised: BaseException | None = None

        def original() -> Any:
            nonlocal result, raised
            try:
                result = call.cache.original(keyset, args, kwargs)
            except BaseException as error:
                raised = error
                raise
            return result

        try:
            return self._decided(original, keyset, args, kwargs)
        except Exception as error:
            if error is raised or config.strict:
                call.table.forget_decline(call.table_key)  # Nothing is known: another call tries.
                raise
            # An error of ours (no memory for a copy, say), in a call that PyTorch would have run.
            log.exception("%s: internal error", call.key.op)
            warn_once("internal_error", f"{call.key.op}: {error!r}; the original runs instead")
            call.decline("internal_error", repr(error))
            return original() if result is nothing else result
        except BaseException:
            call.table.forget_decline(call.table_key)  # Ctrl-C: a later call tries again.
            raise

    def _served(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the kernel's result from a run by Python; C++ serves the next call."""
        self._put()
        try:
            return self._call.cache.python_kernel(keyset, *args, **kwargs)
        finally:
            if self._kernel.native() is not None:
                self._put()

    def _decided(
        self,
        original: Callable[[], Any],
        keyset: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        call = self._call
        elsewhere = call.toolchain.works_in_background
        if call.is_gated and not self._kernel.gated:
            call.table.forget_decline(call.table_key)  # The library has to be measured first.
            return original()
        if elsewhere and call.numel > LIVE_CHECK_LIMIT_NUMEL:
            self._unchecked()
            return original()
        with passthrough():
            inputs, same = self._inputs(args, kwargs)
            live = LiveCheck(call.cache.op, call.template, call.cache.original, keyset, inputs)
            before = live.copies()
        if not same:
            # Another thread has just changed what the op's function uses.
            call.table.forget_decline(call.table_key)
            return original()
        sizes_before = [(tensor.shape, tensor.stride()) for tensor in inputs]
        start = time.perf_counter()
        result = original()
        taken = time.perf_counter() - start
        if sizes_before != [(tensor.shape, tensor.stride()) for tensor in inputs]:
            call.decline("out_resized", f"{call.key.op}: the original resized an argument")
        elif elsewhere and taken > LIVE_CHECK_LIMIT_S:
            self._took_long()
        else:
            self._check(live, result, before)
        return result

    def _check(self, live: LiveCheck, result: Any, before: list[Tensor]) -> None:
        problems = live.problems(self._kernel, self._found.entry.outputs, result, before)
        if problems:
            self._call.mismatches(self._found, problems, self._context)
            return
        self._put()
        if not self._call.cache.original.overridden:
            verdict = self._verdict.with_check(self._call.size(self._found.entry))
            queue.background.run_background_write(
                lambda: self._call.keep(verdict, self._found, self._context)
            )

    def _took_long(self) -> None:
        """Leave the comparison to the next call if calls of this key are usually short."""
        self._slow_calls += 1
        measured = [taken.original_us for taken in self._verdict.times.values()]
        is_short = not measured or min(measured) <= 1e6 * LIVE_CHECK_LIMIT_S
        if is_short and self._slow_calls <= _SLOW_CALLS:
            self._call.table.offer(self._call.table_key, self)
        else:
            self._unchecked()

    def _unchecked(self) -> None:
        """Decide by what was compared outside of this process."""
        if not self._compared:
            self._call.decline("unchecked", "too long a call to be compared in the caller's thread")
        elif self._call.table.dynamic.is_distrusted(self._found.entry):
            # The library's results were wrong for another size meanwhile.
            self._call.table.forget_decline(self._call.table_key)
        elif self._kernel.native() is None and self._call.table.native is not None:
            self._is_used = True  # C++ takes some kernels after their first run only.
            self._call.table.offer(self._call.table_key, self)
        else:
            self._put()

    def _put(self) -> None:
        _put(self._call, self._kernel)

    def _inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Tensor], bool]:
        """Return the call's inputs, and whether its function is what it was at the miss."""
        cache = self._call.cache
        values = cache.schema.bind(args, kwargs)
        inputs = call_inputs(cache.schema, values)
        if cache.function is None:
            return inputs, True
        state, constants = cache.function.snapshot()
        return [*inputs, *constants], state == self._call.table_key[0]
