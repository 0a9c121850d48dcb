"""One call of a region on its way through the op of the region's tape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .results import fresh_tensors


class Frame:
    """One call of a region that goes through the op of its tape.

    If no library serves the call, the op's original asks the frame for the forward's results, once.

    Args:
        forward: The region's forward.
        args: The call's positional arguments.
        kwargs: The call's keyword arguments.
        given: The tensors among the arguments.

    Attributes:
        has_run: Whether the forward's results were asked for.
        has_result: Whether the forward has returned.
        result: What the forward has returned.
    """

    __slots__ = ("_args", "_forward", "_given", "_kwargs", "has_result", "has_run", "result")

    def __init__(
        self,
        forward: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        given: Sequence[Tensor],
    ) -> None:
        self._forward, self._args, self._kwargs, self._given = forward, args, kwargs, given
        self.has_run = self.has_result = False
        self.result: Any = None

    def run(self) -> list[Tensor]:
        """Return the new tensors among the forward's results."""
        self.has_run = True
        self.result = self._forward(*self._args, **self._kwargs)
        self.has_result = True
        return fresh_tensors(self.result, self._given)
