"""What a library's constants take: names, full updates, and tensors that fit or not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from aoti_eager._runner.constants import (
    Constant,
    ConstantKind,
    check_full_update,
    check_user_managed,
    fitted,
    resolve,
)
from aoti_eager.errors import (
    AotiEagerWarning,
    ConstantError,
    MissingConstantsError,
    UnknownConstantError,
)

CPU = torch.device("cpu")


def constant(name: str = "l_weight", **fields: Any) -> Constant:
    """Return the constant ``l.weight``: (4, 6), float32, contiguous, as the library tells it."""
    return Constant(
        **{
            "name": name,
            "fqn": name.replace("_", "."),
            "dtype": torch.float32,
            "size_bytes": 128,  # 96, padded
            "kind": ConstantKind.PARAMETER,
            "folded": False,
            "sizes": (4, 6),
            "strides": (6, 1),
            "device": CPU,
            **fields,
        }
    )


WEIGHT = constant()
# As a library without weights tells it: no layout, no device.
UNTOLD = constant(strides=None, device=None)


def values() -> Tensor:
    return torch.arange(24.0).reshape(4, 6)


# -- names --


def test_a_constant_is_found_by_either_of_its_names() -> None:
    tensor = values()
    for name in ("l_weight", "l.weight"):
        assert resolve("x.so", [WEIGHT], {name: tensor}) == {"l_weight": tensor}


def test_a_name_in_the_program_comes_before_another_constants_name_in_the_library() -> None:
    """``a.b`` is called a_b in the library, and so the buffer ``a_b`` is called a_b_0."""
    first, second = constant("a_b", fqn="a.b"), constant("a_b_0", fqn="a_b")
    one, two = values(), values()
    found = resolve("x.so", [first, second], {"a.b": one, "a_b": two})
    assert found["a_b"] is one
    assert found["a_b_0"] is two


def test_an_unknown_name_is_refused_with_those_near_it() -> None:
    with pytest.raises(UnknownConstantError, match="x.so: has no constant 'l.wieght'") as caught:
        resolve("x.so", [WEIGHT], {"l.wieght": values()})
    assert "did you mean 'l.weight'?" in str(caught.value)
    assert caught.value.names == ("l.wieght",)


def test_an_unknown_name_that_is_near_nothing_is_refused_with_all_there_are() -> None:
    with pytest.raises(UnknownConstantError, match="it has 'l.weight'"):
        resolve("x.so", [WEIGHT], {"gamma": values()})
    with pytest.raises(UnknownConstantError, match="it has no constants"):
        resolve("x.so", [], {"gamma": values()})
    many = [constant(f"c_{i}") for i in range(12)]
    with pytest.raises(UnknownConstantError, match="'c.7' and 4 more"):
        resolve("x.so", many, {"gamma": values()})


@pytest.mark.parametrize(
    ("tensor", "may_be_code"),
    [
        (torch.zeros(8), True),
        (torch.tensor(1.0), True),
        (torch.zeros(9), False),
        (torch.zeros(2, 2), False),
        (None, False),
    ],
)
def test_an_unknown_small_weight_may_be_a_number_in_the_code(
    tensor: Any, may_be_code: bool
) -> None:
    """Found on a plain model, whose last bias was no constant any more."""
    with pytest.raises(UnknownConstantError, match="has no constant '2.bias'") as caught:
        resolve("x.so", [WEIGHT], {"2.bias": tensor})
    assert ("always_keep_tensor_constants" in str(caught.value)) is may_be_code
    assert "it has 'l.weight'" in str(caught.value)


def test_a_name_that_is_no_text_is_refused() -> None:
    given: Any = {7: values()}
    with pytest.raises(UnknownConstantError, match="no constant 7"):
        resolve("x.so", [WEIGHT], given)


def test_a_constant_given_under_both_names_is_refused() -> None:
    with pytest.raises(ConstantError, match="'l.weight' is given twice, also as 'l_weight'"):
        resolve("x.so", [WEIGHT], {"l.weight": values(), "l_weight": values()})


def test_a_folded_constant_cannot_be_given() -> None:
    folded = constant("_FOLDED_CONST_add", folded=True, kind=ConstantKind.FOLDED)
    with pytest.raises(ConstantError, match="is folded: the library computes it"):
        resolve("x.so", [folded], {"_FOLDED_CONST_add": values()})


# -- full updates --


@pytest.mark.parametrize(
    ("kind", "size_bytes", "may_be_missing"),
    [
        (ConstantKind.PARAMETER, 128, False),
        (ConstantKind.PARAMETER, 0, True),
        (ConstantKind.UNKNOWN, 128, False),
        (ConstantKind.BUFFER, 128, True),
        (ConstantKind.TENSOR_CONSTANT, 128, True),
    ],
)
def test_what_may_be_missing_in_a_full_update(
    kind: ConstantKind, size_bytes: int, may_be_missing: bool
) -> None:
    """As in AOTInductor's container, ``assert_all_constants``."""
    one = constant(kind=kind, size_bytes=size_bytes)
    assert one.may_be_missing is may_be_missing
    if may_be_missing:
        with pytest.warns(AotiEagerWarning, match=r"x.so: the update lacks 'l.weight'"):
            check_full_update("x.so", [one], {})
    else:
        with pytest.raises(MissingConstantsError, match="x.so: a full update lacks 'l.weight'"):
            check_full_update("x.so", [one], {})


