"""Values that generated code once got wrong: each is eager's, cold and warm, static and dynamic.

A kernel is made by harmless data, which its checks pass, and then gets the hard data. Settings are
the defaults but for the gate: kernels of small tensors lose to eager, and their values are what is
looked at here, not their speed.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager

from ..support import forked_python

pytestmark = pytest.mark.dynamic

aten = torch.ops.aten
INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Hard:
    """A call: what makes it, and how far it may be from a reference in double precision.

    Attributes:
        op: What is registered.
        call: The function of the data.
        data: The hard values, of which prefixes and repetitions are taken.
        dtype: Of the tensor.
        same: Whether results must be eager's to the last bit, signs of zero included; else they
            must be as near to the reference as eager's, or within two units in the last place.
    """

    op: str
    call: Callable[[Tensor], Tensor]
    data: list[float]
    dtype: torch.dtype = torch.float32
    same: bool = False


HALF = (torch.float16, torch.bfloat16)
LARGE = [24.0 * n for n in range(1, 129)]
NEAR_ZERO = [-1e-30, 1e-30, -2.3e-38, 1e-20, -1e-9, -0.0, 0.0, 0.3]
CASES = {
    "remainder": Hard("aten::remainder.Scalar", lambda x: x % (2 * math.pi), LARGE, same=True),
    "remainder by tensor": Hard(
        "aten::remainder.Tensor", lambda x: aten.remainder.Tensor(x, x.flip(0) + 0.1), LARGE
    ),
    "remainder of number": Hard(
        "aten::remainder.Scalar_Tensor", lambda x: aten.remainder.Scalar_Tensor(7.3, x), LARGE
    ),
    "remainder of infinity": Hard(
        "aten::remainder.Scalar", lambda x: x % 0.3, [INF, -INF, NAN, -0.0, 1.0], same=True
    ),
    "floor": Hard(
        "aten::div.Scalar_mode",
        lambda x: aten.div.Scalar_mode(x, 0.1, rounding_mode="floor"),
        [0.5, 1.0, 2.0, INF, -0.0, 1e8],
        same=True,
    ),
    "acosh": Hard("aten::acosh", torch.acosh, [1e200, 1.0, 2.0, 1e154], torch.float64),
    "expm1": Hard("aten::expm1", torch.expm1, NEAR_ZERO),
    "atanh": Hard("aten::atanh", torch.atanh, NEAR_ZERO),
    "erf": Hard("aten::erf", torch.erf, NEAR_ZERO),
    "erfinv": Hard("aten::erfinv", torch.erfinv, [0.99999994, -0.99999994, 0.5]),
    "elu": Hard("aten::elu", torch.nn.functional.elu, NEAR_ZERO),
    "clamp": Hard(
        "aten::clamp", lambda x: aten.clamp(x, min=0.0), [-0.0, 0.0, NAN, -1.0], same=True
    ),
    "round": Hard(
        "aten::round.decimals",
        lambda x: torch.round(x, decimals=2),
        [522696065024.0, 0.125, 1.235, -7.005],
    ),
    "alpha": Hard(
        "aten::add.Tensor",
        lambda x: aten.add.Tensor(x, x.flip(0), alpha=0.3),
        [0.3333433, -1.0, 1.0, -0.29999],
        same=True,
    ),
    "rsub": Hard("aten::rsub.Scalar", lambda x: aten.rsub.Scalar(x, 0.1), [0.1, 0.3], same=True),
    "sigmoid_backward": Hard(
        "aten::sigmoid_backward",
        lambda x: aten.sigmoid_backward(x, x.flip(0)),
        [3.4e38, 0.5, 1.0, -0.5],
    ),
    "var far from zero": Hard(
        "aten::var.correction", lambda x: torch.var(x, 0), [1e5 + n * 0.37 for n in range(129)]
    ),
    "std of large": Hard(
        "aten::std.correction",
        lambda x: torch.std(x, 0),
        [1e20 * (n % 7 - 3.5) for n in range(129)],
    ),
    "mean": Hard("aten::mean", torch.mean, [1e7 + n for n in range(129)]),
    "sum": Hard("aten::sum", torch.sum, [0.1] * 1025),
} | {
    f"{name} {dtype}": Hard(op, call, data, dtype, same=True)
    for dtype in HALF
    for name, op, call, data in (
        ("rsub", "aten::rsub.Scalar", lambda x: aten.rsub.Scalar(x, 0.1), [0.1, 0.3, 7.0]),
        (
            "lerp",
            "aten::lerp.Scalar",
            lambda x: aten.lerp.Scalar(x, -2 * x + 0.01, 0.3),
            [0.1, 0.3, 7.0, 5.5],
        ),
        ("add", "aten::add.Tensor", lambda x: x + 0.1, [0.1, 0.3, 7.0]),
        ("mul", "aten::mul.Tensor", lambda x: x * 0.1, [0.1, 0.3, 7.0, 5.5]),
        ("div", "aten::div.Tensor", lambda x: x / 70000.0, [0.1, 0.3, 7.0, 5.5]),
        (
            "quotient",
            "aten::div.Tensor_mode",
            lambda x: torch.div(x, x * 0 + 0.2, rounding_mode="trunc"),
            [6.0, 0.5, 1.5],
        ),
    )
}


@pytest.mark.share(of=8)
@pytest.mark.compiles
@pytest.mark.parametrize("name", CASES)
def test_hard_values_come_out_as_eager_has_them(name: str) -> None:
    case = CASES[name]
    sizes = (len(case.data), len(case.data) + 16, 2 * len(case.data) + 32)
    hard = [_repeated(case, size) for size in sizes]
    with aoti_eager.config.scope(mode="off"):
        wanted = [case.call(x) for x in hard]
        exact = [case.call(x.double()) for x in hard]
    for _ in range(2):  # Cold, and from the store.
        with aoti_eager.register(case.op):
            easy = torch.linspace(0.25, 0.75, sizes[0]).to(case.dtype)
            case.call(easy)
            for x, want, truth in zip(hard, wanted, exact, strict=True):
                got = [case.call(x), case.call(x)]
                for one in got:
                    _compare(case, one, want, truth)
            stats = aoti_eager.stats()[case.op if case.op in aoti_eager.stats() else _base(case.op)]
            assert stats.hits >= 4, stats


def test_a_variance_of_doubles_is_computed_of_doubles() -> None:
    x = 1e9 + 0.001 * torch.arange(64, dtype=torch.float64)
    exact = statistics.variance(x.tolist())
    with aoti_eager.register("aten::var.correction"):
        torch.var(torch.linspace(0.25, 0.75, 64, dtype=torch.float64), 0)
        for _ in range(2):
            assert float(torch.var(x, 0)) == pytest.approx(exact, rel=1e-9)
        assert aoti_eager.stats()["aten::var.correction"].hits >= 1


def _base(op: str) -> str:
    return next(one for one in aoti_eager.stats() if one.startswith(op.partition(".")[0]))


def _repeated(case: Hard, size: int) -> Tensor:
    values = torch.tensor(case.data, dtype=torch.float64)
    return values.repeat(-(-size // len(values)))[:size].to(case.dtype)


def _compare(case: Hard, got: Tensor, want: Tensor, exact: Tensor) -> None:
    assert torch.equal(torch.isnan(got), torch.isnan(want))
    finite = torch.isfinite(want)
    assert torch.equal(got[~finite].nan_to_num(1.0), want[~finite].nan_to_num(1.0))
    if case.same:
        assert torch.equal(got[finite], want[finite])
        assert torch.equal(torch.signbit(got[finite]), torch.signbit(want[finite]))
        return
    unit = torch.finfo(case.dtype).eps * exact.abs().clamp_min(torch.finfo(case.dtype).tiny)
    allowed = torch.maximum((want.double() - exact).abs() * 1.5, 2 * unit)
    assert bool(((got.double() - exact).abs() <= allowed)[finite].all())


@pytest.mark.compiles
def test_an_infinity_in_a_row_gives_the_mean_that_eager_gives() -> None:
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    x[0, 7], x[1, -1], x[2, 0], x[3, 3] = INF, INF, -INF, NAN
    x[4], x[5, 4:], x[6, -2:] = INF, -INF, INF
    want = torch.var_mean(x, 1)
    with aoti_eager.register("aten::var_mean.correction"):
        torch.var_mean(torch.randn(7, 33), 1)
        got = torch.var_mean(x, 1)
        assert aoti_eager.stats()["aten::var_mean.correction"].hits == 1
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_out_of_range_become_the_bytes_that_eager_makes(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 127.0, 128.0, -129.0, 1e20, NAN], dtype=dtype)
    want = x.to(torch.int8)
    with aoti_eager.register("aten::_to_copy"):
        assert torch.equal(x.to(torch.int8), want)
        assert aoti_eager.stats()["aten::_to_copy"].declined == {"uncertified": 1}


@pytest.mark.compiles
def test_a_high_power_is_no_product_of_rounded_ones() -> None:
    x = torch.linspace(-300, 300, 4096)
    want = x.pow(10.0)
    with aoti_eager.register("aten::pow.Tensor_Scalar"):
        torch.ones(4096).pow(10.0)
        assert torch.equal(x.pow(10.0), want)
        assert aoti_eager.stats()["aten::pow.Tensor_Scalar"].hits == 1


@pytest.mark.compiles
def test_a_weight_of_lerp_is_rounded_before_it_is_taken_from_one() -> None:
    start = torch.linspace(0.1, 0.2, 4096)
    end = -start / 9
    want = torch.lerp(start, end, 0.9)
    with aoti_eager.register("aten::lerp.Scalar"):
        torch.lerp(torch.ones(4096), torch.ones(4096), 0.9)
        assert torch.equal(torch.lerp(start, end, 0.9), want)
        assert aoti_eager.stats()["aten::lerp.Scalar"].hits == 1


@pytest.mark.compiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", ["fmod", "remainder", "floor_divide"])
def test_a_divisor_without_dimensions_is_taken_in_the_dtype_of_the_result(
    op: str, dtype: torch.dtype
) -> None:
    x = (torch.arange(4096) * 24.0).to(dtype)
    divisor = torch.tensor(0.1, dtype=torch.float64)
    function = getattr(torch, op)
    want = function(x, divisor)
    name = f"aten::{op}" + ("" if op == "floor_divide" else ".Tensor")
    with aoti_eager.register(name):
        function(torch.ones_like(x), divisor)
        assert torch.equal(function(x, divisor), want)
        assert sum(counts.hits for counts in aoti_eager.stats().values()) >= 1


@pytest.mark.compiles
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_layer_norm_far_from_zero_is_as_exact_as_eager_s(dtype: torch.dtype) -> None:
    x = (65000 + 100 * torch.randn(8, 256, generator=torch.Generator().manual_seed(0))).to(dtype)
    want, exact = (
        aten.native_layer_norm(one, [256], None, None, 1e-5)[0] for one in (x, x.double())
    )
    with aoti_eager.register("aten::native_layer_norm"):
        aten.native_layer_norm(torch.randn(8, 256).to(dtype), [256], None, None, 1e-5)
        got = aten.native_layer_norm(x, [256], None, None, 1e-5)[0]
        assert aoti_eager.stats()["aten::native_layer_norm"].hits == 1
    error = (got.double() - exact).abs().max()
    assert error <= max((want.double() - exact).abs().max() * 1.5, 4 * torch.finfo(dtype).eps)


FLUSHES = """
import sys, torch
import aoti_eager
tiny = torch.tensor([1e-40], dtype=torch.float32)
with aoti_eager.config.scope(mode="sync", gate=False), aoti_eager.register("aten::mul.Tensor"):
    x = torch.full((64,), 2e-40)
    for _ in range(3):
        got = torch.mul(x, 0.5)
    assert aoti_eager.stats()["aten::mul.Tensor"].hits, aoti_eager.stats()
assert (got != 0).all(), got
assert (tiny * 1.0).item() != 0 and float(tiny[0]) / 2 != 0
"""


@pytest.mark.compiles
def test_a_library_flushes_no_denormals(cache_dir: Path) -> None:
    done = forked_python.run(
        [sys.executable, "-c", FLUSHES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_flags_leave_numbers_as_ieee_has_them() -> None:
    from aoti_eager._compile_worker.float_flags import contraction, float_flags

    flags: Any = float_flags("off")
    assert not any("unsafe" in flag and not flag.startswith("fno-") for flag in flags)
    assert "fno-finite-math-only" in flags
    assert "fno-signed-zeros" not in flags
    assert list(contraction(is_function=True).values()) == ["off"]
    assert list(contraction(is_function=False).values()) == ["fast"]
