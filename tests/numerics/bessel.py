"""Bessel functions of the C library's, for tensors: torch has none that is exact in float64."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from .compare import library


@functools.cache
def _library() -> ctypes.CDLL:
    # Loaded, it needs no file any more.
    with tempfile.TemporaryDirectory() as directory:
        return library(Path(directory))


def bessel(x: Tensor, which: int) -> Tensor:
    """Return a Bessel function of ``x``.

    Args:
        x: Any shape, contiguous, float64.
        which: 0 and 1 for the first kind of these orders, 2 and 3 for the second kind of 0 and 1.
    """
    assert x.dtype is torch.float64
    assert x.is_contiguous()
    found = torch.empty_like(x)
    _library().numerics_bessel(
        ctypes.c_int(which),
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(found.data_ptr()),
        ctypes.c_int64(x.numel()),
    )
    return found
