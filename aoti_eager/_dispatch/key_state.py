"""The states of a key without a kernel: being made, counted, or declined for a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .._base.data_class import dataclass
from .counters import Counter

if TYPE_CHECKING:
    from .._keys.pattern_program import NativePattern

# The states of a key that has been given to the compile workers, in this order. In the last state,
# the kernel waits for a call of the key, to be compared on the call's arguments.
QUEUED, BEING_COMPILED, MEASURING, COMPARING = "queued", "compiling", "measuring", "comparing"
STATES = (QUEUED, BEING_COMPILED, MEASURING, COMPARING)


class Progress(Protocol):
    """The progress of a key that a kernel is being made for."""

    @property
    def state(self) -> str:
        """Return the state of the key, one of ``STATES``."""

    @property
    def step(self) -> str:
        """Return the step that a worker is in, and the time since; empty if no worker is asked."""


@dataclass(frozen=True, slots=True)
class _At:
    """Progress that stays in one state, without a worker."""

    state: str
    step: str = ""


BEING_COMPARED: Progress = _At(COMPARING)


@dataclass(frozen=True, slots=True)
class Decline:
    """The decision to keep the original kernel for a key.

    ``words`` is the key in C++; ``None`` if it has none. ``is_dynamic`` is true if a dynamic
    specialisation exists for the key, or is being made: the key then does not count as a static
    one. With a ``pattern``, C++ declines all calls that match the pattern. ``progress`` gives the
    state of a key that nothing is decided on yet; without ``progress``, the key is queued.
    ``is_counted_in_python`` is true of a key whose next call Python must see.
    """

    reason: str
    message: str
    count: Counter
    words: bytes | None = None
    is_dynamic: bool = False
    pattern: NativePattern | None = None
    progress: Progress | None = None
    is_counted_in_python: bool = False

    @property
    def is_undecided(self) -> bool:
        """Return whether the key may still get a kernel: it waits for one, or is counted."""
        return self.reason in _UNDECIDED

    @property
    def is_lost(self) -> bool:
        """Return whether the compiler was asked, and no kernel of the key is in use."""
        return self.reason in _LOST


# The reason of keys that have been given to the compile workers: nothing is decided yet, and their
# calls count as misses.
COMPILING = "compiling"
# The reason of keys that were not called often enough to be given to the compile workers: their
# calls are misses, too, and are counted.
RARE = "rare"
_UNDECIDED = (COMPILING, RARE)
# Reasons of keys that have no kernel in use although the compiler was asked. These keys cost as
# much as keys with a kernel, and an op whose kernels all fail would ask for a kernel for each new
# size.
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
