"""A key whose kernel is made in the background, and the first call that its library may serve.

With ``_miss`` and ``_kernel_cache`` the only place that decides policy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from . import _backend, _background
from ._backend import Backend
from ._entries import ready_entry
from ._entry import Status
from ._kernel import Kernel, call_inputs
from ._key import ANY_THREADS
from ._keyed_call import KeyedCall, refused
from ._live_check import LiveCheck
from ._passthrough import passthrough
from ._payback import payback
from ._plan import Plan
from ._stats import Counter
from ._store import StoredEntry
from ._stored_pattern import serves
from ._table import COMPILING
from ._verdict import Verdict
from ._warnings import warn_once
from .config import config
from .errors import AotiEagerError, CompileError, StoreError

log = logging.getLogger("aoti_eager")

# A call that is longer, or has more, is not run a second time in the caller's thread: what was
# compared in the worker, on made-up data, has to do.
LIVE_CHECK_LIMIT_S = 200e-6
LIVE_CHECK_LIMIT_NUMEL = 1 << 16
# Calls that take that long by chance (a cold cache, a busy core) leave the comparison to the next;
# after so many of them nobody waits for another.
_SLOW_CALLS = 4
# Until a key that another process compiles is asked for again.
_BUSY_DELAY_S = 0.25
# How often a library is timed again that could not be, or that lost by noise, in growing distances.
_UNQUIET_TRIES = 3
# How often an entry may be gone that a worker has just published.
_VANISHED_TRIES = 2


def compile_later(
    call: KeyedCall,
    found: StoredEntry | None = None,
    plan: Plan | None = None,
    backend: Backend | None = None,
) -> bool:
    """Queue a key and keep its original meanwhile; return false if the queue is full.

    Args:
        call: The call that missed.
        found: Its entry, if there is one that has to be measured first.
        plan: For a dynamic specialisation.
        backend: That of the call; ``None`` for that of this moment.
    """
    if not _background.background.has_room:
        return False
    pending = Pending(call, found, plan, backend)
    dynamic = plan is not None or (found is not None and found.entry.guards is not None)
    submitted = False
    try:
        # First the table: a worker must not be faster.
        if plan is not None:
            call.table.specialised.begin(plan)
        call.decline(COMPILING, "its kernel is being made", pending.count, is_dynamic=dynamic)
        submitted = _background.background.submit(pending)
    finally:
        if not submitted:  # Also on Ctrl-C: nobody would ever decide on the key.
            call.table.forget_decline(call.table_key)
            if plan is not None:
                call.table.specialised.end(plan, call.table.forget_decline)
    return submitted


def decline_meanwhile(call: KeyedCall) -> None:
    """Keep the original until a kernel for several sizes is made, which may serve the call."""
    message = "a dynamic kernel is being made"
    call.decline(COMPILING, message, call.cache.counters.misses, is_dynamic=True)


class Pending:
    """A key in the queue: see ``_background.Job``.

    Attributes:
        count: Counts the key's calls while it is here; they are misses.
    """

    def __init__(
        self,
        call: KeyedCall,
        found: StoredEntry | None,
        plan: Plan | None = None,
        backend: Backend | None = None,
    ) -> None:
        self._call = call
        self._plan = plan
        self._found = found
        self._backend = backend or _backend.current()
        self._unquiet = 0
        self._vanished = 0
        self.count: Counter = call.cache.counters.pending()

    @property
    def calls(self) -> int:
        """Return how often the key was called since it was queued."""
        return self.count.value

    def run(self) -> float | None:
        """Get the key's entry from a worker and decide, or return the seconds to wait."""
        call, plan = self._call, self._plan
        if call.table.closed:
            return None  # Unregistered, or its scope has ended.
        delay = self._guarded_run()
        if delay is None and plan is not None:
            call.table.specialised.end(plan, call.table.forget_decline)
        return delay

    def _guarded_run(self) -> float | None:
        call = self._call
        try:
            return self._run()
        except CompileError as error:
            if _backend.is_ending():
                return None
            call.cache.counters.failures.add()
            if self._plan is not None and error.remember:
                # The next call of this key asks for a kernel of its own.
                log.info("%s: no dynamic kernel (%s): %s", call.key.op, error.reason, error)
                call.table.specialised.forget()
                call.table.forget_decline(call.table_key)
                return None
            call.decline(error.reason, str(error))
            if not error.remember:
                warn_once(error.reason, f"{error}; originals run instead")
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
        call, backend = self._call, self._backend
        # Once: the setting may change at any time, and what serves must say by which it was chosen.
        gated = call.is_gated
        found = self._found
        if found is None and not call.toolchain.works_in_background:
            found = self._compiled_here()
        if found is None and self._plan is not None:
            call.table.specialised.look_again()
            found = call.find(backend)
        if found is None:
            start = time.monotonic()
            published = call.toolchain.publish(call.template, call.function, backend, self._plan)
            if published is None:
                return _BUSY_DELAY_S
            if published.compiled:
                call.cache.counters.compiles.add()
                payback.observe(time.monotonic() - start)
            _let_others_run()
            try:
                found = self._read(published.entry)
            except FileNotFoundError:
                # Cleared since; not again and again, if somebody goes on doing it.
                self._vanished += 1
                if self._vanished > _VANISHED_TRIES:
                    raise
                return _BUSY_DELAY_S
            self._found = found
            if found.entry.guards is not None:
                call.table.specialised.add(found)
        entry = found.entry
        if entry.status is not Status.READY:
            call.decline(entry.reason or "mismatch", entry.message or "see the log of its entry")
            return None
        verdict = call.verdict(found, backend)
        taken = call.time(verdict, entry)
        overridden = call.cache.original.overridden
        # What came from another machine has not been run on this one, and may not be safe to.
        unknown = gated and taken is None
        untried = call.wants_check(entry, verdict) and not verdict.compared
        if call.toolchain.works_in_background and (unknown or untried):
            verdict, taken = call.measure(found, verdict, backend, background=True)
            unsettled = taken is None or taken.is_doubtful
            if gated and unsettled and self._unquiet < _UNQUIET_TRIES:
                self._unquiet += 1
                return float(4 ** (self._unquiet - 1))
        if gated and (taken is None or not taken.wins):
            call.decline(*refused(taken), entry=entry)
            return None
        _let_others_run()
        found = backend.store.check_library(found)
        _let_others_run()
        kernel = call.load_stored(found, backend)
        kernel.gated = gated or not call.toolchain.works_in_background
        _let_others_run()
        if call.is_gated and not gated:
            return 0.0  # The gate has been set meanwhile.
        if call.wants_check(entry, verdict):
            arrival = Arrived(call, found, verdict, kernel, compared=not overridden)
            call.table.arrive(call.table_key, arrival)
        else:
            _put(call, kernel)
        return None

    def _read(self, path: Path) -> StoredEntry:
        """Return the entry that a worker has named.

        Raises:
            CompileError: It is another key's, whose library must not see our arguments.
        """
        found, key = self._backend.store.read(path), self._call.key
        is_own = found.entry.key in (key, key.with_threads(ANY_THREADS))
        if not is_own and not serves(self._call.cache.schema, found, key):
            raise CompileError(
                "worker_died", f"{key.op}: the worker has given another key's entry", remember=False
            )
        return found

    def _compiled_here(self) -> StoredEntry:
        """Return the entry of a library that a device's own compiler has made, on this thread."""
        call, store = self._call, self._backend.store
        with store.locked(call.key), store.workspace() as work:
            found = call.find(self._backend)
            if found is not None:
                return found
            call.cache.counters.compiles.add()
            made = call.toolchain.compile(call.template, call.function, self._backend, work)
            target, requires = call.toolchain.target(self._backend)
            entry = ready_entry(
                call.key,
                self._backend.environment,
                target,
                requires,
                outputs=made.outputs,
                calls_aten=made.calls_aten,
                parallel=made.parallel,
                compiler=made.compiler,
                identity=made.identity,
                checked=False,
                portable=True,
            )
            return store.publish(entry, work, made.library, "", sha256=made.sha256)


