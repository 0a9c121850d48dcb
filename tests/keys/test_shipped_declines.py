"""Calls that keep their original with the settings as they ship, and for which reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager._keys.declines import REASONS

from ..support.shipped import NOT_FASTER, assert_same, check, settle, since

pytestmark = pytest.mark.shipped

aten = torch.ops.aten
X = torch.arange(12.0).reshape(3, 4)
# Reasons that would be faults of ours.
FAULTS = {"internal_error", "mismatch", "run_failed", "crashed", "raised", "worker_died"}


def drawn() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.multinomial(X.flatten(), 5, generator=generator)


class Own(Tensor):
    """A subclass without a function of its own."""


def in_inference_mode() -> Any:
    with torch.inference_mode():
        return (X * 3).tolist()


def under_autocast() -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.mm(X, X.t())


def traced() -> Any:
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: x * 2)(X)
    return graph(X)


# From the first call on.
DECLINED: dict[str, tuple[str, Callable[[], Any], str]] = {
    "random": ("aten::multinomial", drawn, "random"),
    "a view": ("aten::t", lambda: X.t(), "returns_view"),
    "a bad index": (
        "aten::take",
        lambda: X.take(torch.tensor([10**6])),
        "error_depends_on_data",
    ),
    "a good index": (
        "aten::index_fill.int_Scalar",
        lambda: X.index_fill(0, torch.tensor([0]), 2.0),
        "error_depends_on_data",
    ),
    "by zero": (
        "aten::div.Tensor_mode",
        lambda: torch.div(X.long(), 0, rounding_mode="floor"),
        "error_depends_on_data",
    ),
    "sizes of the data's": ("aten::nonzero", lambda: torch.nonzero(X), "data_dependent_output"),
    "a tensor by itself twice": (
        "aten::mul_.Tensor",
        lambda: X.clone().expand(2, 3, 4).mul_(2),
        "mutated_argument_overlaps",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_a_call_is_declined_and_does_what_the_original_does(name: str) -> None:
    op, call, reason = DECLINED[name]
    check(call, op, declined=reason)


# Once a worker has found that there is nothing to compile.
WITHOUT_A_KERNEL: dict[str, tuple[str, Callable[[], Any]]] = {
    "complex numbers": ("aten::mul.Tensor", lambda: X.to(torch.complex64) * 2),
    "no elements": ("aten::mul.Tensor", lambda: torch.ones(0, 4) * 2),
    "a product under autocast": ("aten::mm", under_autocast),
}


@pytest.mark.parametrize("name", WITHOUT_A_KERNEL)
def test_a_call_without_a_kernel_of_its_own_keeps_the_original(name: str) -> None:
    op, call = WITHOUT_A_KERNEL[name]
    with aoti_eager.config.scope(mode="off"):
        want = call()
    with aoti_eager.register(op):
        before = aoti_eager.stats()
        for got in settle(call):
            assert_same(got, want)
        found = since(before, op, aoti_eager.stats()[op])
    assert found.hits == 0
    assert set(found.declined) == {"no_kernel_of_its_own"}


# Calls of which some reach the kernel and some do not: what they give is the original's.
OTHERS: dict[str, Callable[[], Any]] = {
    "sparse": lambda: (X.to_sparse() * 2).to_dense(),
    "a subclass": lambda: (X.as_subclass(Own) * 2).sum().item(),
    "without data": lambda: (torch.ones(3, 4, device="meta") * 2).shape,
    "in inference mode": in_inference_mode,
    "in vmap": lambda: torch.vmap(lambda row: row * 2)(X),
    "in a trace": traced,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_call_of_another_kind_does_what_the_original_does(name: str) -> None:
    check(OTHERS[name], "aten::mul.Tensor", may_decline=NOT_FASTER | set(REASONS) - FAULTS)
