"""Make the kernels that earlier processes wanted and did not get, after this process's own.

At the first miss of an op, the op's keys in the kept queue (``_store.kept_queue``) begin to wait
for a worker like the keys of this process: the most called first. Their kernels go into the store,
where the key's next call finds them; nothing of the script is touched.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from .._base.data_class import dataclass
from .._base.torch_compat.dispatcher import raw_schema
from .._base.warn_once import log
from .._compile_service import cache_context
from .._compile_service import queue as queue_module
from .._compile_service.cache_context import CacheContext
from .._keys.call_template import call_template
from .._keys.declines import call_decline
from .._store.entry import Status
from .._store.kept_queue import (
    record_of,
)
from .._store.new_entries import is_remembered
from .._store.wanted_calls import (
    MOST_TRIES,
    NOT_WANTED,
    Wanted,
    WantedCall,
)
from ..config import config
from ..errors import AotiEagerError, CompileError, UnsupportedFunctionError
from .certificates import refusal as certificate_refusal
from .counters import on_unfinished
from .kernel_lookup import find
from .kernel_request import Cache, KernelRequest
from .making import Making
from .table import Table

if TYPE_CHECKING:
    from .._functions.description import Description

# The components of a key that describe the user's function behind an op.
_OF_FUNCTION = ("constants", "function")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a kept key.

    Attributes:
        kind: ``"compiled"``, ``"present"`` (its library was there), ``"declined"`` (the store says
            why it has none), ``"failed"`` or ``"passed over"``: not for this process.
        reason: Why there is no library, in a word.
        message: The reason in words.
    """

    kind: str
    reason: str = ""
    message: str = ""


class Resumed:
    """One kept key that a worker goes on with.

    Args:
        wanted: The key.
        cache: The kernel cache of its op.
        table: The op's current table.
        context: The store and the workers.
        threads: The thread count of the script's calls: only keys with this count can be of use to
            the script. ``None`` if no script runs: then the kernels of all keys are made, also of
            keys that were begun in vain before.

    Attributes:
        outcome: What became of it, once ``run`` has returned ``None``; ``None`` if that was cut
            short.
    """

    def __init__(
        self,
        wanted: Wanted,
        cache: Cache,
        table: Table,
        context: CacheContext,
        *,
        threads: int | None = None,
    ) -> None:
        self.wanted = wanted
        self._cache = cache
        self._table = table
        self._context = context
        self._threads = threads
        self._record = record_of(context.store.root)
        self._making: Making | None = None
        self.outcome: Outcome | None = None

    @property
    def is_own(self) -> bool:
        """Return whether this process has called the key itself, and has done what can be done."""
        return self._record.is_own(self.wanted.digest)

    def run(self) -> float | None:
        """Go on with the key and return ``None``, or the seconds to wait until another try.

        Never raises.
        """
        digest = self.wanted.digest
        try:
            if self._table.closed:
                raise _PassedOverError("closed", "the op is not registered any more")
            if self._making is None:
                self._making = self._begun()
            made = self._making.run()
        except _PassedOverError as error:
            self.outcome = Outcome("passed over", error.reason, str(error))
        except CompileError as error:
            if self._context.background_service.ended:
                return None
            kind = "failed"
            if is_remembered(error):
                kind = "declined"
                self._record.decided(digest)
            self.outcome = Outcome(kind, error.reason, str(error))
        except _NoCallError as error:
            log.info("%s: a kept key is dropped: %s", self.wanted.op, error)
            self._record.decided(digest)
            self.outcome = Outcome("failed", "damaged_line", str(error))
        except (AotiEagerError, OSError) as error:
            self.outcome = Outcome("failed", "store_unwritable", str(error))
        except Exception as error:  # noqa: BLE001 - nobody asks what became of it
            log.exception("%s: internal error", self.wanted.op)
            self.outcome = Outcome("failed", "internal_error", repr(error))
        else:
            if isinstance(made, float):
                return made
            self._record.decided(digest)
            entry = made.found.entry
            kind = "compiled" if self._making.compiled else "present"
            self.outcome = Outcome(kind)
            if entry.status is not Status.READY:
                self.outcome = Outcome("declined", entry.reason or "mismatch", entry.message or "")
        return None

    def _begun(self) -> Making:
        """Return the ``Making`` of the key's kernel.

        Raises:
            _PassedOverError: This process is not to make the kernel.
            _NoCallError: No process can ever make a kernel of this.
            StoreError: The store cannot be read.
        """
        if self._threads is not None:
            if config.mode != "background":
                raise _PassedOverError("mode", f"the mode is {config.mode}")
            if self.wanted.tries >= MOST_TRIES:
                raise _PassedOverError("tries", "was begun in vain too often")
            if self.is_own:
                raise _PassedOverError("queued", "is in the queue of this process, or has been")
        schema = self._cache.schema
        try:
            call = self.wanted.call()
        except NOT_WANTED as error:
            raise _NoCallError(f"is no call: {error!r:.200}") from error
        function = self._fitting(call)
        try:
            template = call_template(schema, call.key)
            reason = call_decline(template)
            refusal = certificate_refusal(
                schema, call.key, self._context.target, required=config.certified
            )
        except NOT_WANTED as error:
            raise _NoCallError(f"is no call of {schema.op}: {error!r:.200}") from error
        if reason is not None:
            raise _NoCallError(f"is a call that declines: {reason}")
        if refusal is not None:
            raise _PassedOverError("uncertified", refusal)
        keyed = KernelRequest(
            cache=self._cache,
            table=self._table,
            table_key=(),
            key=call.key,
            template=template,
            function=function,
            toolchain=self._cache.toolchain,
            words=None,
            numel=0,
            device=None,
        )
        if call.plan is not None and not keyed.may_be_dynamic:
            raise _PassedOverError("dynamic", "no kernels for several sizes are made of the op")
        # Recorded, so that the key is written down if this process, too, begins it in vain.
        self._record.want(call)
        found = None if call.plan is not None else find(keyed, self._context)
        return Making(keyed, self._context, found, call.plan)

    def _fitting(self, call: WantedCall) -> Description | None:
        """Return the function behind the op, if a call of this process could have the key.

        Raises:
            _PassedOverError: No call of this process could have the key.
        """
        cache, in_key = self._cache, dict(call.key.context)
        if call.schema != str(raw_schema(cache.op)):
            raise _PassedOverError("other_op", "the op has another schema here")
        try:
            function = cache.describe_function()[0]
        except UnsupportedFunctionError as error:
            raise _PassedOverError("unsupported_function", str(error)) from error
        here = {} if function is None else dict(function.context())
        original = "override" if cache.original.overridden else "torch"
        is_ours = (
            call.key.dispatch_key == cache.dispatch_key == "CPU"
            and cache.toolchain.works_in_background
            and "backend" not in in_key
            and in_key["original"] == original
            and here == {name: in_key[name] for name in _OF_FUNCTION if name in in_key}
        )
        if not is_ours:
            raise _PassedOverError("other_op", "the op has another kernel or function here")
        if self._threads not in (None, in_key["threads"]):
            raise _PassedOverError("threads", "is for another number of threads")
        return function


