"""Values of elementwise ops in code that takes number by number, and of NaN that signal.

Kernels are made by harmless data, which their checks pass, and then get the hard data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager

pytestmark = [pytest.mark.compiles, pytest.mark.dynamic]

COUNT = 4096


def strided(x: Tensor) -> Tensor:
    """Return the numbers in every second place of a tensor."""
    return torch.stack([x, x], 1)[:, 0]


def transposed(x: Tensor) -> Tensor:
    return x.view(64, -1).t().contiguous().t()


def by_kernel(op: str, call: Callable[..., Any], easy: Any, hard: Any) -> Tensor:
    """Return what a kernel that ``easy`` has made gives for ``hard``."""
    with aoti_eager.register(f"aten::{op}"):
        call(*easy)
        got: Tensor = call(*hard)
        found = aoti_eager.stats()
    assert sum(stats.hits for stats in found.values()) >= 1, found
    return got


# Where the C library's function for single numbers is off by more than two units.
HARD = {
    "erfc": (0.8338, 0.8341),
    "lgamma": (3.2, 3.3),
    "special_gammaln": (3.2, 3.3),
    "special_erfc": (0.8338, 0.8341),
}


@pytest.mark.parametrize("op", HARD)
def test_a_function_of_single_numbers_is_as_exact_as_that_of_vectors(op: str) -> None:
    function = getattr(torch.ops.aten, op)
    low, high = HARD[op]
    x = strided(torch.linspace(low, high, COUNT))
    exact = function(x.double())
    got = by_kernel(op, function, (strided(torch.rand(COUNT)),), (x,))
    unit = torch.exp2(torch.floor(torch.log2(exact.abs())) - 23)
    assert ((got.double() - exact).abs() / unit).max() <= 1


@pytest.mark.parametrize(("op", "shift"), [("logaddexp", 1.0), ("logaddexp2", 1.0)])
def test_a_result_near_zero_keeps_its_digits(op: str, shift: float) -> None:
    function = getattr(torch, op)
    x = torch.linspace(-3, -0.1, COUNT)
    # The other number is what makes the sum of both powers nearly one.
    whole = torch.log1p(-torch.exp(x.double())) if op == "logaddexp" else None
    other = torch.log2(1 - torch.exp2(x.double())) if whole is None else whole
    pair = x.view(64, -1), transposed(other.float())
    exact = function(*(one.double() for one in pair))
    easy = torch.rand(64, COUNT // 64), transposed(torch.rand(COUNT))
    got = by_kernel(op, function, easy, pair)
    assert (got.double() - exact).abs().max() < 1e-9 * shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", ["fmax", "fmin"])
def test_a_nan_that_signals_is_not_passed_over(op: str, dtype: torch.dtype) -> None:
    whole = torch.int32 if dtype is torch.float32 else torch.int64
    infinity = torch.tensor(torch.inf, dtype=dtype).view(whole).item()
    quiet = torch.tensor(torch.nan, dtype=dtype).view(whole).item()
    lowest = torch.iinfo(whole).min
    bits = [infinity + 1, quiet - 1, infinity + 1 + lowest, quiet, quiet + 1, infinity, 0, lowest]
    special = torch.tensor(bits, dtype=whole).view(dtype)
    x, y = torch.meshgrid(special, torch.cat([special, torch.ones(8, dtype=dtype)]), indexing="ij")
    x, y = x.contiguous(), y.contiguous()
    function = getattr(torch, op)
    for pair in ((x, y), (y.clone(), x.clone())):
        want = function(*pair)
        easy = torch.rand(x.shape, dtype=dtype), torch.rand(x.shape, dtype=dtype)
        got = by_kernel(op, function, easy, pair)
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))


NUMBERS = (2.0, 3.0, 5.0, 1e10, -1e10, 7.0)


def test_a_logarithm_s_smallest_values_are_not_lost_beside_a_number() -> None:
    op = "aten::special_xlog1py.self_scalar"
    tiny = torch.full((COUNT,), 1e-45)
    wanted = [torch.special.xlog1py(number, tiny) for number in NUMBERS]
    with aoti_eager.register(op):
        for number, want in zip(NUMBERS, wanted, strict=True):
            torch.special.xlog1py(number, torch.rand(COUNT))
            assert torch.equal(torch.special.xlog1py(number, tiny), want)
        stats = aoti_eager.stats()[op]
    assert stats.hits >= 3, stats


def test_a_number_in_a_tensor_s_place_is_multiplied_and_added_in_one_step() -> None:
    x = torch.linspace(-0.0300001, -0.0299999, COUNT)
    numbers = (0.1, 0.2, 0.3, 0.1)
    wanted = [torch.add(x, number, alpha=0.3) for number in numbers]
    with aoti_eager.register("aten::add.Tensor"):
        for number, want in zip(numbers, wanted, strict=True):
            torch.add(torch.ones(COUNT), number, alpha=0.3)
            assert torch.equal(torch.add(x, number, alpha=0.3), want)
        stats = aoti_eager.stats()["aten::add.Tensor"]
    assert stats.hits >= 3, stats


@pytest.mark.parametrize("op", ["aten::fmax", "aten::copysign.Tensor"])
def test_tensors_without_dimensions_have_the_dtype_of_the_wider_one(op: str) -> None:
    """A genuine float64 tensor is no number: beside one of float32 alone, it decides the dtype."""
    function = torch.fmax if op == "aten::fmax" else torch.copysign
    x, y = torch.tensor(0.1), torch.tensor(-0.1, dtype=torch.float64)
    pairs = [(x, y), (y, x)]
    wanted = [function(*pair) for pair in pairs]
    with aoti_eager.register(op):
        for _ in range(2):
            for pair, want in zip(pairs, wanted, strict=True):
                got = function(*pair)
                assert got.dtype == want.dtype == torch.float64
                assert torch.equal(got, want)
        assert aoti_eager.stats()[op].failures == 0, aoti_eager.stats()[op]


def test_gelu_of_infinity_and_of_large_numbers_is_that_of_eager_on_this_machine() -> None:
    """Eager leaves gelu to oneDNN on some machines: there, infinity gives NaN, 3e38 infinity."""
    gelu = torch.ops.aten.gelu
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e38, -1e38, 20.0]).repeat(8)
    want = gelu(x)
    got = by_kernel("gelu", gelu, (torch.rand(64),), (x,))
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(0, 4e37, -4e37), want.nan_to_num(0, 4e37, -4e37))
