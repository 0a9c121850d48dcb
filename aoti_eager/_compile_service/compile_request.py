"""What a registered compile backend is asked, and the types of its functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._base.data_class import dataclass


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """One call for a compile backend to compile.

    Attributes:
        op: Qualified name of the op with its overload, ``aten::mul.Tensor``.
        module: The call as a module of its tensors alone: the module takes ``inputs``, returns a
            tuple of the fresh results, and writes to the inputs that the op writes to. To be
            traced, by ``torch.export`` or otherwise.
        inputs: Fake tensors on the device: dtypes, sizes and strides without data. The tensors
            belong to ``fake_mode``.
        fake_mode: The mode to trace in.
        directory: An empty directory for the result and everything temporary; it is removed.
    """

    op: str
    module: torch.nn.Module
    inputs: tuple[Tensor, ...]
    fake_mode: Any
    directory: Path


CompileFunction = Callable[[CompileRequest], "str | os.PathLike[str]"]
LoadFunction = Callable[[Path, torch.device], Callable[[list[Tensor]], Sequence[Tensor]]]
