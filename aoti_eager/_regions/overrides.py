"""Finds ops on a recording whose kernel somebody has replaced: a worker has torch's own only."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._base.op_names import find_overload
from .._base.torch_compat.dispatcher import OpOverload, is_ours, is_torchs_own
from .._native.recorder import RecordedCall
from .._registration import registry
from ..errors import UnknownOpError

_KEYS = ("CPU", "AutogradCPU")


def first_overridden(calls: Sequence[RecordedCall]) -> str | None:
    """Return the name of the first op whose kernel is not torch's own, or ``None``.

    An op that ``register`` serves counts by the kernel that was there before.
    """
    for name in dict.fromkeys(
        f"{call.op}.{call.overload}" if call.overload else call.op for call in calls
    ):
        if not name.startswith("aten::"):
            continue  # Of other namespaces, no tape is made.
        try:
            op = find_overload(name)
        except UnknownOpError:
            continue
        if any(_is_overridden(op, key) for key in _KEYS):
            return name
    return None


def _is_overridden(op: OpOverload, dispatch_key: str) -> bool:
    try:
        kernel = torch.library.get_kernel(op, dispatch_key)
    except RuntimeError:
        return False  # The op has no kernel there: its steps have.
    if not is_ours(kernel):
        return not is_torchs_own(kernel)
    cache = registry.find_cache(op, dispatch_key)
    return cache is not None and cache.original.overridden
