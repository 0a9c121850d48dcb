"""Have a worker make one key's kernel: its entry in the store, and the times of its library.

This is the same for a key whose call has just missed, in mode ``sync`` or in the background, and
for a key that an earlier process has left. The caller decides what becomes of the library.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .._base.handover import let_others_run
from .._compile_service.cache_context import CacheContext
from .._compile_service.job_progress import JobProgress
from .._keys.dynamic_plan import Plan
from .._keys.kernel_key import ANY_THREADS
from .._store.kept_queue import record_of
from .._store.new_entries import failed_entry, is_remembered, ready_entry
from .._store.store import StoredEntry
from .._store.stored_failures import met_now
from .._store.stored_pattern import serves
from ..config import config
from ..errors import CompileError, StoreError
from .gate import Gate, Judged
from .kernel_lookup import find
from .kernel_request import KernelRequest
from .key_state import BEING_COMPILED, MEASURING, QUEUED
from .payback import payback
from .tier_copies import evict_later, give, in_cache_dir

if TYPE_CHECKING:
    from .._compile_service.replies import Published

# The first and the longest wait until a key that another process compiles is asked for again.
_SHORTEST_BUSY_S, _LONGEST_BUSY_S = 0.25, 2.0
# How often a library is timed again, at growing intervals, if it could not be timed or lost by
# noise.
_MOST_RETRIES = 3
# How often an entry that a worker has just published may be gone.
_VANISHED_TRIES = 2


class Making:
    """One key whose kernel is being made: each ``run`` goes on with it.

    Args:
        call: The key's call.
        context: The store and the workers.
        found: Its entry, if only a measurement is known to be missing.
        plan: For a dynamic specialisation.
        is_awaited: Whether a call waits for the kernel (mode ``sync``): the workers then have the
            script's own priority, and the call itself compares the library.

    Attributes:
        digest: The key's name in the kept queue.
        state: The state of the key, one of ``key_state.STATES``.
        compiled: Whether its library was compiled for this process.

    More than 12 methods, because each step on the way to a library is one of its own.
    """

    def __init__(
        self,
        call: KernelRequest,
        context: CacheContext,
        found: StoredEntry | None = None,
        plan: Plan | None = None,
        *,
        is_awaited: bool = False,
    ) -> None:
        self._call = call
        self._gate = Gate(call)
        self._is_awaited = is_awaited
        self._context = context
        self._found = found
        self._plan = plan
        self._busy_s = 0.0
        self._retries = 0
        self._vanished = 0
        self._has_begun = False
        self._reply: Published | None = None
        self.digest = call.key.digest if plan is None else plan.pattern.digest
        self.state = QUEUED
        self.compiled = False
        self._progress: JobProgress | None = None  # While a worker is asked.

    @property
    def step(self) -> str:
        """Return the step that a worker is in, and the time since; empty if no worker is asked."""
        progress = self._progress
        return "" if progress is None else str(progress)

    @contextlib.contextmanager
    def _at_worker(self) -> Iterator[None]:
        """Follow the steps of the worker that is asked in the block."""
        progress = self._progress = JobProgress()
        try:
            with progress.asked_for_here():
                yield
        finally:
            self._progress = None

    @property
    def is_stored(self) -> bool:
        """Return whether the library exists and only has to be measured, which takes a moment."""
        return self._found is not None

    def run(self) -> Judged | float:
        """Return what is known of the key's entry, or the seconds to wait until another try.

        Raises:
            CompileError: There is no usable library.
            StoreError: The store cannot be read.
        """
        found = self._found
        if found is None:
            made = self._made()
            if isinstance(made, float):
                self.state = QUEUED
                return made
            found = self._found = made
        found = self._found = in_cache_dir(found, self._context)
        let_others_run()
        judged = self._gate.judge(found, self._context)
        if self._is_awaited and self._reply is not None and judged.is_unknown:
            # Times of a busy moment are in no verdict; a call that waits takes them as they are.
            judged = self._gate.with_times(judged, self._reply.times, self._reply.unmeasured)
        was_timed_in_vain = self._reply is not None and bool(self._reply.unmeasured)
        if self._is_awaited and was_timed_in_vain:
            return judged
        if self._gate.needs_worker(judged, is_awaited=self._is_awaited):
            self.state = MEASURING
            if (measured := self._measured(judged)) is None:
                return 0.0
            judged = measured
            unsettled = judged.taken is None or judged.taken.is_doubtful
            # A call that waits takes the times as they are.
            waits = judged.gated and unsettled and not self._is_awaited
            if waits and self._retries < _MOST_RETRIES:
                self._retries += 1
                return float(4 ** (self._retries - 1))
        return judged

    def _measured(self, judged: Judged) -> Judged | None:
        """Return what is known after a worker has tried and timed a stored library.

        ``None``: the entry was evicted before that; the next ``run`` looks again.

        Raises:
            CompileError: The library must not be used, or no worker could tell.
        """
        background = not self._is_awaited
        try:
            with self._at_worker():
                measured = self._gate.measure(judged, self._context, background=background)
        except CompileError as error:
            if error.reason == "library_unloadable" and self.begins_again():
                return None
            if background:
                raise  # For a call that waits, the library is declined: the call has its result.
            return replace(judged, verdict=replace(judged.verdict, unmeasured=str(error)))
        if measured.is_unknown and self.begins_again():
            return None
        return measured

    def _begin_awaited(self) -> None:
        """Look whether the store can be written, before a worker starts, and count the plan.

        Raises:
            StoreError: The store cannot be written, or the key's lock is held for too long.
        """
        with self._context.store.locked(self._call.key):
            pass
        if self._plan is not None and not self._has_begun:
            self._call.table.dynamic.start(self._plan)
        self._has_begun = True

    def _made(self) -> StoredEntry | float:
        """Return the key's entry, found or made now, or the seconds to wait."""
        call = self._call
        if not call.toolchain.works_in_background:
            self.state = BEING_COMPILED
            return self._compiled_here()
        if self._plan is not None:
            call.table.dynamic.kernels.look_again()
            found = find(call, self._context)
            let_others_run()
            if found is not None:
                return found
        return self._published()

    def begins_again(self) -> bool:
        """Return whether the key's entry was evicted or deleted since it was found.

        Then the next ``run`` looks again, and has a worker make the entry anew. The number of such
        beginnings is limited, in case the entry is removed again and again.
        """
        if self._found is None or self._vanished >= _VANISHED_TRIES:
            return False
        try:
            self._context.store_of(self._found).read(self._found.path)
        except FileNotFoundError:
            self._found = None
            self._vanished += 1
            return True
        except StoreError:
            pass
        return False

    def _published(self) -> StoredEntry | float:
        """Return the entry that a worker has put into the store, or the seconds to wait."""
        call, context = self._call, self._context
        record = record_of(context.store.root)
        service = context.service if self._is_awaited else context.background_service
        if service.ended:
            # Python is ending: nothing more of the queue is begun.
            raise CompileError("worker_died", f"{call.key.op}: Python is ending", remember=False)
        self.state = BEING_COMPILED
        if self._is_awaited:
            self._begin_awaited()
        record.tried(self.digest)
        start = time.monotonic()
        try:
            with self._at_worker():
                published = call.toolchain.publish(
                    call.template,
                    call.function,
                    context,
                    self._plan,
                    background=not self._is_awaited,
                )
        except CompileError as error:
            if self._is_awaited and error.reason == "store_unwritable":
                raise StoreError(str(error)) from error
            raise
        record.tried(self.digest, -1)  # The compile has ended, so it was not begun in vain.
        if published is None:
            return self._busy()
        if published.compiled:
            self.compiled, self._reply = True, published
            payback.observe(time.monotonic() - start)
            call.cache.counters.compiles.add()
        let_others_run()
        try:
            found = self._read(published.entry)
        except FileNotFoundError:
            # The store was cleared since. The number of tries is limited, in case it is cleared
            # again and again.
            self._vanished += 1
            if self._vanished > _VANISHED_TRIES:
                raise
            return 0.0
        context.store.note_use(found)  # Another process may have made the entry long ago.
        if published.compiled:
            give(found, context)
        if found.entry.guards is not None:
            call.table.dynamic.kernels.add(found)
        return found

    def _busy(self) -> float:
        """Return the seconds until a key whose lock another process holds is asked for again.

        Raises:
            CompileError: The lock was waited for as long as a call would wait: the other process
                may be stopped, and everybody who waits for kernels would wait with it.
        """
        left = config.lock_timeout_s - self._busy_s
        if left <= 0:
            raise CompileError(
                "locked",
                f"{self._call.key.op}: another process has held the key's lock for "
                f"{config.lock_timeout_s:g} s (lock_timeout_s)",
                remember=False,
            )
        if self._is_awaited:
            self._busy_s += self._waited_for_lock()
            return 0.0
        # The waits grow: each try asks a worker and the store.
        wait_s = min(max(_SHORTEST_BUSY_S, self._busy_s), _LONGEST_BUSY_S, left)
        self._busy_s += wait_s
        return float(wait_s)

    def _waited_for_lock(self) -> float:
        """Wait until another process has released the key's lock; return how many seconds.

        Raises:
            LockTimeoutError: The lock was waited for as long as a call may wait.
        """
        start = time.monotonic()
        with self._context.store.locked(self._call.key):
            return time.monotonic() - start

    def _read(self, path: Path) -> StoredEntry:
        """Return the entry that a worker has named.

        Raises:
            CompileError: The entry is another key's, whose library must not see our arguments.
        """
        found, key = self._context.store.read(path), self._call.key
        let_others_run()
        is_own = found.entry.key in (key, key.with_threads(ANY_THREADS))
        if not is_own and not serves(self._call.cache.schema, found, key):
            raise CompileError(
                "worker_died", f"{key.op}: the worker has given another key's entry", remember=False
            )
        return found

    def _compiled_here(self) -> StoredEntry:
        """Return the entry of a library that a device's own compiler has made, on this thread."""
        call, store = self._call, self._context.store
        with store.locked(call.key), store.workspace() as work:
            found = find(call, self._context)
            if found is not None:
                return found
            made_for = (self._context.environment, *call.toolchain.target(self._context))
            try:
                made = call.toolchain.compile_on_device(call.template, work)
            except CompileError as error:
                if is_remembered(error):
                    failure = failed_entry(
                        call.key,
                        *made_for,
                        reason=error.reason,
                        message=str(error),
                        remembered=met_now(None),
                    )
                    store.publish(failure, work, None, error.log)
                raise
            self.compiled = True
            call.cache.counters.compiles.add()
            entry = ready_entry(
                call.key,
                *made_for,
                outputs=made.outputs,
                calls_aten=made.calls_aten,
                parallel=made.parallel,
                compiler=made.compiler,
                identity=made.identity,
                checked=False,
                portable=True,
            )
            stored = store.publish(entry, work, made.library, "", sha256=made.sha256)
        evict_later(stored, self._context)
        give(stored, self._context)
        return stored
