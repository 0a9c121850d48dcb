"""The recorder of a workload, while there is one: it is told of the calls that are looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .._base.torch_compat.dispatcher import OpOverload
from .._keys.kernel_key import KernelKey

if TYPE_CHECKING:
    from .._functions.description import Description


class Recorder(Protocol):
    """Takes down calls; ``_workloads.workload`` has one."""

    def add(self, key: KernelKey, function: Description | None, op: OpOverload) -> None:
        """Add a call, unless it was added before."""


_recorder: Recorder | None = None


def record(key: KernelKey, function: Description | None, op: OpOverload) -> None:
    """Tell the recorder, if there is one, of a call that is about to be looked up."""
    recorder = _recorder
    if recorder is not None:
        recorder.add(key, function, op)


def set_recorder(recorder: Recorder | None) -> None:
    """Tell ``recorder`` of calls from now on; ``None`` for no recorder."""
    global _recorder
    _recorder = recorder
