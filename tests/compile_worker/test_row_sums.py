"""Sums over rows in blocks: the same sums, with a smaller error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from aoti_eager._compile_worker.row_sums import in_blocks

aten = torch.ops.aten


def rewritten(function: Any, x: Tensor) -> tuple[torch.fx.GraphModule, int]:
    """Return the function's graph, and how many sums it has."""
    module = in_blocks(make_fx(function)(x))
    sums = [node for node in module.graph.nodes if node.target is aten.sum.dim_IntList]
    return module, len(sums)


@pytest.mark.parametrize(
    ("sizes", "dims", "keepdim", "sums"),
    [
        ((1024, 8), [0], False, 3),
        ((1024, 8), [0], True, 3),
        ((1024, 8), [-2], False, 3),
        ((64, 8), [0], False, 2),
        ((63, 8), [0], False, 1),  # Few rows.
        ((1021, 8), [0], False, 1),  # A prime number of them.
        ((16, 32, 8), [0, 1], False, 2),
        ((16, 32, 8), [1, 0], True, 2),
        ((16, 32, 8), [0], False, 1),
        ((1024, 8), [1], False, 1),  # Along a row: code adds up several at once as it is.
        ((1024, 8), [0, 1], False, 1),
        ((4096,), [0], False, 1),
        ((16, 32, 8), [0, 2], False, 1),
    ],
)
def test_sums_over_leading_dimensions_are_sums_of_sums(
    sizes: tuple[int, ...], dims: list[int], keepdim: bool, sums: int
) -> None:
    x = torch.randint(-9, 9, sizes).to(torch.float64)  # Exact in any order.
    module, count = rewritten(lambda one: aten.sum.dim_IntList(one, dims, keepdim), x)
    assert count == sums
    want = x.sum(dims, keepdim)
    got = module(x)
    assert got.shape == want.shape
    assert torch.equal(got, want)


def test_what_is_no_plain_sum_of_floats_stays() -> None:
    for dtype in (torch.int64, torch.bfloat16, torch.bool):
        x = torch.ones(1024, 8).to(dtype)
        _, count = rewritten(lambda one: aten.sum.dim_IntList(one, [0], False), x)
        assert count == 1
    x = torch.ones(1024, 8)
    _, count = rewritten(lambda one: aten.sum.dim_IntList(one, [0], False, dtype=torch.float64), x)
    assert count == 1


@pytest.mark.parametrize("rows", [1024, 3001, 5003, 6007])
def test_sums_are_as_exact_as_eager_s_whatever_divides_the_rows(rows: int) -> None:
    x = torch.rand(rows, 64, generator=torch.Generator().manual_seed(0))
    module, _ = rewritten(lambda one: aten.sum.dim_IntList(one, [0], False), x)
    exact = x.double().sum(0)
    assert (module(x) - exact).abs().max() <= (x.sum(0) - exact).abs().max()
    assert module(x).dtype is torch.float32
