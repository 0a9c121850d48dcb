"""Which calls autograd must follow through the function, whether a kernel exists or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._base.torch_compat import autograd
from .._base.torch_compat import tracing as tracing_compat

_PLAIN = (Tensor, torch.nn.Parameter)


def must_decompose(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether the ops that the function consists of must be seen.

    Traces, transforms and autocast see them, and so do tensors of other classes and devices.
    """
    return (
        tracing_compat.is_tracing()
        or autograd.is_transforming()
        or torch.is_autocast_enabled("cpu")
        or any(one is not None and type(one) not in _PLAIN for one in tensors)
        or any(one is not None and one.device.type != "cpu" for one in tensors)
    )


def must_not_save(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether the function must run although a kernel exists.

    An inference tensor cannot be saved. And under hooks, the saved tensors must be the same each
    time, whether a kernel has come meanwhile or not: a checkpoint compares them.
    """
    return autograd.has_saved_tensor_hooks() or any(
        one is not None and (one.is_inference() or one.layout is not torch.strided)
        for one in tensors
    )
