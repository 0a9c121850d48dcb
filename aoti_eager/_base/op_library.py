"""Libraries of the ops that this package defines: the kernels of this file are users' functions."""

from __future__ import annotations

import torch


def new_op_library(namespace: str) -> torch.library.Library:
    """Return an empty library for new ops of ``namespace``.

    A kernel's repr names the file that made its library. The kernels of all libraries that are made
    in this file are functions of users.
    """
    return torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
