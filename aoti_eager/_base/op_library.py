"""Makes the libraries of ops that this package defines, whose kernels are users' functions."""

from __future__ import annotations

import torch


def new_op_library(namespace: str) -> torch.library.Library:
    """Return an empty library for new ops of ``namespace``.

    A kernel's repr names the file that made its library. All libraries that are made in this file
    have users' functions for kernels, so this file's name in a repr identifies such a kernel.
    """
    return torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
