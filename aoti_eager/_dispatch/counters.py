"""Counters of one op in this process, and the totals of all processes on disk."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .._base.data_class import dataclass, field
from .._base.file_lock import locked
from .._base.store_format import TOTALS_FILE
from .._base.trusted_files import Directory, open_directory
from .._native.table import NativeCounter

# Re-entrant, like every lock that a call may take: a finalizer that runs under it may call an op.
_native_lock = threading.RLock()


class Counter:
    """A count that threads may raise without a lock: ``next`` on it is one step of CPython.

    C++ raises a separate part.
    """

    __slots__ = ("_closed", "_count", "_native", "add")

    def __init__(self) -> None:
        self._count = itertools.count()
        self._native: NativeCounter | None = None
        self._closed = 0  # What C++ has counted in parts that were freed.
        self.add = self._count.__next__

    @property
    def value(self) -> int:
        """Return how often it was raised."""
        if self._native is None:
            return self._own
        with _native_lock:  # Another thread may close it.
            return self._own if self._native is None else self._own + self._native.value

    @property
    def _own(self) -> int:
        # The text "count(5)" is the only way to read a count without raising it: copying a count is
        # deprecated since Python 3.12 and gone in 3.14.
        return self._closed + int(repr(self._count)[len("count(") : -1])

    @property
    def native(self) -> NativeCounter:
        """Return the part for C++; the hit path must be loaded."""
        with _native_lock:
            if self._native is None:
                self._native = NativeCounter()
            return self._native

    def close(self) -> None:
        """Free the part for C++, which no call may raise any more; its count is kept."""
        with _native_lock:
            native, self._native = self._native, None
            if native is None:
                return
            self._closed += native.value
            native.close()


class LentCounter(Counter):
    """A counter lent to one key, from zero; when the key drops it, another key gets it.

    The counter is not freed: a call in C++ may be about to raise it, and that call counts, too.

    Args:
        counter: The counter that is lent.
        free: Gets the counter back when nothing refers to this object any more.
    """

    __slots__ = ("_before", "_counter", "_free")

    def __init__(self, counter: Counter, free: list[Counter]) -> None:
        self._counter = counter
        self._before = counter.value
        self._free = free
        self.add = counter.add

    def __del__(self) -> None:
        self._free.append(self._counter)  # One step of CPython: this runs at any point of a thread.

    @property
    def value(self) -> int:
        """Return how often it was raised for this key."""
        return self._counter.value - self._before

    @property
    def native(self) -> NativeCounter:
        """Return the part for C++; the hit path must be loaded."""
        return self._counter.native

    def close(self) -> None:
        """Free the part for C++, as ``Counter.close``."""
        self._counter.close()


class _Lender:
    """Counters of undecided keys: as many as there were undecided keys at one time."""

    def __init__(self) -> None:
        self.counters: list[Counter] = []
        self._free: list[Counter] = []

    def __len__(self) -> int:
        return len(self.counters)

    def lend(self) -> LentCounter:
        """Return a counter that no other key has."""
        try:
            counter = self._free.pop()
        except IndexError:
            counter = Counter()
            self.counters.append(counter)
        return LentCounter(counter, self._free)

    @property
    def value(self) -> int:
        """Return how often all of them together were raised, for any key."""
        return sum(counter.value for counter in list(self.counters))


@dataclass(frozen=True, slots=True)
class OpStats:
    """What happened to the calls of one op.

    Attributes:
        hits: Calls that a kernel library served.
        misses: Calls that ran the original kernel because no kernel was there yet: it was made
            during the call or in the background, or the original raised.
        declines: Calls that ran the original kernel for a named reason.
        compiles: Kernel libraries compiled.
        failures: Compiles that gave no usable library, and runs that raised.
        declined: Calls by decline reason; they add up to ``declines``.
        rechecks: Hits that were compared with the original once more.
        rare: Of the misses, calls of keys that had not been called often enough to be worth a
            compile (``compile_after``).
        unfinished: Keys without a decision at this moment, by state: ``queued``, ``compiling``,
            ``measuring``, ``comparing`` (on their next call).
        saved_s: About how many seconds the hits have saved, by the measured times of kernels, as if
            all kernels of an op were called equally often.
        steps: The steps that workers are in with kernels of the op at this moment, in words.

    Comparisons of counts leave out the last five.
    """

    hits: int = 0
    misses: int = 0
    declines: int = 0
    compiles: int = 0
    failures: int = 0
    declined: Mapping[str, int] = field(default_factory=dict)
    rechecks: int = field(default=0, compare=False)
    rare: int = field(default=0, compare=False)
    unfinished: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    saved_s: float = field(default=0.0, compare=False, repr=False)
    steps: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def calls(self) -> int:
        """Return how many calls there were: each is a hit, a miss or a decline."""
        return self.hits + self.misses + self.declines

    def __add__(self, other: OpStats) -> OpStats:
        declined = _added(self.declined, other.declined)
        return OpStats(
            self.hits + other.hits,
            self.misses + other.misses,
            self.declines + other.declines,
            self.compiles + other.compiles,
            self.failures + other.failures,
            declined,
            self.rechecks + other.rechecks,
            self.rare + other.rare,
            _added(self.unfinished, other.unfinished),
            self.saved_s + other.saved_s,
            self.steps + other.steps,
        )


def _added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    added = dict(counts)
    for name, count in more.items():
        added[name] = added.get(name, 0) + count
    return added


class OpCounters:
    """The counters behind one op's ``OpStats``."""

    def __init__(self) -> None:
        self.hits = Counter()
        self.misses = Counter()
        self.compiles = Counter()
        self.failures = Counter()
        self.rechecks = Counter()
        self._declined: dict[str, Counter] = {}
        self._pending = _Lender()
        self._counting = _Lender()
        self._lock = threading.RLock()

    def after_fork(self) -> None:
        """Let go of a lock that a thread of the parent may have held."""
        self._lock = threading.RLock()

    def close(self) -> None:
        """Free the parts that C++ counted with; the counts stay."""
        with self._lock:
            undecided = (*self._pending.counters, *self._counting.counters)
            for counter in (self.hits, self.misses, *self._declined.values(), *undecided):
                counter.close()

    def declined(self, reason: str) -> Counter:
        """Return the counter of calls declined for ``reason``."""
        with self._lock:
            return self._declined.setdefault(reason, Counter())

    def pending(self) -> Counter:
        """Return a counter for the calls of one key while its kernel is being made: misses.

        Another key gets the counter when nothing refers to it any more.
        """
        return self._pending.lend()

    def counting(self) -> Counter:
        """Return a counter for the calls of one rare key: misses; lent as in ``pending``."""
        return self._counting.lend()

    def snapshot(self) -> OpStats:
        """Return the current counts."""
        with self._lock:
            declined = {reason: c.value for reason, c in self._declined.items() if c.value}
        pending, rare = self._pending.value, self._counting.value
        return OpStats(
            hits=self.hits.value,
            misses=self.misses.value + pending + rare,
            declines=sum(declined.values()),
            compiles=self.compiles.value,
            failures=self.failures.value,
            declined=declined,
            rechecks=self.rechecks.value,
            rare=rare,
        )


