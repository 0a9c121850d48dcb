"""Exact values to hold results against, better than the results' dtype by far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .calls import Call
from .kernels import Kernel
from .laboratory import Exact


def reference_of(call: Call, dtypes: Sequence[str]) -> tuple[str, Exact | None]:
    """Return the name of a call's reference and the function that computes it.

    Args:
        call: The call.
        dtypes: Of its tensors.
    """
    if call.reference == "eager" or "float64" in dtypes:
        return "eager", None
    if any(dtype.startswith("complex") for dtype in dtypes):
        return "float64", _complex128
    return "float64", _float64


def _float64(kernel: Kernel, inputs: Sequence[Any]) -> Any:
    return kernel.exact(inputs)


def _complex128(kernel: Kernel, inputs: Sequence[Any]) -> Any:
    import torch

    return kernel.exact(inputs, torch.complex128)
