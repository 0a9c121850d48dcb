"""Which functional overload an in-place, ``out=`` or ``_foreach_`` overload computes like."""

from __future__ import annotations

import pytest
import torch

from aoti_eager._base.op_names import find_overload
from aoti_eager._base.torch_compat.dispatcher import all_op_names
from aoti_eager._keys.functional_overload import functional_overload
from aoti_eager._keys.schema import op_schema
from aoti_eager.errors import UnknownOpError


@pytest.mark.parametrize(
    ("variant", "functional"),
    [
        ("aten::mul.Tensor", "aten::mul.Tensor"),
        ("aten::mul_.Tensor", "aten::mul.Tensor"),
        ("aten::add.out", "aten::add.Tensor"),
        ("aten::exp.out", "aten::exp"),
        ("aten::exp_", "aten::exp"),
        ("aten::sum.IntList_out", "aten::sum.dim_IntList"),
        ("aten::div.out_mode", "aten::div.Tensor_mode"),
        ("aten::div_.Tensor_mode", "aten::div.Tensor_mode"),
        ("aten::norm.dtype_out", "aten::norm.ScalarOpt_dim_dtype"),
        ("aten::full.out", "aten::full"),
        ("aten::zeros_like.out", "aten::zeros_like"),
        ("aten::__iand__.Tensor", "aten::__and__.Tensor"),
        ("aten::sigmoid_backward.grad_input", "aten::sigmoid_backward"),
        ("aten::_foreach_add.List", "aten::add.Tensor"),
        ("aten::_foreach_add_.Scalar", "aten::add.Scalar"),
        ("aten::_foreach_mul.ScalarList_out", "aten::mul.Scalar"),
        ("aten::_foreach_exp_", "aten::exp"),
        ("aten::_foreach_exp.out", "aten::exp"),
        ("aten::_foreach_pow.List", "aten::pow.Tensor_Tensor"),
        ("aten::_foreach_pow.Scalar", "aten::pow.Tensor_Scalar"),
        ("aten::_foreach_pow_.ScalarList", "aten::pow.Tensor_Scalar"),
        ("aten::_foreach_pow.ScalarAndTensor", "aten::pow.Scalar"),
        ("aten::_foreach_lerp.List", "aten::lerp.Tensor"),
        ("aten::_foreach_norm.Scalar", "aten::linalg_vector_norm"),
        ("aten::_foreach_clamp_min.Scalar", "aten::clamp_min"),
        ("aten::_fused_adamw_", "aten::_fused_adamw"),
        ("aten::random_", "aten::random"),
        ("aten::fill_diagonal_", "aten::fill_diagonal_"),  # Has no functional twin.
    ],
)
def test_a_variant_has_the_code_of_its_functional_overload(variant: str, functional: str) -> None:
    assert functional_overload(variant) == functional


def test_an_op_that_is_not_there_is_unknown() -> None:
    with pytest.raises(UnknownOpError):
        functional_overload("aten::no_such_op")


def test_every_variant_computes_from_the_arguments_of_its_functional_overload() -> None:
    """Over all in-place and ``out=`` overloads: no operand is lost on the way."""
    changed = 0
    for name in all_op_names():
        if not name.startswith("aten::") or "_foreach_" in name:
            continue
        functional = functional_overload(name)
        if functional == name:
            continue
        changed += 1
        mine, other = (op_schema(find_overload(one)) for one in (name, functional))
        out = {one.name for one in mine.arguments if one.mutated and one.kwarg_only}
        operands = {one.name for one in mine.arguments if one.is_tensor} - out
        assert not any(one.mutated and one.kwarg_only for one in other.arguments)
        assert {one.name for one in other.arguments if one.is_tensor} == operands
    assert changed > 1000


def test_a_functional_overload_is_its_own() -> None:
    assert functional_overload(op_schema(torch.ops.aten.add.Scalar).op) == "aten::add.Scalar"
