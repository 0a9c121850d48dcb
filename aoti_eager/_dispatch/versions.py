"""Version counters of tensors that an op writes to, where the op's original counts for itself.

PyTorch counts a write above the backend, at the key ADInplaceOrView. An op without a kernel at that
key (``_foreach_add_``, ``_foreach_abs.out``) leaves counting to the ops that its original calls. A
kernel library calls no ops, so a hit counts one write for each tensor. Otherwise a backward would
use a saved tensor that has changed, and not raise.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import increment_version

from .._base.torch_compat.autograd import counts_writes
from .._base.torch_compat.dispatcher import has_kernel
from .._keys.schema import OpSchema


def leaves_counting_to_others(schema: OpSchema, dispatch_key: str, *, overridden: bool) -> bool:
    """Return whether the ops that the original calls count what it writes to.

    An op with its own kernel at the backend writes to memory, and nothing is counted
    (``_fused_adam_``). It is not known what an override calls: counting too often raises an error,
    counting too seldom hides one.

    Args:
        schema: The op's schema.
        dispatch_key: The key that the original is at, before a kernel of ours is registered.
        overridden: Whether the original is somebody's override.
    """
    if not schema.mutated:
        return False
    name = schema.op.removesuffix(".default")
    if has_kernel(name, "ADInplaceOrView"):
        return False
    return overridden or not has_kernel(name, dispatch_key)


def count_writes(tensors: Iterable[Tensor | None]) -> None:
    """Count one write to each tensor, as an op that is called here and writes to it would."""
    increment_version([t for t in tensors if t is not None and counts_writes(t)])
