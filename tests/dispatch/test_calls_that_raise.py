"""Calls that must raise, or warn, as the original does: bad indices, zero divisors, bad out=."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager

from ..support.outcomes import outcome

pytestmark = pytest.mark.both_paths(costly=True)

aten = torch.ops.aten
OpOverload = torch._ops.OpOverload

Call = Callable[[], Any]


def assert_as_original(
    op: OpOverload, call: Call, reason: str, *, raises: str | None = None
) -> None:
    """Call twice with ``op`` registered: both as the original, both declined for ``reason``."""
    want = outcome(call)
    if raises is not None:
        assert want[0] == raises, want
    with aoti_eager.register(op) as registration:
        (name,) = registration.ops
        before = aoti_eager.stats()[name].declined.get(reason, 0)
        assert outcome(call) == want
        assert outcome(call) == want
        assert aoti_eager.stats()[name].declined.get(reason, 0) - before == 2


X = torch.arange(12.0).reshape(3, 4)


def _index(*values: int) -> Tensor:
    return torch.tensor(values)


BAD_INDICES = [
    (aten.scatter.src, lambda i: torch.scatter(X, 0, _index(0, i, 0, 0)[None], X)),
    (aten.scatter.value, lambda i: torch.scatter(X, 0, _index(0, i, 0, 0)[None], 2.0)),
    (aten.scatter_add.default, lambda i: torch.scatter_add(X, 0, _index(0, i, 0, 0)[None], X)),
    (aten.scatter_reduce.two, lambda i: X.scatter_reduce(0, _index(i)[None], X, "sum")),
    (aten.index_put.default, lambda i: X.index_put((_index(0, i),), torch.tensor(7.0))),
    (aten.index_put_.default, lambda i: X.clone().index_put_((_index(0, i),), torch.tensor(7.0))),
    (
        aten._index_put_impl_.default,
        lambda i: X.clone().index_put_((_index(i),), torch.tensor(7.0)),
    ),
    (aten.index_add.default, lambda i: X.index_add(0, _index(i), X[:1])),
    (aten.index_copy.default, lambda i: X.index_copy(0, _index(i), X[:1])),
    (aten.index_fill.int_Scalar, lambda i: X.index_fill(0, _index(i), 7.0)),
    (aten.take.default, lambda i: X.take(_index(0, i * 4))),
    (aten.put_.default, lambda i: X.clone().put_(_index(0, i * 4), torch.ones(2))),
]
WRAPPING = {
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten.index_fill.int_Scalar,
    aten.take.default,
    aten.put_.default,
}


@pytest.mark.parametrize("index", [-1, 4, 10**9])
@pytest.mark.parametrize(("op", "call"), BAD_INDICES, ids=[str(op) for op, _ in BAD_INDICES])
def test_a_bad_index_does_what_the_original_does(
    op: OpOverload, call: Callable[[int], Any], index: int
) -> None:
    raises = index > 0 or op not in WRAPPING
    want = outcome(lambda: call(index))
    assert (want[0] in ("IndexError", "RuntimeError")) is raises, want
    assert_as_original(op, lambda: call(index), "error_depends_on_data")


BY_ZERO = [
    (aten.div.Tensor_mode, lambda a, b: torch.div(a, b, rounding_mode="trunc")),
    (aten.div.Tensor_mode, lambda a, b: torch.div(a, b, rounding_mode="floor")),
    (aten.div_.Tensor_mode, lambda a, b: a.clone().div_(b, rounding_mode="floor")),
    (aten.floor_divide.default, lambda a, b: torch.floor_divide(a, b)),
    (aten.floor_divide_.Tensor, lambda a, b: a.clone().floor_divide_(b)),
    (aten.remainder.Tensor, lambda a, b: torch.remainder(a, b)),
    (aten.remainder_.Tensor, lambda a, b: a.clone().remainder_(b)),
    (aten.fmod.Tensor, lambda a, b: torch.fmod(a, b)),
    (aten.fmod_.Tensor, lambda a, b: a.clone().fmod_(b)),
]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([4, 2]), torch.tensor([2, 0])),
        (torch.tensor([4, 2], dtype=torch.int8), torch.tensor(0, dtype=torch.int8)),
        (torch.tensor([4, 2], dtype=torch.uint8), torch.tensor([2, 0])),
        (torch.tensor([4, 2]), torch.tensor([True, False])),
    ],
    ids=["int64", "int8 by 0-dim", "uint8 by int64", "int64 by bool"],
)
@pytest.mark.parametrize(
    ("op", "call"), BY_ZERO, ids=[f"{i} {op}" for i, (op, _) in enumerate(BY_ZERO)]
)
def test_integer_division_by_zero_raises_as_the_original(
    op: OpOverload, call: Callable[[Tensor, Tensor], Any], a: Tensor, b: Tensor
) -> None:
    assert_as_original(op, lambda: call(a, b), "error_depends_on_data")


@pytest.mark.parametrize(
    ("op", "call"),
    [
        (aten.div.Tensor_mode, lambda a: torch.div(a, 0, rounding_mode="trunc")),
        (aten.floor_divide.default, lambda a: a // 0),
        (aten.remainder.Tensor, lambda a: a % 0),
        (aten.fmod.Tensor, lambda a: a.fmod(0)),
    ],
)
def test_integer_division_by_the_number_zero_raises_as_the_original(
    op: OpOverload, call: Callable[[Tensor], Any]
) -> None:
    assert_as_original(
        op, lambda: call(torch.tensor([4, 2])), "error_depends_on_data", raises="RuntimeError"
    )


@pytest.mark.parametrize(
    ("op", "call"),
    [
        (aten.add.out, lambda out: torch.add(X, X, out=out)),
        (aten.mul.out, lambda out: torch.mul(X, 2.0, out=out)),
        (aten.exp.out, lambda out: torch.exp(X, out=out)),
        (aten.sum.IntList_out, lambda out: torch.sum(X, 0, out=out)),
        (aten.mm.out, lambda out: torch.mm(X, X.t(), out=out)),
        (aten.cat.out, lambda out: torch.cat([X, X], out=out)),
    ],
)
@pytest.mark.parametrize("sizes", [(5,), (0,), (7, 1, 2)], ids=str)
def test_an_out_of_the_wrong_size_is_resized_as_by_the_original(
    op: OpOverload, call: Callable[[Tensor], Tensor], sizes: tuple[int, ...]
) -> None:
    assert_as_original(op, lambda: call(torch.empty(sizes)), "out_resized")


def test_an_out_that_cannot_be_resized_raises_as_the_original() -> None:
    want = outcome(lambda: torch.add(X, X, out=torch.empty(1).expand(5)))
    with aoti_eager.register(aten.add.out):
        for _ in range(2):
            assert outcome(lambda: torch.add(X, X, out=torch.empty(1).expand(5))) == want


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_an_out_of_the_wrong_dtype_raises_as_the_original(dtype: torch.dtype) -> None:
    def call() -> Tensor:
        return torch.add(X, X, out=torch.empty(3, 4, dtype=dtype))

    want = outcome(call)
    assert want[0] == "RuntimeError"
    with aoti_eager.register(aten.add.out):
        assert outcome(call) == want
        assert outcome(call) == want


@pytest.mark.both_paths
@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_integer_division_into_a_float_out_raises_what_eager_raises(
    mode: str, no_compiles: None
) -> None:
    a, b, out = torch.tensor([1, 2]), torch.tensor([0, 1]), torch.empty(2)
    with pytest.raises(RuntimeError) as plain:
        torch.div(a, b, rounding_mode=mode, out=out)
    with aoti_eager.register("aten::div.out_mode"):
        torch.div(a, a, rounding_mode=mode, out=out)
        with pytest.raises(RuntimeError) as served:
            torch.div(a, b, rounding_mode=mode, out=out)
    assert str(served.value) == str(plain.value)
