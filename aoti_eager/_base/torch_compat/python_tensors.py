"""Where a Python tensor keeps its C++ tensor, and how a C++ tensor becomes a Python one.

C++ that is compiled without Python's headers reads lists of tensors by these places. The public
way, an op of the dispatcher, takes as long for seventy tensors as a small kernel library runs.
"""

from __future__ import annotations

import ctypes
import functools
import sysconfig
from dataclasses import dataclass

import torch

# ``PyObject* THPVariable_Wrap(at::TensorBase&&)``, which torch exports to its extensions.
_WRAP = "_Z16THPVariable_WrapON2at10TensorBaseE"


@dataclass(frozen=True, slots=True)
class TensorObjects:
    """How C++ reads and makes Python tensors.

    Attributes:
        plain_types: The types of which an object's C++ tensor lies at ``tensor_offset``; subclasses
            may do with their tensors what they like.
        type_offset: Where in any Python object its type's address lies, in bytes.
        tensor_offset: Where in a tensor its ``at::Tensor`` lies, in bytes.
        wrap: Address of a function that makes a Python tensor of an ``at::TensorBase&&``.
    """

    plain_types: tuple[type[torch.Tensor], type[torch.Tensor]]
    type_offset: int
    tensor_offset: int
    wrap: int


@functools.cache
def tensor_objects() -> TensorObjects | None:
    """Return how C++ reads and makes Python tensors; ``None`` if that is not known here.

    ``THPVariable`` begins with Python's own header and the ``at::Tensor``. Neither place is
    promised, so both are compared with what Python says of live tensors.
    """
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None  # Without a GIL, a list may change while C++ reads it.
    address = ctypes.sizeof(ctypes.c_void_p)
    header = object.__basicsize__  # ends with the object's type
    probes = torch.empty(0), torch.nn.Parameter(torch.empty(0), requires_grad=False)
    for probe in probes:
        place = id(probe) + header
        if (
            type(probe).__basicsize__ < header + address
            or ctypes.c_void_p.from_address(place - address).value != id(type(probe))
            or ctypes.c_void_p.from_address(place).value != probe._cdata
        ):
            return None
    try:
        # Looked for in the libraries, too, that the module depends on.
        functions = ctypes.CDLL(torch._C.__file__)
        wrap = ctypes.cast(getattr(functions, _WRAP), ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
    plain = torch.Tensor, torch.nn.Parameter
    return TensorObjects(plain, header - address, header, wrap) if wrap else None
