"""Numbers reach kernels with all their digits, those of float64 tensors too."""

from __future__ import annotations

import pytest
import torch

import aoti_eager

pytestmark = pytest.mark.dynamic

aten = torch.ops.aten


@pytest.mark.share(of=2)
@pytest.mark.compiles
@pytest.mark.both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", ["aten::add.Tensor", "aten::mul.Tensor"])
def test_a_number_beside_a_tensor_is_not_rounded_before_the_tensors_dtype_is(
    op: str, dtype: torch.dtype
) -> None:
    call = getattr(aten, op[6:].partition(".")[0]).Tensor
    x = torch.linspace(-2, 2, 37, dtype=dtype)
    numbers = (0.1, -2.2630685629186984, 1e-300, 16777217.0)
    wanted = [call(x, number) for number in numbers]
    with aoti_eager.register(op):
        for number, want in zip(numbers, wanted, strict=True):
            assert torch.equal(call(x, number), want)
            assert torch.equal(call(x, number), want)
        assert aoti_eager.stats()[op].hits == 7


@pytest.mark.compiles
def test_a_number_that_varies_is_an_input_with_all_its_digits() -> None:
    x = torch.linspace(-2, 2, 37, dtype=torch.float64)
    slopes = (0.1, 0.2, 0.3, 1e-5)
    wanted = [aten.leaky_relu(x, slope) for slope in slopes]
    with aoti_eager.register("aten::leaky_relu"):
        got = [aten.leaky_relu(x, slope) for slope in slopes]
        assert aoti_eager.stats()["aten::leaky_relu"].compiles == 2
    for one, want in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, want, rtol=1e-15, atol=0)