class _PassedOverError(AotiEagerError):
    """A kept key that this process is not to go on with; the key stays in the kept queue."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _NoCallError(AotiEagerError):
    """A line of the kept queue that is no key, or a key of another version."""


class Resumption:
    """The kept keys that this process goes on with, as one job of the background's queue."""

    def __init__(self) -> None:
        self._waiting: dict[Resumed, float] = {}  # key -> when another try makes sense
        self._is_queued = False
        self._lock = threading.RLock()

    def add(self, keys: Iterable[Resumed]) -> None:
        """Go on with ``keys``, too; if the queue is full, as soon as it has room."""
        with self._lock:
            self._waiting.update(dict.fromkeys(keys, 0.0))
            if self._waiting and not self._is_queued:
                self._is_queued = queue_module.background.submit(self)

    def queue(self) -> None:
        """Go on with the keys that the queue had no room for."""
        self.add(())

    def unfinished(self) -> Counter[str]:
        """Return how many keys wait or are being made, by op.

        Keys that this process has called itself are left out.
        """
        with self._lock:
            return Counter(one.wanted.op for one in self._waiting if not one.is_own)

    @property
    def rank(self) -> tuple[int, int, int]:
        """Return the most called key's priority; a key of this process with as many calls wins.

        See ``_compile_service.queue.Job``.
        """
        with self._lock:
            return 0, max((one.wanted.calls for one in self._waiting), default=0), 0

    def run(self) -> float | None:
        """Go on with the most called key that is ready for a try."""
        with self._lock:
            now = time.monotonic()
            ready = [one for one, at in self._waiting.items() if at <= now]
        if ready:
            best = max(ready, key=lambda one: one.wanted.calls)
            delay = best.run()
            with self._lock:
                if delay is None:
                    self._waiting.pop(best, None)
                else:
                    self._waiting[best] = time.monotonic() + delay
        with self._lock:
            if not self._waiting:
                self._is_queued = False
                return None
            return max(0.0, min(self._waiting.values()) - time.monotonic())


_resumption = Resumption()


def go_on(cache: Cache, table: Table) -> None:
    """Ask for the kernels of an op that earlier processes wanted, once in each of its tables.

    Called when a call of the op misses; later calls only read a flag.

    Args:
        cache: The op's kernel cache.
        table: The table of the call.
    """
    if table.goes_on or config.mode != "background" or config.cache_dir is None:
        return
    table.goes_on = True
    if cache_context.is_forked() or cache.dispatch_key != "CPU":
        return
    context = cache_context.current()
    kept = record_of(context.store.root).kept
    threads = torch.get_num_threads()
    _resumption.add(
        Resumed(one, cache, table, context, threads=threads)
        for one in kept.values()
        if one.op == cache.schema.op and not one.is_rare
    )


def unfinished() -> Mapping[str, int]:
    """Return how many keys of earlier processes still wait for a worker here, by op."""
    return _resumption.unfinished()


queue_module.on_room(lambda: _resumption.queue())
on_unfinished(unfinished)


def _after_fork() -> None:
    global _resumption
    _resumption = Resumption()  # The parent makes the kernels.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
