"""Gradients of the user's own ops: what autograd gives, by compiled forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from aoti_eager import CustomOp, stats

from . import gradient_ops as functions
from .conftest import MakeOp, assert_close


def leaf(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=generator, dtype=dtype).requires_grad_()


def plain(*sizes: int, seed: int = 9) -> Tensor:
    return leaf(*sizes, seed=seed).detach()


CASES: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]] = {
    "rms_norm": (functions.rms_norm, lambda: (leaf(3, 5), leaf(5, seed=1))),
    "layer_norm_residual": (
        functions.layer_norm_residual,
        lambda: (leaf(3, 5), leaf(3, 5, seed=1), leaf(5, seed=2), leaf(5, seed=3)),
    ),
    "swiglu": (functions.swiglu, lambda: (leaf(3, 5), leaf(3, 5, seed=1))),
    "gelu_tanh": (functions.gelu_tanh, lambda: (leaf(3, 5),)),
    "rotary": (functions.rotary, lambda: (leaf(2, 3, 4), plain(3, 2), plain(3, 2, seed=8))),
    "cross_entropy": (functions.cross_entropy, lambda: (leaf(4, 5), torch.tensor([0, 3, 2, 4]))),
    "masked_softmax": (functions.masked_softmax, lambda: (leaf(3, 5), plain(3, 5) > -0.5, 0.5)),
    "affine": (functions.affine, lambda: (leaf(3, 5), leaf(5, seed=1), leaf(3, 1, seed=2))),
    "variance": (functions.variance, lambda: (leaf(2, 3, 4),)),
    "cosine": (functions.cosine, lambda: (leaf(3, 5), leaf(1, 5, seed=1))),
    "huber": (functions.huber, lambda: (leaf(3, 5), leaf(3, 5, seed=1), 0.75)),
    "bilinear": (functions.bilinear, lambda: (leaf(3, 4), leaf(4, 2, seed=1), None)),
}


def counts(op: CustomOp) -> tuple[Any, Any]:
    """Return what happened to calls of an op, and of its gradient's."""
    namespace, _, local = op.name.partition("::")
    found = stats()
    return found[op.name], found[f"{namespace}::_{local}_backward"]


def run(op: CustomOp, *arguments: Any) -> list[Tensor]:
    """Return the results and gradients of a call."""
    found = op(*arguments)
    results = [found] if isinstance(found, Tensor) else list(found)
    wanted = [one for one in arguments if isinstance(one, Tensor) and one.requires_grad]
    total = sum((one * (index + 1)).sum() for index, one in enumerate(results))
    return [*results, *torch.autograd.grad(total, wanted)]


@pytest.mark.both_paths
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_first_and_second_order(name: str, make_op: MakeOp, shared_cache: Any) -> None:
    function, make = CASES[name]
    op, arguments = make_op(function), make()
    run(op, *arguments)  # Compiled, and compared.
    forward, backward = counts(op)
    assert gradcheck(op, arguments)
    assert counts(op)[0].hits > forward.hits
    assert counts(op)[1].hits > backward.hits
    assert counts(op)[1].declines == backward.declines
    assert gradgradcheck(op, arguments)
    assert sum(one.failures for one in counts(op)) == forward.failures + backward.failures


@pytest.mark.parametrize("name", ["rms_norm", "affine", "variance"])
def test_what_eager_gives_in_float32(name: str, make_op: MakeOp, shared_cache: Any) -> None:
    function, make = CASES[name]
    op = make_op(function)
    arguments = [one.detach().float().requires_grad_() for one in make()]
    for _ in range(3):
        assert_close(run(op, *arguments), run(op.__wrapped__, *arguments))
    assert counts(op)[1].hits >= 1
