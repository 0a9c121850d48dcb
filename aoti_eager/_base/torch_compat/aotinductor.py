"""AOTInductor's C interface, reached from Python without importing Inductor."""

from __future__ import annotations

import ctypes
import os
import re

import torch

from .dispatcher import privateuse1_device_type
from .tensors import DTYPES

# The only runner of a kernel library that Python can reach without importing Inductor.
AOTIModelContainerRunnerCpu = torch._C._aoti.AOTIModelContainerRunnerCpu


# AOTInductor's C interface takes and gives heap-allocated at::Tensor pointers. These two functions
# convert Python tensors to such pointers, as capsules, and back; there is no public way.
new_tensor_capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors
tensors_stealing_capsules = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs


# AOTInductor's C interface gives a dtype as the number of a c10::ScalarType, which Python gets only
# from these C functions. Dtypes without such a function in this build are left out.
def dtypes_by_number() -> dict[int, torch.dtype]:
    """Return the dtype of each ``c10::ScalarType`` number."""
    shim = libtorch_cpu()
    found: dict[int, torch.dtype] = {}
    for dtype in DTYPES:
        number = getattr(shim, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}", None)
        if number is not None:
            found[number()] = dtype
    return found


def device_type_numbers() -> dict[str, int]:
    """Return the ``c10::DeviceType`` number of each device type that AOTInductor's C interface has.

    Like the numbers of dtypes, these numbers have no public name in Python.
    """
    shim = libtorch_cpu()
    found = {}
    for name in ("cpu", "cuda", "meta", "xpu", "mps", "mtia"):
        number = getattr(shim, f"aoti_torch_device_type_{name}", None)
        if number is not None:
            found[name] = int(number())
    found[privateuse1_device_type()] = int(shim.aoti_torch_device_type_privateuse1())
    return found


# Which functions a library has depends on the torch that made it; only the text of a C header of
# the installed torch tells.
def is_in_interface(name: str) -> bool:
    """Return whether the libraries that this torch's AOTInductor makes export the function."""
    header = "include/torch/csrc/inductor/aoti_runtime/interface.h"
    try:
        with open(os.path.join(os.path.dirname(torch.__file__), header), encoding="utf-8") as file:
            return re.search(rf"\b{name}\(", file.read()) is not None
    except OSError:
        return True  # An installation without headers.


def libtorch_cpu() -> ctypes.CDLL:
    """Return torch's own library, which has the C functions that kernel libraries call.

    The library is loaded already, and found by its path. ``ctypes.PyDLL`` would hold the GIL.
    """
    path = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    return ctypes.CDLL(path)
