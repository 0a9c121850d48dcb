"""The in-memory table of one op for one cache directory, with its twin in C++.

The dicts are what decides; the C++ table holds what of them C++ can serve, and may lack entries but
never has others. Writers come one at a time; readers take no lock: in Python because a look into a
dict is one step, in C++ by epochs (``csrc/epochs.h``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .._base.data_class import dataclass
from .._native.table import NativeTable
from .counters import Counter
from .kernel import Kernel
from .specialisations import Specialisations

if TYPE_CHECKING:
    from .._keys.pattern_program import NativePattern

TableKey = tuple[Any, ...]

# Keys remembered as declined.
DECLINES_LIMIT = 1 << 16
# Keys with a kernel; beyond it those that share a dynamic one are forgotten, and found again.
KERNELS_LIMIT = 1 << 12


# What becomes of a key that has been given to the compile workers, in this order. The last one
# waits for a call of the key, to be compared on its arguments.
QUEUED, BEING_COMPILED, MEASURING, COMPARING = "queued", "compiling", "measuring", "comparing"
STATES = (QUEUED, BEING_COMPILED, MEASURING, COMPARING)


class Progress(Protocol):
    """A key that a kernel is being made for."""

    @property
    def state(self) -> str:
        """Return how far it has come, one of ``STATES``."""


@dataclass(frozen=True, slots=True)
class _At:
    """One that stays where it is."""

    state: str


BEING_COMPARED: Progress = _At(COMPARING)


@dataclass(frozen=True, slots=True)
class Decline:
    """The decision to keep the original kernel for a key.

    ``words`` is the key in C++; ``None`` if it has none. ``is_dynamic`` is true of a key that a
    dynamic specialisation is there for, or comes: it does not count as one of its own. With a
    ``pattern`` C++ declines all calls that match it. ``progress`` says how far a key has come that
    nothing is decided on yet; without it, it is queued. ``is_counted_in_python`` is true of a key
    whose next call Python wants to see.
    """

    reason: str
    message: str
    count: Counter
    words: bytes | None = None
    is_dynamic: bool = False
    pattern: NativePattern | None = None
    progress: Progress | None = None
    is_counted_in_python: bool = False


# The reason of keys that have been given to the compile workers: nothing is decided yet, and their
# calls count as misses.
COMPILING = "compiling"
# The reason of keys that were not called often enough to be given to them: their calls are misses,
# too, and are counted.
RARE = "rare"
_UNDECIDED = (COMPILING, RARE)
# Of keys that have no kernel in use, though the compiler was asked: they were as dear as those that
# have one, and an op of which every kernel fails would ask for each new size.
_LOST = frozenset(
    {
        "slower",
        "unmeasured",
        "mismatch",
        "crashed",
        "raised",
        "compile_failed",
        "compile_timeout",
        "does_not_trace",
        "needs_proxy_executor",
        "no_kernel_of_its_own",
    }
)


_close_observers: list[Callable[[], None]] = []


def on_close(observer: Callable[[], None]) -> None:
    """Call ``observer`` after tables were closed."""
    _close_observers.append(observer)


def tell_of_closed() -> None:
    """Have everything let go of that is about tables that were closed; not under a table's lock."""
    for observer in _close_observers:
        observer()


