"""What is remembered of calls that may share a kernel: of families, and of groups of families."""

from __future__ import annotations

from collections import deque
from typing import Any

from .._base.data_class import dataclass, field

TableKey = tuple[Any, ...]

# How many calls of a family are remembered.
_CALLS = 32


@dataclass(slots=True)
class History:
    """What is known of one family.

    Attributes:
        calls: The values of its symbols in the last calls without a kernel.
        kernels: How many dynamic kernels were planned for it.
        is_compiling: Whether a dynamic kernel is being made for it.
        waiting: Keys of the last calls that wait for that kernel.
        tried: Digests of the plans that were compiled here, or that a call has found to have
            failed.
        counted: How many rare calls it had since its last kernel was asked for.
        spent_s: How many seconds the original took for these calls.
        is_static: Whether its calls were found to need static kernels.
    """

    calls: deque[dict[str, int]] = field(default_factory=lambda: deque(maxlen=_CALLS))
    kernels: int = 0
    is_compiling: bool = False
    waiting: deque[TableKey] = field(default_factory=deque)
    tried: set[str] = field(default_factory=set)
    counted: int = 0
    spent_s: float = 0.0
    is_static: bool = False

    @property
    def sizes(self) -> int:
        """Return how many different calls are remembered."""
        return len(self.calls)

    def add(self, calls: int, spent_s: float) -> None:
        """Count rare calls, for which the original took so many seconds."""
        self.counted += calls
        self.spent_s += spent_s

    def start_over(self) -> None:
        """Count from zero, after a kernel was asked for."""
        self.counted, self.spent_s = 0, 0.0


@dataclass(slots=True)
class Group:
    """Calls with the same ranks and dtypes.

    Attributes:
        static: How many static kernels these calls have.
        refused: Whether some of these calls could not have a dynamic kernel.
        sizes: The first few sizes of the calls' tensors.
    """

    static: int = 0
    refused: bool = False
    sizes: frozenset[str] = frozenset()
