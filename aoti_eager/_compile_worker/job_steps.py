"""Which step the worker's job is in: told to the script when the step begins.

The worker does one job at a time, so the code that does a step names it, wherever the code is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from .._compile_service.steps import MOST_STEPS, Step


class JobSteps:
    """The steps of the job that is being done, and who is told of them."""

    def __init__(self) -> None:
        self._tell: Callable[[Step], None] | None = None
        self._clear()

    def _clear(self) -> None:
        self._names: list[str] = []
        self._at = -1  # The present step's place among the names.
        self._told = 0

    @contextlib.contextmanager
    def told_to(self, tell: Callable[[Step], None]) -> Iterator[None]:
        """Tell of the steps of one job in the block.

        Args:
            tell: Is told each step, on the job's thread.
        """
        self._clear()
        self._tell = tell
        try:
            yield
        finally:
            self._tell = None
            self._clear()

    def plan(self, *names: str) -> None:
        """Note that the job has these steps, in this order, after those that it has already."""
        self._names.extend(names)

    def begin(self, name: str) -> None:
        """Tell that a step begins: the next one of that name, or, if none follows, an earlier one.

        A step that is not planned is not told of, nor is the present one once more.
        """
        if self._tell is None or name not in self._names:
            return
        if self._at >= 0 and self._names[self._at] == name:
            return
        after = self._names[self._at + 1 :]
        self._at = self._at + 1 + after.index(name) if name in after else _last(self._names, name)
        self._told += 1
        if self._told <= MOST_STEPS:
            self._tell(Step(name, self._at + 1, len(self._names)))


def _last(names: Sequence[str], name: str) -> int:
    return len(names) - 1 - names[::-1].index(name)


steps = JobSteps()
