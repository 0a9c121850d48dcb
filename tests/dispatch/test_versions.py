"""Version counters after a hit: as after the original, however that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager._dispatch import versions
from aoti_eager._keys.schema import op_schema

pytestmark = pytest.mark.both_paths

aten = torch.ops.aten
Tensors = list[Tensor]
Call = Callable[[Tensors], Any]


def tensors() -> Tensors:
    return [torch.arange(6.0).reshape(2, 3) - 2, torch.arange(4.0) + 1]


CALLS: list[tuple[Any, Call]] = [
    (aten._foreach_abs_.default, lambda x: torch._foreach_abs_(x)),
    (aten._foreach_add_.List, lambda x: torch._foreach_add_(x, tensors())),
    (aten._foreach_abs.out, lambda x: aten._foreach_abs.out(tensors(), out=x)),
    (aten.abs_.default, lambda x: [t.abs_() for t in x]),
    (aten.abs.out, lambda x: [torch.abs(t + 1, out=t) for t in x]),
]


def counted(call: Call) -> list[int]:
    written = tensors()
    before = [t._version for t in written]
    call(written)
    return [t._version - count for t, count in zip(written, before, strict=True)]


@pytest.mark.parametrize(("op", "call"), CALLS, ids=[str(op) for op, _ in CALLS])
def test_a_hit_counts_what_it_writes_to_as_the_original_does(op: Any, call: Call) -> None:
    want = counted(call)
    assert any(want)
    with aoti_eager.register(op) as registration:
        for _ in range(6):  # Some of them are compared with the original once more.
            assert counted(call) == want
        stats = aoti_eager.stats()[registration.ops[0]]
        assert stats.hits
        assert stats.rechecks


def test_a_saved_tensor_that_a_hit_has_changed_is_found_out() -> None:
    def step() -> None:
        x = torch.arange(4.0, requires_grad=True)
        y = x.exp()  # saves its result
        torch._foreach_abs_([y.detach()])
        y.sum().backward()

    with pytest.raises(RuntimeError, match="modified by an inplace operation") as want:
        step()
    with aoti_eager.register(aten._foreach_abs_.default) as registration:
        for _ in range(2):
            with pytest.raises(RuntimeError) as got:
                step()
            assert str(got.value) == str(want.value)
        assert aoti_eager.stats()[registration.ops[0]].hits


def test_a_hit_in_inference_mode_counts_for_normal_tensors_only() -> None:
    with torch.inference_mode():
        inference = tensors()
    normal = tensors()
    with aoti_eager.register(aten._foreach_abs_.default) as registration:
        with torch.inference_mode():
            for _ in range(2):
                torch._foreach_abs_(inference)
        assert inference[0].tolist() == [[2, 1, 0], [1, 2, 3]]
        before = [t._version for t in normal]
        with torch.inference_mode():
            torch._foreach_abs_(normal)
        assert [t._version for t in normal] == [count + 1 for count in before]
        assert aoti_eager.stats()[registration.ops[0]].hits == 2


@pytest.mark.parametrize(
    ("op", "counts"),
    [
        (aten.add_.Tensor, False),  # PyTorch counts above the backend
        (aten._fused_sgd_.default, False),  # a kernel of its own, which counts nothing
        (aten._foreach_add_.List, True),
        (aten._foreach_add.List, False),
    ],
)
def test_which_ops_leave_counting_to_what_they_call(op: Any, counts: bool) -> None:
    schema = op_schema(op)

    assert versions.leaves_counting_to_others(schema, "CPU", overridden=False) is counts


def test_nothing_is_counted_below_the_key_that_counts() -> None:
    x = torch.ones(2)
    before = x._version

    with torch._C._AutoDispatchBelowADInplaceOrView():
        versions.count_writes([x, None])
    assert x._version == before

    versions.count_writes([x, None])
    assert x._version == before + 1
