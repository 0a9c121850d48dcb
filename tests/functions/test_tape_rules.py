"""Which tapes are refused, and with which reason: by their ops, their writes, their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aoti_eager._functions.tape import Tape
from aoti_eager._functions.tape_call import TapeCall
from aoti_eager._functions.tape_rules import refusal
from aoti_eager._keys.declines import REASONS

from ..support.tapes import Attention, Convolutions, GraphLayer, module_tensors, policy, tape_of

X = torch.rand(4, 4) + 0.5
INDEX = torch.tensor([0, 2, 1, 3])


def reason(function: Callable[..., Any], *arguments: Tensor) -> str | None:
    found = refusal(tape_of(function, arguments).tape)
    if found is None:
        return None
    assert found[0] in REASONS
    return found[0]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (policy(), [torch.randn(2, 17)]),
        (Attention(), [torch.zeros(1, 3, dtype=torch.int64)]),
        (Convolutions(), [torch.randn(1, 3, 8, 8)]),
        (GraphLayer(), [torch.randn(6, 16), INDEX, INDEX]),
    ],
)
def test_models_are_regions(module: torch.nn.Module, arguments: list[Tensor]) -> None:
    assert refusal(tape_of(module, arguments, module_tensors(module)).tape) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nn.functional.dropout(x * 2, 0.5, training=False) + 1,
        lambda x: x.neg().add_(x).mul_(2),
        lambda x: x.new_empty(2, 2).fill_(1.0) + x[:2, :2],
        lambda x: x.new_empty(0).sum() + x,
        lambda x: (x + 1, x + 2),
        lambda x: (x + 1).view(2, 8).transpose(0, 1),
        lambda x: torch.stack([a * 2 for a in x.unbind(0)]),
        lambda x: (
            torch.embedding(x, INDEX) + x.index_select(0, INDEX) + x.gather(0, INDEX.expand(4, 4))
        ),
        lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0],
    ],
)
def test_what_a_region_may_contain(function: Callable[..., Any]) -> None:
    assert reason(function, X) is None


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: torch.nn.functional.dropout(x, 0.5, training=True), "random"),
        (lambda x: x + torch.rand_like(x), "random"),
        (lambda x: x * x.sum().item(), "data_dependent_output"),
        (lambda x: x.nonzero().sum(), "data_dependent_output"),
        (lambda x: x.new_empty(4) + x, "uninitialised"),
        (lambda x: (x + 1, x.new_empty(3)), "uninitialised"),
        (lambda x: x.as_strided((2,), (1,)) + 1, "reads_storage_offset"),
        (lambda x: (x + 1).as_strided((2,), (1,)) + 1, "reads_storage_offset"),
        (lambda x: (x + 1).resize_(2), "changes_metadata"),
        (lambda x: x.masked_scatter(x > 1, x), "error_depends_on_data"),
        (lambda x: x.index_copy(0, INDEX, x), "error_depends_on_data"),
        (lambda x: x.to_sparse().to_dense(), "unsupported_tensor"),
        (lambda x: x.add_(1) + 1, "mutates_constant"),
        (lambda x: x[0].add_(1) + 1, "mutates_constant"),
        (lambda x: x.view(2, 8).t().mul_(2) + 1, "mutates_constant"),
        (lambda x: torch._foreach_add_([x], 1.0) or x + 1, "mutates_constant"),
        (lambda x: x, "result_shares_storage"),
        (lambda x: x.view(2, 8), "result_shares_storage"),
        (lambda x: (x + 1, x[0]), "result_shares_storage"),
        (lambda x: (lambda y: (y, y.t()))(x + 1), "result_shares_storage"),
        (lambda x: (x + 1).split(2), "result_shares_storage"),
        (lambda x: torch.ops.aten._unsafe_view(x, [2, 8]), "result_shares_storage"),
    ],
)
def test_what_no_region_may_contain(function: Callable[..., Any], expected: str) -> None:
    assert reason(function, X.clone()) == expected


def test_statistics_that_are_written_stop_a_region() -> None:
    norm = torch.nn.BatchNorm1d(4)
    tape = tape_of(norm, [X], module_tensors(norm)).tape
    found = refusal(tape)
    assert found is not None
    # The count of batches is written to first.
    assert found[0] in ("mutates_constant", "undeclared_write")
    mean, var = torch.zeros(4), torch.ones(4)
    function = torch.nn.functional.batch_norm
    assert (
        reason(lambda x, m, v: function(x, m, v, training=True), X, mean, var) == "undeclared_write"
    )
    assert reason(lambda x, m, v: function(x, m, v, training=False), X, mean, var) is None


def test_an_op_of_another_library_stops_a_region() -> None:
    library = torch.library.Library("aoti_eager_test_rules", "DEF")
    try:
        library.define("double(Tensor x) -> Tensor")
        call = TapeCall("aoti_eager_test_rules::double", (("x", {"input": 0}),))
        found = refusal(Tape.of(1, [call], [{"result": [0, 0]}]))
    finally:
        library._destroy()
    assert found is not None
    assert found[0] == "op_not_in_worker"
    assert "call 0 of the region, aoti_eager_test_rules::double" in found[1]
