"""Autograd and the transforms above the backends."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

# Nothing here has a public name: a kernel above the backend must say which of the dispatcher's keys
# comes next, and whether a transform is passing through the call.
below_autograd = torch._C._AutoDispatchBelowAutograd
_AFTER_AUTOGRAD = torch._C._after_autograd_keyset
_AFTER_VERSIONS = torch._C._after_ADInplaceOrView_keyset


def redispatch_below_autograd(op: Any, keyset: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of ``op``, called below autograd: without a gradient."""
    with below_autograd():
        return op.redispatch(keyset & _AFTER_AUTOGRAD, *args, **kwargs)


def redispatch_below_versions(op: Any, keyset: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of ``op``, called below the key that counts tensors' versions.

    The caller has counted the versions of the tensors that ``op`` writes to.
    """
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return op.redispatch(keyset & _AFTER_VERSIONS, *args, **kwargs)


def write_unseen(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Copy ``values`` into ``tensor``; neither autograd nor the tensor's version notices.

    The version was counted already, and autograd knows of the write.
    """
    with below_autograd(), torch._C._AutoDispatchBelowADInplaceOrView():
        tensor.copy_(values)


def counts_writes(tensor: torch.Tensor) -> bool:
    """Return whether an op that is called now and writes to ``tensor`` raises its version.

    The public ``increment_version`` always counts, and raises for tensors of inference mode.
    """
    key = torch._C.DispatchKey.ADInplaceOrView
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    return not excluded and bool(torch._C._dispatch_keys(tensor).has(key))


@functools.cache
def _autograd_keys() -> list[Any]:
    return [
        key
        for name, key in torch._C.DispatchKey.__members__.items()
        if name == "ADInplaceOrView" or name.startswith("Autograd")
    ]


@contextlib.contextmanager
def with_autograd() -> Iterator[None]:
    """Let autograd record what a kernel below autograd does, for a kernel that differentiates."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in _autograd_keys():
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def is_transforming() -> bool:
    """Return whether ``torch.func`` or forward-mode differentiation is passing through a call.

    Both differentiate in another way than a compiled backward, by the ops that a function calls.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return bool(torch.autograd.forward_ad._current_level >= 0)


def is_batched(tensor: torch.Tensor) -> bool:
    """Return whether a tensor stands for a batch of tensors and hides the batch's own layout."""
    functorch = torch._C._functorch
    return bool(functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor))


def has_saved_tensor_hooks() -> bool:
    """Return whether tensors that autograd saves pass through hooks (checkpoints, offloading)."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def autograd_keyset() -> Any:
    """Return the keyset with autograd's key for the CPU; there is no public way to make it."""
    return torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCPU)