_unfinished: list[Callable[[], Mapping[str, int]]] = []


def on_unfinished(source: Callable[[], Mapping[str, int]]) -> None:
    """Have ``source`` give how many keys of other processes wait for a worker here, by op."""
    _unfinished.append(source)


def unfinished_of_others() -> dict[str, int]:
    """Return how many keys of earlier processes still wait for a worker here, by op."""
    total: dict[str, int] = {}
    for source in _unfinished:
        for op, number in source().items():
            total[op] = total.get(op, 0) + number
    return total


def _after_fork() -> None:
    global _native_lock
    _native_lock = threading.RLock()  # A thread of the parent may have held the lock.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# At most so many bytes of the totals are read, before any of their content is believed.
TOTALS_LIMIT = 4 << 20
# Short: this runs at exit, and a lost count is better than a late end.
_TOTALS_TIMEOUT_S = 2.0


def read_totals(root: Path | None) -> dict[str, OpStats]:
    """Return the stored totals by op; empty if there are none, or they cannot be read.

    Args:
        root: The store's directory; ``None`` for a user who has no store.
    """
    if root is None:
        return {}
    try:
        with open_directory(root) as directory:
            return _read_totals(directory)
    except OSError:
        return {}


def _read_totals(root: Directory) -> dict[str, OpStats]:
    try:
        values = json.loads(root.read(TOTALS_FILE, TOTALS_LIMIT))
        # Added to zero counts: a value that cannot be added is no count.
        return {op: OpStats() + OpStats(**counts) for op, counts in values.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _lasting(total: OpStats) -> dict[str, Any]:
    """Return the counts of an op that are kept on disk: not those that describe a moment."""
    values = asdict(total)
    del values["unfinished"], values["steps"]
    return values


def add_totals(root: Path, stats: Mapping[str, OpStats]) -> None:
    """Add ``stats`` to the totals in the store at ``root``, which must exist.

    Raises:
        OSError: They cannot be written.
    """
    with (
        open_directory(root) as directory,
        directory.directory("locks", create=True) as locks,
        locked(locks, "totals", _TOTALS_TIMEOUT_S),
    ):
        totals = _read_totals(directory)
        for op, counts in stats.items():
            totals[op] = totals.get(op, OpStats()) + counts
        document = json.dumps({op: _lasting(total) for op, total in sorted(totals.items())})
        directory.write(TOTALS_FILE, document.encode())
