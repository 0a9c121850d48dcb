"""A call in double precision, casts within it included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aoti_eager._dispatch import double_run
from aoti_eager._dispatch.closeness import near_by
from aoti_eager._dispatch.compare import values_problem
from aoti_eager._dispatch.reference import Reference
from aoti_eager._dispatch.tensor_pairs import compared_pairs
from aoti_eager._keys.call_template import call_template
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import parsed_schema

X = torch.linspace(-3, 3, 64)


def reference(function: Callable[..., Tensor], *args: Any, **options: Any) -> Reference:
    names = ", ".join(f"Tensor a{i}" for i in range(len(args)))
    schema = parsed_schema(f"aetest::function({names}) -> Tensor")
    template = call_template(schema, kernel_key(schema, "CPU", schema.bind(args, {})))
    return Reference(
        template, lambda: [one.clone() for one in args], function, [{"output": 0}], **options
    )


def exact(function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    found = reference(function, *args, **options).exact()
    assert found is not None
    return found[0][0]


def test_a_cast_to_lower_precision_is_left_out() -> None:
    for cast in (
        lambda x: x.to(torch.float32),
        lambda x: x.half(),
        lambda x: x.sum(dtype=torch.float32) + x,
        lambda x: torch.softmax(x, 0, dtype=torch.float32),
        lambda x: x + torch.full((1,), 0.1, dtype=torch.bfloat16),
    ):
        assert exact(cast, X).dtype is torch.float64
    third = exact(lambda x: (x.bfloat16() / 3).float(), X)
    assert torch.equal(third, X.double() / 3)


def test_casts_to_integers_stay() -> None:
    assert torch.equal(exact(lambda x: x.to(torch.int32) * 1.0, X), X.to(torch.int32).double())


def test_a_quotient_of_integers_is_in_double() -> None:
    whole = torch.arange(1, 9)
    found = exact(lambda a: 1 / a, whole, default_dtype=torch.float64)
    assert torch.equal(found, 1 / whole.double())
    assert torch.get_default_dtype() is torch.float32


def test_the_spread_is_what_rounding_the_steps_may_come_to() -> None:
    found = reference(lambda x: torch.exp(x) - 1, torch.full((64,), 1e-6))
    assert found.exact() is not None
    rounded, nudged = found.spread()
    base = found.exact()[0][0]  # type: ignore[index]
    steps = max(float((one[0][0] - base).abs().max()) for one in rounded)
    inputs = max(float((one[0][0] - base).abs().max()) for one in nudged)
    assert 3e-8 < steps < 2e-7
    assert inputs < 1e-12


def test_an_op_that_takes_no_double_has_no_reference() -> None:
    def choosy(x: Tensor) -> Tensor:
        if x.dtype is torch.float64:
            raise TypeError("no")
        return x

    assert reference(choosy, X).exact() is None


@pytest.mark.parametrize("sizes", [(double_run._MOST_DRAWN + 5,), (2, 3, double_run._MOST_DRAWN)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_errors_of_a_large_tensor_begin_again_where_drawn_ones_end(
    sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, most = torch.randn(sizes, dtype=dtype), double_run._MOST_DRAWN
    drawn = double_run._factors((most,), 1e-3, torch.Generator().manual_seed(3))
    want = x * drawn.repeat(-(-x.numel() // most))[: x.numel()].view(sizes)
    for one in (x, x.clone().requires_grad_(), x.movedim(0, -1).contiguous().movedim(-1, 0)):
        got = double_run.with_noise(one, 1e-3, torch.Generator().manual_seed(3))
        assert torch.equal(got, want)


def passes_over_nan(x: Tensor, weight: Tensor) -> Tensor:
    """Return a product; rows of NaN count as 0, as in torch's attention in single precision."""
    product = x @ weight
    rest = weight.sum(0) + 1000 - 1000
    return rest + (product if x.dtype is torch.float64 else product.nan_to_num(0.0))


def nan_problem(off: float) -> str | None:
    """Return what is found wrong of a row that is off by a share of itself, where NaN was."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 256, generator=generator)
    weight = torch.randn(256, 4, generator=generator)
    x[2, 3] = float("nan")
    want = passes_over_nan(x, weight)
    got = want.clone()
    got[2] *= 1 + off
    judge = reference(passes_over_nan, x, weight)
    inputs = [x, weight]
    _, pairs = compared_pairs(judge._template, [want], [got], inputs, inputs)
    return values_problem(pairs[:1], [judge], lambda _: (1.0, False))


def test_where_double_gives_nan_errors_of_the_original_show_what_passes() -> None:
    assert nan_problem(2e-6) is None
    assert "in double precision nan" in str(nan_problem(1e-3))


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_where_the_original_has_no_number_once_no_difference_passes(odd: float) -> None:
    want = torch.ones(3, dtype=torch.float64)
    others = [want, torch.tensor([1.0, odd, 1.0])]
    have = torch.tensor([1.0, 1e30, 1.5], dtype=torch.float64)
    assert near_by(want, have, others, torch.float32).tolist() == [True, False, False]