def test_all_missing_constants_are_named_at_once() -> None:
    constants = [constant("a_w"), constant("b_w"), constant("c_w")]
    with pytest.raises(MissingConstantsError) as caught:
        check_full_update("x.so", constants, {"b_w": values()})
    assert caught.value.names == ("a.w", "c.w")


def test_a_full_update_needs_no_folded_constants() -> None:
    folded = constant("f", folded=True, kind=ConstantKind.FOLDED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_full_update("x.so", [WEIGHT, folded], {"l_weight": values()})


# -- tensors to copy --


def test_a_tensor_that_fits_is_taken_as_it_is() -> None:
    tensor = values()
    assert fitted("x.so", WEIGHT, tensor).data_ptr() == tensor.data_ptr()


def test_a_tensor_that_requires_grad_is_detached() -> None:
    tensor = values().requires_grad_()
    got = fitted("x.so", WEIGHT, tensor)
    assert not got.requires_grad
    assert got.data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    "tensor",
    [
        values().t().contiguous().t(),
        torch.cat([torch.zeros(2, 6), values(), torch.zeros(90, 6)])[2:6],
        torch.cat([values(), torch.zeros(4, 2)], dim=1)[:, :6],
        torch._neg_view(-values()),
    ],
    ids=["transposed", "part of a large storage", "rows apart", "negated view"],
)
def test_a_tensor_of_another_layout_is_copied_into_the_constants(tensor: Tensor) -> None:
    """The container copies the whole storage, and takes the strides as they are."""
    got = fitted("x.so", WEIGHT, tensor)
    assert torch.equal(got, values())
    assert got.stride() == (6, 1)
    assert got.storage_offset() == 0
    assert got.untyped_storage().nbytes() == 96


def test_a_conjugated_tensor_is_resolved() -> None:
    tensor = torch.complex(values(), values())
    got = fitted("x.so", constant(dtype=torch.complex64, size_bytes=192), tensor.conj())
    assert not got.is_conj()
    assert torch.equal(got, tensor.conj().resolve_conj())


def test_an_expanded_tensor_is_written_out() -> None:
    got = fitted("x.so", WEIGHT, torch.arange(6.0).expand(4, 6))
    assert got.untyped_storage().nbytes() == 96
    assert torch.equal(got, torch.arange(6.0).repeat(4, 1))


def test_a_constant_that_is_not_contiguous_keeps_its_strides() -> None:
    got = fitted("x.so", constant(strides=(1, 4)), values())
    assert got.stride() == (1, 4)
    assert torch.equal(got, values())


def test_where_strides_are_not_told_the_given_order_of_dimensions_stays() -> None:
    assert fitted("x.so", UNTOLD, values()).stride() == (6, 1)
    assert fitted("x.so", UNTOLD, values().t().contiguous().t()).stride() == (1, 4)
    assert fitted("x.so", UNTOLD, torch.zeros(4, 12)[:, ::2]).stride() == (6, 1)


def test_an_empty_constant_takes_an_empty_tensor() -> None:
    empty = constant(sizes=(0,), strides=(1,), size_bytes=0)
    assert fitted("x.so", empty, torch.empty(0)).numel() == 0