class Arrival(Protocol):
    """A library that has come for a key, and serves once a call of it was compared."""

    def serve(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return a call's result, and put the library or a decline into the table."""


class Table:
    """What has been decided for the keys of one op.

    Attributes:
        kernel: Returns the kernel of a key, or ``None``; it is on the hit path.
        native: The same for C++, once ``attach`` was called.
        arrivals: What is to be compared on the next call of its key.
        compiling: How many keys are with the compile workers.
        lost: How many have a kernel that does not pay off, or could not be given one.
        dynamic: The op's dynamic specialisations.
        closed: Whether nobody looks into it any more, and nothing is kept in it.
        goes_on: Whether what earlier processes wanted of the op has been looked at.
    """

    def __init__(self) -> None:
        self.kernels: dict[TableKey, Kernel] = {}
        self.declines: dict[TableKey, Decline] = {}
        # Bound once: looking the method up on every call costs as much as the lookup.
        self.kernel: Callable[[TableKey], Kernel | None] = self.kernels.get
        self.native: NativeTable | None = None
        self.candidates: dict[TableKey, Arrival] = {}
        self.compiling = 0
        self.lost = 0
        self.closed = False
        self.goes_on = False
        self._listener: Callable[[], None] | None = None
        self.dynamic = Specialisations()
        self._lock = threading.RLock()

    @property
    def static_count(self) -> int:
        """Return how many keys have a kernel, used or not, or are getting one."""
        static = sum(not kernel.is_dynamic for kernel in self.kernels.values())
        return static + self.compiling + self.lost

    def state(self, key: TableKey, decline: Decline) -> str | None:
        """Return how far a key has come that has no kernel yet; ``None`` where it was decided."""
        if decline.reason != COMPILING:
            return None
        if key in self.candidates:
            return COMPARING
        return QUEUED if decline.progress is None else decline.progress.state

    def unfinished(self) -> dict[str, int]:
        """Return how many keys have no decision yet, by state."""
        counts = dict.fromkeys(STATES, 0)
        for key, decline in list(self.declines.items()):
            state = self.state(key, decline)
            if state is not None:
                counts[state] += 1
        return {state: count for state, count in counts.items() if count}

    def attach(self) -> NativeTable:
        """Return the C++ twin, made and filled by the first call; the hit path must be loaded."""
        with self._lock:
            if self.native is None:
                self.native = NativeTable()
                for kernel in self.kernels.values():
                    self._put_natively(kernel)
                for key, decline in self.declines.items():
                    # C++ would keep the original for good: Python compares what has come.
                    if key not in self.candidates:
                        self._decline_natively(decline)
            return self.native

    def tell(self, listener: Callable[[], None] | None) -> None:
        """Tell ``listener`` of every decision that is taken back, and of libraries that come.

        ``None`` for nobody: who was told is not any more when this returns.
        """
        with self._lock:
            self._listener = listener

    def put(self, key: TableKey, kernel: Kernel) -> None:
        """Serve calls of ``key`` by ``kernel`` from now on."""
        with self._lock:
            if self.closed:
                return
            if len(self.kernels) >= KERNELS_LIMIT:
                self.drop_kernels(lambda one: one.is_dynamic)
            self._leave_pattern(key, kernel)
            self.kernels[key] = kernel
            self._undecline(key)
            self._put_natively(kernel)

    def offer(self, key: TableKey, arrival: Arrival) -> None:
        """Have the next call of ``key`` compared; calls beside it go on with the original."""
        with self._lock:
            decline = self.declines.get(key)
            if self.closed or decline is None or decline.reason not in _UNDECIDED:
                return  # It was decided otherwise meanwhile.
            self.candidates[key] = arrival
            if self.native is not None and decline.words is not None:
                self.native.remove(decline.words)
            self._tell()

    def drop_kernels(self, which: Callable[[Kernel], bool]) -> None:
        """Let go of the kernels of which ``which`` is true; their keys are decided on again."""
        with self._lock:
            for key, kernel in list(self.kernels.items()):
                if which(kernel):
                    self._remove_natively(kernel)
                    del self.kernels[key]
                    self._tell()

    def leave_dynamic(self) -> None:
        """Decide anew on the keys that dynamic specialisations serve, or were to serve."""
        with self._lock:
            self.drop_kernels(lambda kernel: kernel.is_dynamic)
            for key, decline in list(self.declines.items()):
                if decline.is_dynamic:
                    self.forget_decline(key)

    def distrust(self, digest: str) -> None:
        """Serve no call any more by the dynamic specialisation whose pattern has this digest."""
        # Not under the table's lock: a specialisation that is asked for takes that after its own.
        self.dynamic.distrust(digest)
        with self._lock:
            # Whichever these are: those of others are found again by their next calls.
            self.drop_kernels(lambda kernel: kernel.is_dynamic)

    def decline(self, key: TableKey, decline: Decline) -> None:
        """Keep the original for calls of ``key`` from now on."""
        with self._lock:
            if self.closed:
                return
            if len(self.declines) >= DECLINES_LIMIT:
                self._forget_declines()  # They are found out again; memory is not.
            self._leave_pattern(key, decline)
            kernel = self.kernels.get(key)
            if kernel is not None:
                # Before Python lets go of it: whoever finds none there must not be served by C++.
                self._remove_natively(kernel)
            lost = self.kernels.pop(key, None) is not None
            self._undecline(key)
            self.declines[key] = decline
            if lost:
                self._tell()
            self._count(decline, 1)
            self._decline_natively(decline)

    def forget_declines(self, reason: str) -> None:
        """Let the keys declined for ``reason`` be decided on again."""
        with self._lock:
            for key, decline in list(self.declines.items()):
                if decline.reason == reason:
                    self.forget_decline(key)

    def forget_decline(self, key: TableKey) -> None:
        """Let one key be decided on again."""
        with self._lock:
            decline = self.declines.get(key)
            self._undecline(key)
            if decline is not None:
                self._remove_natively(decline)

    def clear(self) -> None:
        """Let go of all libraries; a call that is inside of one ends undisturbed."""
        with self._lock:
            if self.native is not None:
                self.native.clear()
            self.kernels.clear()
            self.declines.clear()
            self.candidates.clear()
            self.compiling = self.lost = 0
            self.dynamic = Specialisations()
            self._tell()

    def close(self) -> None:
        """Let go of all, for good; no op may look into the C++ table any more."""
        with self._lock:
            self.clear()
            self.closed = True  # What a worker still brings is let go of.
            native, self.native = self.native, None
            if native is not None:
                native.close()

    def after_fork(self) -> None:
        """Let go of a lock that a thread of the parent may have held."""
        self._lock = threading.RLock()
        self.dynamic.after_fork()

    def _undecline(self, key: TableKey) -> None:
        decline = self.declines.pop(key, None)
        self.candidates.pop(key, None)
        if decline is not None:
            self._count(decline, -1)
            self._tell()

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener()

    def _count(self, decline: Decline, change: int) -> None:
        if not decline.is_dynamic:
            self.compiling += change * (decline.reason == COMPILING)
            self.lost += change * (decline.reason in _LOST)

    def _forget_declines(self) -> None:
        self.declines.clear()
        self.candidates.clear()
        self.compiling = self.lost = 0
        if self.native is not None:
            # Not one by one: that would be a pause in the call that came to the limit.
            self.native.clear()
            for kernel in self.kernels.values():
                self._put_natively(kernel)
        self._tell()

    def _put_natively(self, kernel: Kernel) -> None:
        if self.native is None or kernel.words is None or kernel.native_results is None:
            return
        run = kernel.native()
        if run is None:
            return
        if kernel.pattern is None:
            if not kernel.numbers:
                looks = kernel.look is not None
                self.native.put(kernel.words, run, kernel.native_results, looks=looks)
            return
        name, program = kernel.pattern.name, kernel.pattern.program
        self.native.put(
            name,
            run,
            kernel.native_results,
            program,
            kernel.numbers,
            looks=kernel.look is not None,
        )
        self.native.remove(kernel.words)  # What a key has of its own comes first.

    def _decline_natively(self, decline: Decline) -> None:
        if self.native is None or decline.words is None or decline.is_counted_in_python:
            return
        if decline.pattern is None:
            self.native.put_decline(decline.words, decline.count.native)
            return
        name, program = decline.pattern.name, decline.pattern.program
        self.native.put_decline(name, decline.count.native, program)
        self.native.remove(decline.words)

    def _leave_pattern(self, key: TableKey, successor: Kernel | Decline) -> None:
        """Take out what C++ matches by the key's kernel, which nobody could take out afterwards."""
        before = self.kernels.get(key)
        if self.native is None or before is None or before.pattern is None:
            return
        if successor.pattern is None or successor.pattern.name != before.pattern.name:
            self.native.remove_pattern(before.pattern.name)

    def _remove_natively(self, held: Kernel | Decline) -> None:
        if self.native is None or held.words is None:
            return
        self.native.remove(held.words)
        if held.pattern is not None:
            self.native.remove_pattern(held.pattern.name)