def _let_others_run() -> None:
    # The interpreter's lock is ours between two waits; the script gets it here.
    time.sleep(0)


def _put(call: KeyedCall, kernel: Kernel) -> None:
    """Use ``kernel``, unless a setting rules it out that was another when it was chosen."""
    call.table.put(call.table_key, kernel)
    ruled_out = kernel.is_dynamic and config.dynamic is False
    if ruled_out or (call.is_gated and not kernel.gated):
        # The cache's own look at its kernels may have come before this one was there.
        call.table.drop_kernels(lambda one: one is kernel)


class Arrived:
    """A library that has come for a key: compared on the key's next call, then in use."""

    def __init__(
        self,
        call: KeyedCall,
        found: StoredEntry,
        verdict: Verdict,
        kernel: Kernel,
        *,
        compared: bool,
    ) -> None:
        self._call = call
        self._found = found
        self._verdict = verdict
        self._kernel = kernel
        # Whether a comparison with made-up data counts: not where somebody has overridden the op.
        self._compared = compared and verdict.compared
        self._slow_calls = 0
        self._backend = _backend.current()
        self._is_used = False

    def serve(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the original's result, and decide on the library, or wait for another call.

        To be called by whoever has taken it out of the table.
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
                call.table.forget_decline(call.table_key)  # Nothing is known: another call.
                raise
            # An error of ours (no memory for a copy, say), in a call that PyTorch would have run.
            log.exception("%s: internal error", call.key.op)
            warn_once("internal_error", f"{call.key.op}: {error!r}; the original runs instead")
            call.decline("internal_error", repr(error))
            return original() if result is nothing else result
        except BaseException:
            call.table.forget_decline(call.table_key)  # Ctrl-C: another call.
            raise

    def _served(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the kernel's result, by way of Python; the next call is for C++ to serve."""
        self._put()
        try:
            return self._call.cache.entrance(keyset, *args, **kwargs)
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
            call.table.forget_decline(call.table_key)  # It has to be measured first.
            return original()
        if elsewhere and call.numel > LIVE_CHECK_LIMIT_NUMEL:
            self._unchecked()
            return original()
        with passthrough():
            inputs, same = self._inputs(args, kwargs)
            live = LiveCheck(call.cache.op, call.template, call.cache.original, keyset, inputs)
            before = live.copies()
        if not same:
            # What its function uses has just been changed by another thread.
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
            self._call.mismatches(self._found, problems, self._backend)
            return
        self._put()
        if not self._call.cache.original.overridden:
            verdict = self._verdict.with_check(self._call.size(self._found.entry))
            _background.background.run_errand(
                lambda: self._call.keep(verdict, self._found, self._backend)
            )

    def _took_long(self) -> None:
        """Leave the comparison to the next call if calls of this key are short as a rule."""
        self._slow_calls += 1
        measured = [taken.original_us for taken in self._verdict.times.values()]
        is_short = not measured or min(measured) <= 1e6 * LIVE_CHECK_LIMIT_S
        if is_short and self._slow_calls <= _SLOW_CALLS:
            self._call.table.arrive(self._call.table_key, self)
        else:
            self._unchecked()

    def _unchecked(self) -> None:
        """Go by what was compared outside of this process."""
        if not self._compared:
            self._call.decline("unchecked", "too long a call to be compared in the caller's thread")
        elif self._call.table.specialised.is_distrusted(self._found.entry):
            # Its results were wrong for another size since it came.
            self._call.table.forget_decline(self._call.table_key)
        elif self._kernel.native() is None and self._call.table.native is not None:
            self._is_used = True  # C++ takes some kernels after their first run only.
            self._call.table.arrive(self._call.table_key, self)
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