def test_a_scalar_constant_takes_a_scalar() -> None:
    scalar = constant(sizes=(), strides=(), size_bytes=64)
    assert fitted("x.so", scalar, torch.tensor(3.0)).item() == 3


@pytest.mark.parametrize("check", [fitted, check_user_managed], ids=["copied", "user-managed"])
@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (values().double(), "has dtype torch.float64; torch.float32 is wanted"),
        (values().reshape(6, 4), r"has sizes \(6, 4\); \(4, 6\) is wanted"),
        (values().reshape(24), r"has sizes \(24,\); \(4, 6\) is wanted"),
        (values().to_sparse(), "has layout torch.sparse_coo; a strided tensor is wanted"),
        (None, "is NoneType; a tensor is wanted"),
        ([1.0], "is list; a tensor is wanted"),
        (values().to("meta"), "has no data of its own"),
        (torch._efficientzerotensor((4, 6)), "has no data of its own"),
        (FakeTensorMode().from_tensor(values()), r"has no data of its own \(FakeTensor\)"),
    ],
    ids=["dtype", "sizes", "ndim", "sparse", "None", "list", "meta", "zero tensor", "fake"],
)
def test_a_tensor_that_cannot_be_the_constant_is_refused(
    check: Any, tensor: Any, problem: str
) -> None:
    with pytest.raises(ConstantError, match=f"^x.so: constant 'l.weight' {problem}") as caught:
        check("x.so", WEIGHT, tensor)
    assert caught.value.names == ("l.weight",)


def test_a_tensor_whose_storage_was_freed_is_refused() -> None:
    tensor = values()
    tensor.untyped_storage().resize_(0)
    with pytest.raises(ConstantError, match="has no data of its own"):
        fitted("x.so", WEIGHT, tensor)


@pytest.mark.parametrize("count", [8, 15, 17, 25, 32])
def test_where_sizes_are_not_told_the_number_of_bytes_must_be_right(count: int) -> None:
    one = constant(sizes=None, strides=None, size_bytes=128)
    tensor = torch.zeros(count)
    if 128 - 64 < count * 4 <= 128:
        fitted("x.so", one, tensor)
    else:
        with pytest.raises(ConstantError, match="the library keeps 128 for it"):
            fitted("x.so", one, tensor)


def test_a_tensor_larger_than_its_place_is_refused() -> None:
    """Strides of the library's own that leave gaps, and a place that has none for them."""
    with pytest.raises(ConstantError, match="and the library has room for 128"):
        fitted("x.so", constant(strides=(60, 1)), values())


# -- tensors to point to --


@pytest.mark.parametrize(
    "tensor",
    [
        values(),
        values().requires_grad_(),
        torch.zeros(9, 6)[3:7],
        torch.zeros(4, 6).as_strided((4, 6), (6, 1)),
    ],
    ids=["plain", "requires_grad", "part of a storage", "strided"],
)
def test_a_user_managed_tensor_of_the_right_layout_is_taken(tensor: Tensor) -> None:
    check_user_managed("x.so", WEIGHT, tensor)


def test_strides_of_one_element_do_not_matter() -> None:
    one = constant(sizes=(1, 6), strides=(6, 1), size_bytes=64)
    check_user_managed("x.so", one, torch.zeros(99).as_strided((1, 6), (40, 1)))


@pytest.mark.parametrize(
    "tensor",
    [values().t().contiguous().t(), torch.zeros(6).expand(4, 6), torch._neg_view(values())],
    ids=["transposed", "expanded", "negated view"],
)
def test_a_user_managed_tensor_of_another_layout_is_refused(tensor: Tensor) -> None:
    with pytest.raises(ConstantError, match="a user-managed constant is not copied"):
        check_user_managed("x.so", WEIGHT, tensor)


def test_where_strides_are_not_told_a_user_managed_tensor_must_be_dense() -> None:
    check_user_managed("x.so", UNTOLD, values())
    check_user_managed("x.so", UNTOLD, values().t().contiguous().t())
    with pytest.raises(ConstantError, match="a user-managed constant is not copied"):
        check_user_managed("x.so", UNTOLD, torch.zeros(4, 12)[:, ::2])
