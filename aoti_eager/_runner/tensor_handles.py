"""Python tensors <-> the tensor handles of AOTInductor's C interface.

A handle is a pointer to a heap-allocated ``at::Tensor``. Whoever holds one must delete it or give
it away; every function here says which.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._base.torch_compat import aotinductor
from ..errors import RunnerError

Handles = Any  # a ctypes array of void pointers

_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))


@functools.cache
def array_type(length: int) -> type[ctypes.Array[ctypes.c_void_p]]:
    """Return the ctypes type of ``length`` handles; making one anew costs more than a run."""
    return ctypes.c_void_p * length


@functools.cache
def _shim() -> ctypes.CDLL:
    shim = aotinductor.libtorch_cpu()
    shim.aoti_torch_new_tensor_handle.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    shim.aoti_torch_delete_tensor_object.argtypes = [ctypes.c_void_p]
    shim.aoti_torch_create_tensor_from_blob.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_void_p,
    ]
    if hasattr(shim, _LAST_ERROR):  # Torch 2.12 prints such messages, and keeps none.
        shim.torch_exception_get_what_without_backtrace.restype = ctypes.c_char_p
    return shim


_LAST_ERROR = "torch_exception_get_what_without_backtrace"


def last_torch_error() -> str:
    """Return the message of the exception that a C function of torch's last met in this thread."""
    shim = _shim()
    if not hasattr(shim, _LAST_ERROR):
        return "torch has printed the reason"
    text: bytes | None = shim.torch_exception_get_what_without_backtrace()
    return (text or b"").decode(errors="replace")


def has_own_data(tensor: Tensor) -> bool:
    """Return whether C code can read the tensor's data where its data pointer points.

    False for tensors of torch's transforms and modes (batched, functional, fake), for tensors
    without memory (zero tensors, a freed storage), and for subclasses that store their data in
    their own way.
    """
    kind = type(tensor)
    if kind is not Tensor and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # There is no storage at all.
        return False


def new_handles(tensors: Sequence[Tensor]) -> Handles:
    """Return a new handle of each tensor, in an array; the caller owns them."""
    capsules = aotinductor.new_tensor_capsules(list(tensors))
    return array_type(len(capsules))(*[_get_pointer(capsule, None) for capsule in capsules])


def tensors_of(handles: Handles) -> list[Tensor]:
    """Return the tensors behind ``handles`` and take the handles over."""
    capsules = [_new_capsule(handle, None, None) for handle in handles]
    tensors: list[Tensor] = aotinductor.tensors_stealing_capsules(capsules)
    return tensors


def tensor_behind(handle: int) -> Tensor:
    """Return the tensor behind a handle that stays with its owner."""
    copy = array_type(1)()
    if _shim().aoti_torch_new_tensor_handle(handle, copy):
        raise RunnerError(f"a constant's handle cannot be read: {last_torch_error()}")
    return tensors_of(copy)[0]


def delete_handles(handles: Handles) -> None:
    """Delete handles that the caller owns."""
    for handle in handles:
        if handle:
            _shim().aoti_torch_delete_tensor_object(handle)


def borrowed_handle(tensor: Tensor) -> int:
    """Return a new handle of a tensor that shares ``tensor``'s memory and does not keep it alive.

    A container never deletes the handles of user-managed constants. If these handles owned their
    memory, every update would leak the tensors of the update before.
    """
    ndim = tensor.dim()
    handle = array_type(1)()
    failed = _shim().aoti_torch_create_tensor_from_blob(
        tensor.data_ptr(),
        ndim,
        (ctypes.c_int64 * ndim)(*tensor.shape),
        (ctypes.c_int64 * ndim)(*tensor.stride()),
        0,
        dtype_numbers()[tensor.dtype],
        device_type_number(tensor.device.type),
        tensor.device.index or 0,
        handle,
    )
    if failed:
        raise RunnerError(f"a constant cannot be handed over: {last_torch_error()}")
    pointer = handle[0]
    assert pointer is not None
    return int(pointer)


@functools.cache
def dtype_of_number() -> dict[int, Any]:
    """Return dtypes by the numbers that the C interface has for them."""
    return aotinductor.dtypes_by_number()


@functools.cache
def dtype_numbers() -> dict[Any, int]:
    """Return the numbers that the C interface has for dtypes."""
    return {dtype: number for number, dtype in dtype_of_number().items()}


def device_type_number(device_type: str) -> int:
    """Return the number that the C interface has for a type of devices."""
    return int(getattr(_shim(), f"aoti_torch_device_type_{device_type}")())
