"""Operators of functions with the settings as they ship: results, writes, errors, constants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager

from ..conftest import MakeOp
from ..support import gradient_ops as functions
from ..support.shipped import assert_nothing_failed, assert_same, check, outcome, settle

pytestmark = pytest.mark.shipped


def rand(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(5))


X, WEIGHT = rand(4, 6), rand(6)


def test_results(make_op: MakeOp) -> None:
    op = make_op(functions.rms_norm)
    want = functions.rms_norm(X, WEIGHT)
    for got in settle(lambda: op(X, WEIGHT)):
        assert_same(got, want)
    assert_nothing_failed({op.name: aoti_eager.stats()[op.name]})
    # Reached by torch's name, and with its arguments by theirs: the same kernel.
    for call in (
        lambda: torch.ops.aetest.rms_norm(X, WEIGHT),
        lambda: op(X, weight=WEIGHT),
        lambda: op(weight=WEIGHT, x=X, eps=1e-6),
    ):
        for _ in range(3):
            assert_same(call(), want)


def scale_(x: Tensor, by: float) -> None:
    x.mul_(by)


def test_what_is_written_to_is_the_callers(make_op: MakeOp) -> None:
    op = make_op(scale_, mutates_args=("x",))

    def call() -> Any:
        whole = torch.stack([X, X])
        return op(whole[0], 2.0), whole

    for got in settle(call):
        assert_same(got, (None, torch.stack([X * 2.0, X])))
    assert_nothing_failed({op.name: aoti_eager.stats()[op.name]})


def two(x: Tensor) -> tuple[Tensor, Tensor]:
    return x + 1, (x * x).sum(-1)


def test_several_results(make_op: MakeOp) -> None:
    op = make_op(two)
    for got in settle(lambda: op(X)):
        assert_same(got, two(X))
    assert_nothing_failed({op.name: aoti_eager.stats()[op.name]})


@pytest.mark.parametrize(
    "arguments",
    [(X, rand(7)), (X.long(), WEIGHT), (X, "weight"), (X,)],
    ids=["sizes", "a dtype", "a type", "too few"],
)
def test_errors_and_promotions_are_the_functions(make_op: MakeOp, arguments: Any) -> None:
    op = make_op(functions.rms_norm)
    want = outcome(lambda: functions.rms_norm(*arguments))
    for got in settle(lambda: op(*arguments)):
        if isinstance(want, Tensor):
            assert_same(got, want)
        else:  # The dispatcher says in its own words that an argument has another type.
            assert isinstance(got, tuple)
            assert issubclass(got[0], Exception)


def branches(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x * 3


def test_a_function_that_cannot_be_traced_keeps_running(make_op: MakeOp) -> None:
    op = make_op(branches)
    for x in (X, -X, X.abs(), -X.abs()):
        for got in settle(lambda x=x: op(x)):
            assert_same(got, branches(x))
    assert aoti_eager.stats()[op.name].hits == 0
    assert aoti_eager.stats()[op.name].failures <= 1


def test_an_op_may_be_taken_out_before_its_kernel_has_come() -> None:
    op = aoti_eager.custom_op("aetest::taken_out", functions.rms_norm)
    want = functions.rms_norm(X, WEIGHT)
    for _ in range(3):
        assert_same(op(X, WEIGHT), want)
    op.unregister()
    assert aoti_eager.wait()


def test_torchs_own_custom_op() -> None:
    @torch.library.custom_op("aetest::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    check(lambda: doubled(X), "aetest::doubled")
