"""What the original's run does to a call's arguments, and a kernel could not do."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torch import Tensor

from .._keys.unsaid_writes import UnsaidWrites
from .decision import Refusal
from .kernel_request import KernelRequest


class ArgumentWatch:
    """Looks at a call's arguments before and after its original runs.

    Args:
        call: The call.
        inputs: The call's tensors, in slot order.
    """

    def __init__(self, call: KernelRequest, inputs: Sequence[Tensor]) -> None:
        self._call = call
        self._inputs = inputs
        self._before = self._layouts()
        function = call.cache.function
        self._writes = None if function is None else UnsaidWrites(call.template, inputs)

    def refusal(self) -> Refusal | None:
        """Return why the call can have no kernel, after its original has run; else ``None``."""
        op = self._call.key.op
        problem = self._function_problem()
        if problem is not None:
            return Refusal("mutates_constant", f"{op}: its function {problem}")
        if self._before != self._layouts():
            return Refusal("out_resized", f"{op}: the original resized an argument")
        return None

    def _layouts(self) -> list[tuple[object, object]]:
        return [(tensor.shape, tensor.stride()) for tensor in self._inputs]

    def _function_problem(self) -> str | None:
        """Return what the user's function did besides computing its result, in words."""
        function = self._call.cache.function
        if function is None or self._writes is None:
            return None
        problem = self._writes.problem()
        if problem is not None and _has_other_threads():
            problem = None  # Another thread may have written: the worker's trace decides.
        if problem is None and function.snapshot()[0] != self._call.table_key[0]:
            problem = "changes what it finds by name in a call"
        return problem


def _has_other_threads() -> bool:
    """Return whether the script has threads besides the current one; ours write to no argument."""
    others = (one for one in threading.enumerate() if one is not threading.current_thread())
    return not all(one.name.startswith("aoti_eager") for one in others)
