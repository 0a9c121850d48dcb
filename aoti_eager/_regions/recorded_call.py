"""Runs a forward once and records what it does: calls of ops, Python code, changed attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import get_ident
from typing import Any

from torch import Tensor

from .._base.torch_compat.tracing import has_global_module_hooks
from .._native import recorder
from .reader import StateReader
from .results import Results
from .snapshot import Snapshot
from .stop import Stop
from .tape_of import RecordedTape, tape_of
from .target import Target, hooked
from .watch import Watch

# Threads that are inside of a recording: what they call is a part of it.
_recording: set[int] = set()


def is_recording() -> bool:
    """Return whether this thread is inside of a recording."""
    return bool(_recording) and get_ident() in _recording


class RecordedCallResult:
    """A forward that has run.

    Attributes:
        result: What it returned.
    """

    def __init__(
        self,
        target: Target,
        given: Sequence[Tensor],
        result: Any,
        recording: recorder.Recording,
        watch: Watch,
        before: Snapshot,
    ) -> None:
        self.result = result
        self._target, self._given = target, given
        self._recording, self._watch, self._before = recording, watch, before

    def read(self) -> tuple[RecordedTape, StateReader, Results]:
        """Return the tape, the state that it depends on, and the results.

        Raises:
            Stop: No library may serve the call.
        """
        target, watch = self._target, self._watch
        if watch.leak:
            raise Stop("data_leaves", f"it calls {watch.leak}")
        if watch.fickle:
            raise Stop("python_state", f"it calls {watch.fickle}")
        changed = self._before.change()
        if changed is not None:
            raise Stop("writes_attribute", f"it changes {changed}")
        if has_global_module_hooks():
            raise Stop("hooks", "hooks for all modules are set")
        for path, module in target.modules():
            if hooked(module, is_root=module is target.module):
                raise Stop("hooks", f"{path} has forward hooks")
        results = Results(self.result, self._given)
        state = StateReader(target, watch.mentioned)
        return tape_of(self._recording, self._given, state, results), state, results


def record_call(
    target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[Tensor]
) -> RecordedCallResult | None:
    """Return a recorded call of the target's forward; ``None``, and no call, if that is impossible.

    Args:
        target: What is called.
        args: The call's positional arguments.
        kwargs: The call's keyword arguments.
        given: The tensors among the arguments.
    """
    watch = Watch()
    if not watch.is_possible():
        return None
    before, ident = Snapshot(target), get_ident()
    _recording.add(ident)
    try:
        with recorder.record() as recording:
            result = watch.run(lambda: target.forward(*args, **kwargs))
    finally:
        _recording.discard(ident)
    return RecordedCallResult(target, given, result, recording, watch, before)
