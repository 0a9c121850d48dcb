"""Rare keys, not called often enough to be worth a compile: counted, and asked for in time.

Python times the first two calls of a key. C++ counts the calls from the third on, and a thread
looks at the counts now and then. So a call that does not pay for a kernel costs as much as a
declined call.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable

from .._base.handover import let_others_run
from .._base.torch_compat.dispatcher import raw_schema
from .._compile_service import queue
from .._compile_service.cache_context import CacheContext
from .._store.kept_queue import (
    calls_before,
    on_keep,
    record_of,
)
from .._store.wanted_calls import (
    WantedCall,
)
from ..config import config
from ..errors import StoreError
from .asking import Asked, ask, is_asking_at_once
from .kernel_request import KernelRequest
from .key_state import RARE
from .look_thread import LookThread
from .payback import payback
from .rare_key import SHORTEST_S, Rare
from .table import Table, TableKey, on_close

log = logging.getLogger("aoti_eager")

# How many keys are counted at a time at most, in all ops together: each call of a script may have a
# new key.
RARES_LIMIT = 2048
# How many of the keys that are undecided when Python ends are written down, the most called first.
_MOST_KEPT = 64
# The longest time between two looks at one key's count.
_LONGEST_S = 4.0
# After so many keys, a look hands the interpreter over.
_AT_ONCE = 32
# Outcomes of asking after which the kernel is asked for again.
_NOT_NOW = (Asked.FULL, Asked.NO_PLAN)
_MESSAGE = "its calls have not taken enough time yet to make a kernel pay (compile_after)"


class Rares:
    """The keys of this process that are counted, and the thread that looks at them.

    Args:
        clock: Gives seconds.
        has_thread: Whether to start the thread; without the thread, the caller calls ``look``.

    Attributes:
        calls_before: Gives how often a key was called in earlier runs, by op and digest.

    More than 12 methods, because calls and the thread change the keys under one lock.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, has_thread: bool = True
    ) -> None:
        self.calls_before: Callable[[str, str], int] = calls_before
        self._clock = clock
        self._has_thread = has_thread
        self._kept: dict[tuple[int, TableKey], Rare] = {}
        self._changed = threading.Condition(threading.RLock())
        self._thread = LookThread(self.look, self._next_at, clock, self._changed)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self) -> None:
        """Write down the calls of keys that were called more than once, for later processes."""
        kept = list(self._kept.values())
        kept.sort(key=lambda one: -one.calls)
        for rare in kept[:_MOST_KEPT]:
            calls = rare.calls
            if calls > 1 and rare.holds:
                schema = str(raw_schema(rare.call.cache.op))
                wanted = WantedCall(rare.call.key, schema, is_rare=True)
                record_of(rare.context.store.root).want(wanted, functools.partial(int, calls))

    def calls_of(self, table: Table, key: TableKey) -> int:
        """Return how often this process has called a key that is counted; 0 for any other key."""
        rare = self._kept.get((id(table), key))
        return 0 if rare is None else rare.calls

    # -- in a call --

    def called(self, call: KernelRequest, context: CacheContext, taken_s: float) -> Asked | None:
        """Count a call whose key the table does not know; ask for its kernel if that is due.

        Args:
            call: The call, whose original has run.
            context: The current cache context.
            taken_s: How many seconds the original took.

        Returns:
            What became of asking, or ``None`` if the call was only counted.
        """
        _read_ahead(call, context)
        before = self.calls_before(call.key.op, call.key.digest)
        with self._changed:
            rare = self._kept.get((id(call.table), call.table_key))
            if rare is None:
                if is_asking_at_once() or config.compile_after == 1:
                    return ask(call, context)
                if self._is_capped(call):
                    return Asked.CAPPED
                if len(self._kept) >= RARES_LIMIT:
                    self._wake(self._clock())
                    return Asked.MANY
                rare = Rare(self, call, context, before)
                self._kept[rare.place] = rare
                if call.may_be_dynamic:
                    rare.family = call.table.dynamic.seen(call.cache.schema, call.key)
            if rare.family is not None and rare.family.is_compiling:
                asked: Asked | None = self._ask(rare, for_family=True)
            else:
                rare.add(taken_s)
                asked = self._ask_if_due(rare, rare.calls + 1)
            if asked is None:
                rare.count.add()
                rare.looked_at = math.inf
                call.decline(RARE, _MESSAGE, rare.count, is_counted_in_python=True)
                call.table.offer(call.table_key, rare)
            return asked

    def _is_capped(self, call: KernelRequest) -> bool:
        """Return whether the op has all the kernels that it may have; if so, decline the call."""
        static = call.table.static_count
        if static < config.static_cap:
            return False
        schema, dynamic = call.cache.schema, call.table.dynamic
        is_open = call.may_be_dynamic
        foreseen = dynamic.foreseen_refusal if is_open else dynamic.refusal
        refusal = foreseen(schema, call.key, static)
        if refusal is not None:
            call.decline("specialisation_cap", refusal)
        return refusal is not None

    def called_again(self, rare: Rare, taken_s: float) -> None:
        """Take the second call of a key into account; from now on C++ counts."""
        _read_ahead(rare.call, rare.context)
        with self._changed:
            if self._kept.get(rare.place) is not rare or not rare.holds:
                return  # Something else was decided meanwhile.
            rare.add(taken_s)
            if is_asking_at_once() and self._ask(rare, for_family=False) not in _NOT_NOW:
                return
            if self._ask_if_due(rare, rare.calls) is not None:
                return
            rare.call.decline(RARE, _MESSAGE, rare.count)
            rare.looked_at = self._clock()
            self._wake(rare.looked_at + rare.pause_s)

    # -- beside the script --

    def look(self) -> None:
        """Ask for the kernels that became due since the last look; drop decided keys."""
        now = self._clock()
        with self._changed:
            kept = list(self._kept.values())
        for number, rare in enumerate(kept):
            if number % _AT_ONCE == _AT_ONCE - 1:
                let_others_run()
            if rare.call.table.closed or rare.looked_at + rare.pause_s <= now:
                _read_ahead(rare.call, rare.context)
                with self._changed:
                    try:
                        self._look_at(rare, now)
                    except Exception:  # For example, the store cannot be read; other keys go on.
                        log.exception("%s: a look at its count failed", rare.call.key.op)
                        rare.looked_at = now
                let_others_run()
        if len(self._kept) >= RARES_LIMIT:
            self._make_room()

    def ask_for_all(self) -> bool:
        """Ask for the kernels of all keys that are counted; return whether the queue is full.

        For a caller that waits for kernels: waiting for kernels means wanting them.
        """
        with self._changed:
            kept = list(self._kept.values())
        for rare in kept:
            _read_ahead(rare.call, rare.context)
            with self._changed:
                if self._is_open(rare) and self._ask(rare, for_family=False) is Asked.FULL:
                    return True
        return False

    def _look_at(self, rare: Rare, now: float) -> None:
        if self._kept.get(rare.place) is not rare:
            return
        if rare.call.table.closed or not rare.holds:
            self._drop(rare)
            return
        seen, calls = rare.seen, rare.calls
        if self._is_open(rare) and self._ask_if_due(rare, calls) is not None:
            return
        # A key that is called is looked at again when it will be due; a key without calls, less and
        # less often.
        rare.pause_s = min(2 * rare.pause_s, _LONGEST_S)
        if calls > seen:
            due_in_s = rare.missing(calls) * (now - rare.looked_at) / (calls - seen)
            rare.pause_s = min(max(due_in_s, SHORTEST_S), rare.pause_s)
        rare.looked_at = now

    def forget(self, call: KernelRequest) -> bool:
        """Stop counting a call's key, as its kernel may be in the store; return whether it was."""
        with self._changed:
            rare = self._kept.get((id(call.table), call.table_key))
            if rare is None:
                return False
            self._drop(rare)
            return True

    def forget_closed(self) -> None:
        """Drop the keys of tables that are closed."""
        with self._changed:
            for rare in [one for one in list(self._kept.values()) if one.call.table.closed]:
                self._drop(rare)

    def _is_open(self, rare: Rare) -> bool:
        """Return whether the kernel may be asked for: the key is undecided, its table in use."""
        call = rare.call
        if self._kept.get(rare.place) is not rare:
            return False
        in_use = config.mode in ("background", "recache") and call.cache.table is call.table
        return in_use and not call.table.closed and rare.holds

    def _ask_if_due(self, rare: Rare, calls: int) -> Asked | None:
        """Ask for the kernel of a key with ``calls`` calls, or of its family, if that is due."""
        family = rare.family
        if family is not None:
            family.add(calls - rare.seen, (calls - rare.seen) * rare.call_s)
        rare.seen = calls
        asked = None
        if not rare.missing(calls):
            asked = self._ask(rare, for_family=False)
        elif (
            family is not None
            and family.sizes > 1
            and not family.is_static
            and not payback.missing(family.counted, family.spent_s)
        ):
            asked = self._ask(rare, for_family=True)
            if asked is Asked.NO_PLAN:
                family.is_static = True
        return None if asked in _NOT_NOW else asked

    def _ask(self, rare: Rare, *, for_family: bool) -> Asked:
        call, family = rare.call, rare.family
        found = (
            call.table.dynamic.kernels.find(call.cache.schema, call.key, rare.context)
            if call.may_be_dynamic
            else None
        )
        if found is not None:  # It has come since the key's first call, for other keys.
            self._drop(rare)
            return Asked.FOUND
        let_others_run()
        calls = max(1, rare.calls)
        asked = ask(call, rare.context, for_family=for_family, calls=calls)
        if asked is Asked.PASSES:
            asked = ask(call, rare.context, for_family=for_family, calls=calls)
        if asked in _NOT_NOW:
            return asked
        self._drop(rare)
        if family is not None and family.is_compiling:
            family.start_over()
            for other in [one for one in list(self._kept.values()) if one.family is family]:
                if not self._is_open(other):
                    continue
                if ask(other.call, other.context, calls=max(1, other.calls)) is Asked.QUEUED:
                    self._drop(other)
        return asked

    def _drop(self, rare: Rare) -> None:
        """Stop counting a key; if the key is still undecided, its next call counts as its first."""
        self._kept.pop(rare.place, None)
        if rare.holds:
            rare.call.table.forget_decline(rare.call.table_key)

    def _wake(self, at: float) -> None:
        if self._has_thread:
            self._thread.wake(at)

    def _next_at(self) -> float:
        """Return when the next key is to be looked at; infinity if none is."""
        kept = list(self._kept.values())
        return min((one.looked_at + one.pause_s for one in kept), default=math.inf)

    def _make_room(self) -> None:
        """Drop the half of the keys whose calls have taken the least time."""
        with self._changed:
            # At random among equals: otherwise, of keys that come in turn, the same keys would
            # always be dropped.
            kept = list(self._kept.values())
            order = sorted(kept, key=lambda one: (_spent(one), random.random()))
        for number, rare in enumerate(order[: len(order) // 2]):
            if number % _AT_ONCE == _AT_ONCE - 1:
                let_others_run()
            with self._changed:
                if self._kept.get(rare.place) is rare:
                    self._drop(rare)
        queue.tell_of_room()


def _read_ahead(call: KernelRequest, context: CacheContext) -> None:
    """Read the store's dynamic kernels of the op, if that was not done yet; not under the lock.

    Calls of all ops wait for the lock. If the store cannot be read, asking for a kernel reports
    that.
    """
    if config.dynamic is not False and call.may_be_dynamic and not call.table.closed:
        with contextlib.suppress(StoreError, OSError):
            call.table.dynamic.kernels.read(call.key.op, context)


def _spent(rare: Rare) -> float:
    return rare.seen * rare.call_s if rare.seen else 0.0


rares = Rares()


def _after_fork() -> None:
    global rares
    rares = Rares()  # The thread stayed with the parent, and the keys are declined.


on_keep(lambda: rares.keep())
on_close(lambda: rares.forget_closed())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
