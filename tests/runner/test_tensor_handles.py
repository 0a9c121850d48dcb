"""Tensors to handles and back: what is shared, what is owned, and what has no memory to share."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from aoti_eager._runner import tensor_handles
from aoti_eager._runner.tensor_handles import (
    array_type,
    borrowed_handle,
    delete_handles,
    dtype_of_number,
    has_own_data,
    last_torch_error,
    new_handles,
    tensor_behind,
    tensors_of,
)
from aoti_eager.errors import RunnerError

from ..support.runner_libraries import watched_tensor

VALUES = torch.arange(12.0).reshape(3, 4)


def test_tensors_come_back_from_their_handles() -> None:
    given = [VALUES.clone(), VALUES.t(), torch.tensor(3), torch.empty(0, 5)]
    got = tensors_of(new_handles(given))
    for one, other in zip(given, got, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
        assert one.data_ptr() == other.data_ptr()


def test_no_tensors_have_no_handles() -> None:
    assert len(new_handles([])) == 0
    assert tensors_of(array_type(0)()) == []


def test_a_handle_keeps_its_tensor_until_it_is_deleted() -> None:
    tensor, is_held = watched_tensor(VALUES)
    handles = new_handles([tensor])
    del tensor
    assert is_held()
    delete_handles(handles)
    assert not is_held()


def test_a_tensor_takes_its_handle_over() -> None:
    tensor, is_held = watched_tensor(VALUES)
    handles = new_handles([tensor])
    del tensor
    got = tensors_of(handles)
    assert torch.equal(got[0], VALUES)
    del got
    assert not is_held()


def test_the_tensor_behind_a_handle_leaves_it_to_its_owner() -> None:
    tensor, is_held = watched_tensor(VALUES)
    handles = new_handles([tensor])
    behind = tensor_behind(handles[0])
    assert behind.data_ptr() == tensor.data_ptr()
    del tensor, behind
    assert is_held()
    delete_handles(handles)
    assert not is_held()


def test_a_null_handle_is_not_deleted() -> None:
    delete_handles(array_type(2)())


def test_a_borrowed_handle_shares_memory_and_does_not_keep_it() -> None:
    tensor, is_held = watched_tensor(VALUES)
    handle = borrowed_handle(tensor)
    behind = tensor_behind(handle)
    behind[0, 0] = 7
    assert tensor[0, 0] == 7
    del tensor
    assert not is_held()
    delete_handles([handle])


@pytest.mark.parametrize(
    "tensor",
    [
        VALUES,
        VALUES.t(),
        VALUES[1:, 2:],
        torch.tensor(3.5),
        torch.empty(0, 4),
        VALUES.to(torch.bfloat16),
        VALUES.to(torch.complex64),
        VALUES.to(torch.int64) > 3,
        VALUES.clone().requires_grad_(),
    ],
    ids=["plain", "transposed", "part", "scalar", "empty", "bfloat16", "complex", "bool", "grad"],
)
def test_a_borrowed_handle_has_the_tensors_layout_and_dtype(tensor: Tensor) -> None:
    handle = borrowed_handle(tensor)
    behind = tensor_behind(handle)
    assert torch.equal(behind, tensor)
    assert (behind.dtype, behind.stride()) == (tensor.dtype, tensor.stride())
    assert not behind.requires_grad
    delete_handles([handle])


def test_every_dtype_that_a_library_can_name_is_known() -> None:
    dtypes = set(dtype_of_number().values())
    assert {
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.complex64,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    } <= dtypes
    assert dtype_of_number()[6] is torch.float32  # c10::ScalarType::Float


def test_a_handle_that_cannot_be_copied_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shim:
        @staticmethod
        def aoti_torch_new_tensor_handle(*arguments: object) -> int:
            return 1

        torch_exception_get_what_without_backtrace = staticmethod(lambda: b"out of handles")

    monkeypatch.setattr(tensor_handles, "_shim", Shim)
    with pytest.raises(RunnerError, match="a constant's handle cannot be read: out of handles"):
        tensor_behind(1)


def test_the_last_error_is_torchs_own_message() -> None:
    shim: Any = tensor_handles._shim()
    handles = new_handles([VALUES])
    size = ctypes.c_int64()
    handle, ninth = ctypes.c_void_p(handles[0]), ctypes.c_int64(9)
    assert shim.aoti_torch_get_size(handle, ninth, ctypes.byref(size)) != 0
    delete_handles(handles)
    assert "Dimension out of range" in last_torch_error()


# -- data of its own --


class Dispatching(Tensor):
    """A subclass whose data only its own code knows."""

    @classmethod
    def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was asked")


class Renamed(Tensor):
    """A subclass that is a tensor like others."""


def test_what_has_data_of_its_own() -> None:
    for tensor in (
        VALUES,
        VALUES.t(),
        torch.empty(0),
        torch.nn.Parameter(VALUES),
        VALUES.clone().requires_grad_() * 2,
        VALUES.as_subclass(Renamed),
    ):
        assert has_own_data(tensor)
    with torch.inference_mode():
        assert has_own_data(VALUES.clone())


def test_what_has_no_data_of_its_own() -> None:
    freed = VALUES.clone()
    freed.untyped_storage().resize_(0)
    for tensor in (
        freed,
        VALUES.to("meta"),
        VALUES.to_sparse(),
        torch._efficientzerotensor((3, 4)),
        FakeTensorMode().from_tensor(VALUES),
        VALUES.as_subclass(Dispatching),
    ):
        assert not has_own_data(tensor), type(tensor)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own code
def test_tensors_inside_of_transforms_have_no_data_of_their_own() -> None:
    seen: list[bool] = []

    def see(x: Tensor) -> Tensor:
        seen.append(has_own_data(x))
        return x.sum()

    torch.vmap(see)(VALUES)
    torch.func.grad(see)(VALUES)
    torch.func.jvp(see, (VALUES,), (VALUES,))
    torch.func.functionalize(see)(VALUES)
    assert seen == [False] * 4
