"""Sums over many rows, in blocks and in double precision. Worker only.

The gradient of a weight is a sum over all rows of a batch. Inductor adds row to row, so that the
error grows with the number of rows; eager adds up blocks. After ``in_blocks``, a graph adds up
blocks, too, and keeps the sums of blocks in double precision: its result is no further from the
exact one than eager's.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_aten = torch.ops.aten
# Fewer rows than the first number are added one after another; a block has at most the second.
_LEAST_ROWS, _BLOCK = 64, 16
_DTYPES = (torch.float32, torch.float64)
_WIDE = {"dtype": torch.float64}


def in_blocks(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return a traced graph with sums over leading dimensions as sums of sums."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not _aten.sum.dim_IntList:
            continue
        x, dims = node.args[0], node.args[1]
        if not dims:
            continue  # A sum over all dimensions is one number.
        keepdim = bool(node.args[2]) if len(node.args) > 2 else False
        value = x.meta.get("val")
        block = _block(value, dims) if not node.kwargs else None
        if block is None:
            continue
        with graph.inserting_before(node):
            node.replace_all_uses_with(_sum_of_sums(graph, x, len(dims), block, keepdim))
        graph.erase_node(node)
    module.recompile()
    return module


def _sum_of_sums(graph: Any, x: Any, count: int, block: int, keepdim: bool) -> Any:
    sizes = list(x.meta["val"].shape)
    rows = math.prod(sizes[:count])
    rest = sizes[count:]
    total = x
    dtype = x.meta["val"].dtype
    while block > 1 and rows >= _LEAST_ROWS and rows % block == 0:
        rows //= block
        total = graph.call_function(_aten.reshape.default, (total, [rows, block, *rest]))
        total = graph.call_function(_aten.sum.dim_IntList, (total, [1]), _WIDE)
    if total is x:
        total = graph.call_function(_aten.reshape.default, (total, [rows, *rest]))
    total = graph.call_function(_aten.sum.dim_IntList, (total, [0]), _WIDE)
    if dtype is not torch.float64:
        total = graph.call_function(_aten._to_copy.default, (total,), {"dtype": dtype})
    if keepdim:
        total = graph.call_function(_aten.reshape.default, (total, [1] * count + rest))
    return total


def _block(value: Any, dims: Any) -> int | None:
    """Return how many rows make a block, 1 for no blocks; ``None`` if the sum stays as it is."""
    if not isinstance(value, torch.Tensor) or value.dtype not in _DTYPES:
        return None
    rank = value.dim()
    places = sorted(dim % rank for dim in dims) if rank else []
    if not places or places != list(range(len(places))) or len(places) == rank:
        return None
    rows = math.prod(value.shape[: len(places)])
    if not isinstance(rows, int) or rows < _LEAST_ROWS:
        return None
    return next((block for block in range(_BLOCK, 3, -1) if rows % block == 0), 1)
