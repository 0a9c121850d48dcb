"""Functions as users write them, of which kernels are made."""

from __future__ import annotations

import torch
from torch import Tensor


def llama_rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the norm as models of the Llama kind compute it: in float32, whatever comes."""
    dtype = x.dtype
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    return weight * (wide * torch.rsqrt(variance + eps)).to(dtype)
