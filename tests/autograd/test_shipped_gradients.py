"""Gradients with the settings as they ship: of functions, and through served ops of torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager

from ..conftest import MakeOp
from ..support import gradient_ops as functions
from ..support.shipped import assert_nothing_failed, assert_same, check, settle

pytestmark = pytest.mark.shipped


def rand(*sizes: int, seed: int = 5) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


X, WEIGHT = rand(4, 6), rand(6, seed=6)


def run(function: Any, *, retained: bool = False) -> Any:
    """Return a result and the gradients of both arguments."""
    x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    y = function(x, weight)
    if retained:
        y.sum().backward(retain_graph=True)
    y.pow(2).sum().backward()
    return y.detach(), x.grad, weight.grad, y.requires_grad


def forward(function: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = function(X, WEIGHT)
    return result


@pytest.mark.parametrize("retained", [False, True], ids=["once", "twice"])
def test_gradients_of_a_function(make_op: MakeOp, retained: bool) -> None:
    op = make_op(functions.rms_norm)
    want = run(functions.rms_norm, retained=retained)
    for got in settle(lambda: run(op, retained=retained)):
        assert_same(got, want)
    # Where the gradient's kernel loses, autograd follows the function, and the function's own
    # kernel is compared in calls that want no gradient.
    for got in settle(lambda: forward(op)):
        assert_same(got, want[0])
    assert_nothing_failed(aoti_eager.stats())


def test_where_nothing_is_wanted_there_is_no_graph(make_op: MakeOp) -> None:
    op = make_op(functions.rms_norm)
    want = functions.rms_norm(X, WEIGHT)
    weight = WEIGHT.clone().requires_grad_()

    def call() -> Any:
        with torch.no_grad():
            y = op(X, weight)
        return y, y.requires_grad

    for got in settle(call):
        assert_same(got, (want, False))
    assert op(X, weight).requires_grad


def test_second_derivatives(make_op: MakeOp) -> None:
    op = make_op(functions.rms_norm)

    def second(function: Any) -> Tensor:
        x = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x, WEIGHT).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    want = second(functions.rms_norm)
    for got in settle(lambda: second(op)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_gradients_through_ops_of_torchs() -> None:
    """Forward and backward are served below autograd."""

    def call() -> Any:
        x = rand(8, 8, seed=7).requires_grad_()
        y = torch.nn.functional.silu(x) * x
        y.sum().backward()
        return y.detach(), x.grad

    check(call, "aten::silu", "aten::mul.Tensor", "aten::silu_backward")


def test_a_tensor_that_was_changed_is_found_out() -> None:
    def call() -> Any:
        x = X.clone().requires_grad_()
        y = x.exp()
        y.detach().add_(1)
        y.sum().backward()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        call()
    check(call, "aten::add_.Tensor")
