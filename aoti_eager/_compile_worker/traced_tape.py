"""Tapes and ops as they are traced: index ops refuse what the original refuses.

Inductor makes ``index_select`` and ``index_add`` from indexing, which counts negative numbers from
the end; the ops themselves refuse negative numbers, as ``gather`` and ``scatter_add`` do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._functions.rebuilt import RebuiltTape
from ..errors import CompileError

aten = torch.ops.aten


def traced_tape(tape: RebuiltTape) -> RebuiltTape:
    """Return the tape with functions in place of ops that compiled code would serve wrongly."""
    return RebuiltTape(tape.tape, _INSTEAD)


def traced_op(op: Any) -> Any:
    """Return what is traced for a call of one op."""
    return _index_select if op is aten.index_select.default else op


def _index_select(self: Tensor, dim: int, index: Tensor) -> Tensor:
    _require_dims("index_select", self, index)
    sizes = list(self.shape)
    sizes[dim] = index.shape[0]
    result: Tensor = aten.gather(self, dim, _along(index, dim, sizes))
    return result


def _index_add(self: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    _require_dims("index_add", self, index)
    scaled = source if alpha == 1 else source * alpha
    result: Tensor = aten.scatter_add(self, dim, _along(index, dim, list(source.shape)), scaled)
    return result


def _index_add_(self: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    result: Tensor = self.copy_(_index_add(self, dim, index, source, alpha=alpha))
    return result


def _along(index: Tensor, dim: int, sizes: list[int]) -> Tensor:
    """Return places along one dimension, the same for all other dimensions."""
    shape = [1] * len(sizes)
    shape[dim] = sizes[dim]
    return index.to(torch.int64).reshape(shape).expand(sizes)


def _require_dims(name: str, self: Tensor, index: Tensor) -> None:
    if self.dim() == 0 or index.dim() != 1:
        raise CompileError(
            "error_depends_on_data",
            f"{name} of a tensor without dimensions, or by an index of none",
            remember=True,
        )


_INSTEAD: dict[str, Callable[..., Any]] = {
    "aten::index_select": _index_select,
    "aten::index_add": _index_add,
    "aten::index_add_": _index_add_,
}
