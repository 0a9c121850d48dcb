"""What a trial in a worker must let serve, and what it says of a kernel that serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager import stats
from aoti_eager._compile_service import cache_context

from ..conftest import MakeOp, assert_close
from ..mutants.functions import llama_rms_norm
from ..support.child_patches import patch_children


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """Return the norm that is meant, in the precision that comes."""
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_that_casts_to_float32_inside_is_served_with_its_gradient(
    dtype: torch.dtype, make_op: MakeOp, shared_cache: Path
) -> None:
    op = make_op(llama_rms_norm)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 64, generator=generator).to(dtype).requires_grad_()
    weight = torch.rand(64, generator=generator).to(dtype).requires_grad_()

    def results(function: Callable[..., Any], *arguments: Tensor) -> list[Tensor]:
        result = function(*arguments)
        return [result, *torch.autograd.grad(result.double().pow(2).sum(), arguments)]

    exact = results(norm, x.double(), weight.double())
    eager = results(llama_rms_norm, x, weight)
    for _ in range(3):
        for got, theirs, right in zip(results(op, x, weight), eager, exact, strict=True):
            assert got.dtype is dtype
            allowed = (theirs - right).abs().max() + torch.finfo(dtype).eps * right.abs().max()
            assert (got - right).abs().max() <= allowed
    found = {name: one for name, one in stats().items() if "llama_rms_norm" in name}
    assert len(found) == 2  # The op's and its gradient's.
    for name, counts in found.items():
        assert counts.hits >= 1, name
        assert (counts.declines, counts.failures) == (0, 0), name


def test_a_list_of_tensors_of_unlike_sizes_is_served(shared_cache: Path) -> None:
    ones = [torch.randn(3, 5), torch.randn(7), torch.randn(2, 2, 2)]
    want = [one * 4 for one in ones]
    with aoti_eager.register("aten::_foreach_mul_.Scalar"):
        for _ in range(2):
            torch._foreach_mul_(ones, 2.0)
        assert_close(ones, want)
        assert stats()["aten::_foreach_mul_.Scalar"].hits >= 1


LOSES_SIGNS = """
_try = _try_library

def _try_library(request):
    return {**_try(request), "lost_signs": 3}
"""


@pytest.mark.full
@pytest.mark.compiles
def test_lost_signs_of_zero_decline_nothing_and_are_in_the_entry(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_context.close_workers()  # Those of this test alone have the patch.
    patch_children(monkeypatch, tmp_path, {"aoti_eager._compile_worker.trial": LOSES_SIGNS})
    with aoti_eager.register("aten::silu"):
        for _ in range(2):
            torch.nn.functional.silu(torch.randn(16, 64))
    cache_context.close_workers()
    assert stats()["aten::silu"].hits >= 1
    (entry,) = [one for one in aoti_eager.cache.list() if one.op == "aten::silu"]
    (details,) = aoti_eager.cache.inspect(entry.digest)
    assert dict(details.entry.provenance)["lost_signs_of_zero"] == "3"
