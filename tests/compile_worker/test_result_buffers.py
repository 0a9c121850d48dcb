"""A library's results are tensors of their own, laid out as eager lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from aoti_eager._keys.aliasing import storage_key

from ..benchmarks.region_models import GruCell
from ..conftest import assert_close
from ..support.tapes import Recorded, module_tensors, tape_of
from .test_tapes import serve


def copies(x: Tensor, weight: Tensor) -> list[Tensor]:
    """Return results that a compiler may merge, or lay out in another way."""
    half = weight.unsqueeze(0)
    return [
        *[one.clone() for one in (x + 1).chunk(2, 0)],
        *[one.clone() for one in torch.stack((x * 2, x * 3))],
        torch.relu(x),
        torch.relu(x),
        x.clone(),
        torch.sin(x)[:, 2:],
        # Strides of dimensions of size one: by a view, and by an op.
        torch.mm(x, weight).view(1, 4, 10),
        torch.bmm(x.unsqueeze(0), half).view(4, 1, 10),
        x.t().unsqueeze(0).sub(0.25),
        x.unsqueeze(1).transpose(1, 2).double(),
    ]


def cell() -> Recorded:
    """Return the tape of a gated cell, whose last state reuses the state's memory within a cat."""
    torch.manual_seed(0)
    module = GruCell(16)
    return tape_of(module, [torch.randn(1, 2, 16), torch.zeros(1, 16)], module_tensors(module))


@pytest.mark.parametrize("name", ["copies", "cell"])
def test_results_are_laid_out_as_eagers_and_share_no_memory(cache_dir: Path, name: str) -> None:
    one = cell() if name == "cell" else tape_of(copies, [torch.randn(4, 10), torch.randn(10, 10)])
    results = serve(one)
    for mine, theirs in zip(results, one.results, strict=True):
        assert_close(mine, theirs)
        assert mine.stride() == theirs.stride()
        assert mine.storage_offset() == theirs.storage_offset()
    assert len({storage_key(one) for one in [*results, *one.inputs]}) == len(results) + len(
        one.inputs
    )
