"""Whether a call can be recorded at all, by what its modules are: asked before the forward runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .module_tree import each_named, is_scripted
from .stop import Stop
from .target import Target

_TABLES = ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")
_LAZY = (UninitializedParameter, UninitializedBuffer)


def is_ready(target: Target, given: Sequence[Tensor]) -> bool:
    """Return whether all parameters have sizes: a lazy module has none before its first call.

    Args:
        target: What is called.
        given: The tensors among the call's arguments.

    Raises:
        Stop: The state of a module cannot be read, or a tensor is not on the CPU.
    """
    _check_devices(given)
    for path, module in target.modules():
        if is_scripted(module):
            raise Stop("unsupported_module", f"{path or 'the module'} is TorchScript's")
        state = vars(module)
        if any(name not in state for name in (*_TABLES, "training")):
            where = f"{path or 'the module'} ({type(module).__qualname__})"
            raise Stop(
                "unsupported_module", f"{where} is not built: it called no __init__ of torch's"
            )
        if _is_lazy(state["_parameters"]) or _is_lazy(state["_buffers"]):
            return False
        _check_devices([one for one in [*state["_parameters"].values()] if one is not None])
    return True


def _check_devices(tensors: Sequence[Tensor]) -> None:
    for one in tensors:
        if not one.is_cpu:
            raise Stop("unsupported_device", f"it has a tensor on {one.device}")


def tensor_devices(module: torch.nn.Module) -> set[str]:
    """Return the types of the devices that a module's parameters and buffers are on."""
    tables = [vars(one) for _, one in each_named(module)]
    return {
        tensor.device.type
        for state in tables
        for name in ("_parameters", "_buffers")
        for tensor in list((state.get(name) or {}).values())
        if tensor is not None
    }


def _is_lazy(tensors: dict[str, Tensor | None]) -> bool:
    return any(isinstance(one, _LAZY) for one in list(tensors.values()))
