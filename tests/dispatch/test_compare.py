"""What the comparison of a library's run with the original's finds, one kind at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aoti_eager._dispatch.compare import differences
from aoti_eager._dispatch.reference import float64_reference
from aoti_eager._dispatch.tensor_copies import copy_tensor
from aoti_eager._keys.call_template import CallTemplate, call_template
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import op_schema

aten = torch.ops.aten


def template(op: object, *args: object) -> CallTemplate:
    schema = op_schema(op)  # type: ignore[arg-type]
    return call_template(schema, kernel_key(schema, "CPU", schema.bind(args, {})))


X = torch.randn(4, 4)
SILU = template(aten.silu.default, X)
ADD_ = template(aten.add_.Tensor, X, X)


def found(expected: Tensor, got: Tensor) -> list[str]:
    return differences(SILU, [expected], [got], [torch.zeros(4)], [torch.zeros(4)])


def test_equal_results_have_no_difference() -> None:
    assert found(X, X.clone()) == []
    assert found(X, X + 1e-7) == []
    odd = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert found(odd, odd.clone()) == []


@pytest.mark.parametrize(
    ("what", "got"),
    [
        ("values", X + 1e-3),
        ("values", torch.where(X[0, 0] == X, float("nan"), X)),
        ("dtype", X.double()),
        ("sizes", X[:2]),
        ("strides", X.t().contiguous().t().clone()),
        ("storage offset", torch.cat([X[:1], X])[1:]),
    ],
)
def test_a_difference_is_named(what: str, got: Tensor) -> None:
    (line,) = found(X, got)
    assert line.startswith(f"result 0: {what}")


def test_a_result_on_an_arguments_storage_is_named() -> None:
    lines = differences(SILU, [X.clone()], [X], [X], [X])
    assert lines == ["aliasing: result 0 shares storage with input 0"]


def test_results_on_one_storage_are_named() -> None:
    pair = template(aten.var_mean.correction, X, None)
    one = torch.zeros(4)
    (line,) = differences(pair, [one, one.clone()], [one, one], [X], [X])
    assert line == "aliasing: result 1 shares storage with result 0"


def test_a_wrong_mutation_is_named() -> None:
    after, mine = X + 1, X + 2
    (line,) = differences(ADD_, [], [], [after, X], [mine, X])
    assert line.startswith("argument 'self': values")


def test_a_missing_result_is_named() -> None:
    assert differences(SILU, [X], [], [X], [X]) == ["results: 0 instead of 1"]


def test_a_result_as_near_to_float64_as_the_original_passes() -> None:
    """Reassociated sums of large terms: both are off, ours by less."""
    exact = torch.tensor([1.0], dtype=torch.float64)
    theirs, mine = torch.tensor([1.5]), torch.tensor([1.2])

    def reference() -> tuple[list[Tensor], list[Tensor]]:
        return [exact], [X]

    assert differences(SILU, [theirs], [mine], [X], [X], reference) == []
    assert differences(SILU, [mine], [theirs], [X], [X], reference) != []
    nan = torch.tensor([float("nan")])
    assert differences(SILU, [theirs], [nan], [X], [X], reference) != []


def test_the_reference_runs_the_op_in_double_precision() -> None:
    outputs = ({"output": 0},)
    reference = float64_reference(SILU, [X], aten.silu.default, outputs)
    assert reference is not None
    torch.testing.assert_close(reference[0][0], X.double() * torch.sigmoid(X.double()))
    whole = template(aten.bitwise_not.default, X.long())
    assert float64_reference(whole, [X.long()], aten.bitwise_not.default, outputs) is None


LAYOUTS: list[Callable[[], Tensor]] = [
    lambda: X,
    lambda: X.t(),
    lambda: X[:, ::2],
    lambda: X[0].expand(3, 4),
    lambda: X[1:].as_strided((2, 2), (1, 1)),
    lambda: X[:0],
    lambda: torch.tensor(3.0),
    lambda: X.clone().requires_grad_(),
]


@pytest.mark.parametrize("make", LAYOUTS)
def test_a_copy_has_the_same_layout_on_a_storage_of_its_own(make: Callable[[], Tensor]) -> None:
    original = make()
    copy = copy_tensor(original)
    assert torch.equal(copy, original)
    assert copy.stride() == original.stride()
    assert not copy.requires_grad
    if copy.numel():
        assert copy.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()
