"""Group norm and batch norm on numbers that steps of theirs lose, cold: eager's, or more exact.

Kernels are made by harmless data, which their checks pass, and then get the hard data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager

pytestmark = [pytest.mark.compiles, pytest.mark.dynamic]

aten = torch.ops.aten
N, C, P, GROUPS, EPS = 4, 6, 33, 2, 1e-5
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, BIAS = (torch.randn(C, generator=GENERATOR) for _ in range(2))
NOISE, GRADIENT = (torch.randn(N, C, P, generator=GENERATOR) for _ in range(2))
MEAN, VAR = torch.randn(C, generator=GENERATOR), torch.full((C,), 0.25)
Call = Callable[..., Sequence[Tensor]]

FORWARD: dict[str, Call] = {
    "native_group_norm": lambda x, w, b: aten.native_group_norm(x, w, b, N, C, P, GROUPS, EPS),
    "group_norm": lambda x, w, b: (torch.group_norm(x, GROUPS, w, b, EPS, False),),
    "native_batch_norm": lambda x, w, b: aten.native_batch_norm(
        x, w, b, None, None, True, 0.1, EPS
    ),
    "instance_norm": lambda x, w, b: (
        torch.instance_norm(x, w, b, None, None, True, 0.1, EPS, False),
    ),
}


def by_kernel(op: str, call: Callable[..., Any], easy: Sequence[Any], hard: Sequence[Any]) -> Any:
    """Return what a kernel that ``easy`` has made gives for ``hard``."""
    with aoti_eager.register(f"aten::{op}"):
        call(*easy)
        got = call(*hard)
        stats = aoti_eager.stats()[f"aten::{op}"]
    assert stats.hits == 1, stats
    return got


def doubles(arguments: Sequence[Any]) -> list[Any]:
    return [one.double() if isinstance(one, Tensor) else one for one in arguments]


@pytest.mark.share(of=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", FORWARD)
def test_numbers_near_the_largest_are_normalized(op: str, dtype: torch.dtype) -> None:
    call = FORWARD[op]
    x = torch.finfo(dtype).max * (0.985 + 0.01 * torch.rand(NOISE.shape, dtype=torch.float64))
    hard = [one.to(dtype) for one in (x, WEIGHT, BIAS)]
    exact = call(*doubles(hard))[0]
    easy = [one.to(dtype) for one in (NOISE, WEIGHT, BIAS)]
    got = by_kernel(op, call, easy, hard)[0]
    assert (got.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("op", FORWARD)
def test_numbers_that_are_all_one_number_come_out_as_the_bias(op: str) -> None:
    x = torch.full((N, C, P), 0.1)
    got = by_kernel(op, FORWARD[op], (NOISE, WEIGHT, BIAS), (x, WEIGHT, BIAS))[0]
    assert torch.equal(got, BIAS[:, None].expand(N, C, P))


@pytest.mark.parametrize("op", ["native_group_norm", "native_batch_norm"])
def test_an_infinity_gives_the_moments_that_eager_gives(op: str) -> None:
    x = NOISE.clone()
    x[1, 2, 3], x[3, 5, 32] = math.inf, -math.inf
    hard = (x, WEIGHT, BIAS)
    want = FORWARD[op](*hard)
    got = by_kernel(op, FORWARD[op], (NOISE, WEIGHT, BIAS), hard)
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, equal_nan=True)


def test_a_channels_last_group_norm_is_as_eager_has_it() -> None:
    def call(x: Tensor) -> Sequence[Tensor]:
        result: Sequence[Tensor] = aten.native_group_norm(x, WEIGHT, BIAS, N, C, P, GROUPS, EPS)
        return result

    easy, hard = (
        one.view(N, C, 11, 3).to(memory_format=torch.channels_last) for one in (NOISE, NOISE + 1e3)
    )
    want, exact = (
        call(hard),
        aten.native_group_norm(*doubles((hard, WEIGHT, BIAS)), N, C, P, GROUPS, EPS),
    )
    got = by_kernel("native_group_norm", call, (easy,), (hard,))
    assert got[0].stride() == want[0].stride()
    assert (got[0].double() - exact[0]).abs().max() < 1e-5


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_group_norm_s_gradient_far_from_zero(offset: float) -> None:
    def call(gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> Any:
        return aten.native_group_norm_backward(
            gradient, x, mean, rstd, weight, N, C, P, GROUPS, [True, True, True]
        )

    def arguments(x: Tensor) -> Sequence[Tensor]:
        return (GRADIENT, x, *FORWARD["native_group_norm"](x, WEIGHT, BIAS)[1:], WEIGHT)

    hard = arguments(NOISE + offset)
    exact = call(*doubles(hard))
    got = by_kernel("native_group_norm_backward", call, arguments(NOISE), hard)
    for one, two in zip(got, exact, strict=True):
        assert (one.double() - two).abs().max() <= 2e-6 * two.abs().max()


def test_a_batch_norm_s_gradient_far_from_zero() -> None:
    def call(gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> Any:
        return aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, rstd, True, EPS, [True, True, True]
        )

    def arguments(x: Tensor) -> Sequence[Tensor]:
        return (GRADIENT, x, WEIGHT, *FORWARD["native_batch_norm"](x, WEIGHT, BIAS)[1:])

    hard = arguments(NOISE + 1e4)
    exact = call(*doubles(hard))
    got = by_kernel("native_batch_norm_backward", call, arguments(NOISE), hard)
    for one, two in zip(got, exact, strict=True):
        assert (one.double() - two).abs().max() <= 2e-6 * two.abs().max()


def test_a_weight_below_one_keeps_large_numbers_in_range() -> None:
    def call(x: Tensor, weight: Tensor) -> Any:
        return aten.native_batch_norm(x, weight, BIAS, MEAN, VAR, False, 0.1, EPS)

    weight = torch.full((C,), 0.25)  # The inverse deviation is two.
    x = torch.where(NOISE < 0, -3e38, 3e38)
    want = call(x, weight)[0]
    assert want.isfinite().all()
    got = by_kernel("native_batch_norm", call, (NOISE, weight), (x, weight))[0]
    torch.testing.assert_close(got, want)
