"""One rare key: its calls are counted, and its first two are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .._compile_service.cache_context import CacheContext
from ..config import config
from .decision import refusal_of
from .family_history import History
from .kernel_request import KernelRequest
from .key_state import RARE
from .payback import payback
from .table import TableKey

# The shortest time between two looks at one key's count.
SHORTEST_S = 0.1


class Counting(Protocol):
    """What counts the rare keys of this process."""

    def called_again(self, rare: Rare, taken_s: float) -> None:
        """Take the second call of a key into account."""


class Rare:
    """One key that is counted; in the table's candidates until its second call."""

    __slots__ = (
        "_rares",
        "before",
        "call",
        "call_s",
        "context",
        "count",
        "family",
        "looked_at",
        "pause_s",
        "seen",
    )

    def __init__(
        self, rares: Counting, call: KernelRequest, context: CacheContext, before: int
    ) -> None:
        self._rares = rares
        self.call = call
        self.context = context
        self.before = before
        self.family: History | None = None
        self.call_s = math.inf
        self.count = call.cache.counters.counting()
        self.seen = 0
        self.pause_s = SHORTEST_S
        self.looked_at = math.inf  # not before its second call

    @property
    def place(self) -> tuple[int, TableKey]:
        """Return what identifies the key in this process."""
        return id(self.call.table), self.call.table_key

    @property
    def calls(self) -> int:
        """Return how often the key was called in this process."""
        return self.count.value

    @property
    def holds(self) -> bool:
        """Return whether the key is still undecided because it had too few calls."""
        decline = self.call.table.declines.get(self.call.table_key)
        return decline is not None and decline.reason == RARE

    def add(self, taken_s: float) -> None:
        """Take a timed call into account: the shortest one gives the time of a call."""
        self.call_s = min(self.call_s, taken_s)

    def missing(self, calls: int) -> float:
        """Return after how many calls more than ``calls`` a static kernel is likely to pay."""
        calls += self.before
        return payback.missing(calls, calls * self.call_s)

    def serve(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the original's result for the second call, which is timed as the first was."""
        self.count.add()
        start = time.thread_time()
        try:
            result = self.call.cache.original(keyset, args, kwargs)
        except BaseException:
            self.call.table.offer(self.call.table_key, self)  # Not timed: a later call is.
            raise
        taken_s = time.thread_time() - start
        try:
            self._rares.called_again(self, taken_s)
        except Exception as error:
            if config.strict:
                raise
            refusal = refusal_of(self.call.key.op, error)
            self.call.decline(refusal.reason, refusal.message)
        return result
