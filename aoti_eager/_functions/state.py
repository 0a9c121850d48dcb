"""The state of a user's function at one moment: the values it refers to, and their tensors."""

from __future__ import annotations

import dis
import functools
import importlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat import tracing as tracing_compat
from ..errors import UnsupportedFunctionError
from .allowed_names import is_allowed_function

# Packages whose modules and functions a document names; of all other functions it has the source.
BY_REFERENCE = frozenset({"torch", "math"})


TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format)


_MODULE_STATE = frozenset(
    {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
)


# Most values that a function's state may have. Each call reads them all; this many take a fraction
# of a millisecond.
_LARGEST = 400


_LASTING = (types.ModuleType, types.BuiltinFunctionType, type, torch.device, *TORCH_VALUES)


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the global names and the free names that code uses, sorted."""
    found: set[str] = set()
    pending = [code]
    while pending:
        one = pending.pop()
        for instruction in dis.get_instructions(one):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                found.add(instruction.argval)
        pending += [c for c in one.co_consts if isinstance(c, types.CodeType)]
    return tuple(sorted(found)), tuple(sorted(code.co_freevars))


ABSENT = object()


def names_used(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Give each global or free name that ``function`` uses, with its value at this moment."""
    global_names, free_names = _names(function.__code__)
    for name in global_names:
        yield name, function.__globals__.get(name, ABSENT)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name in free_names:
        try:
            yield name, cells[name].cell_contents
        except ValueError:
            yield name, ABSENT


class State:
    """Turns values into hashable values, which are equal for equal values; of tensors, metadata."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._left = _LARGEST

    def of(self, value: Any, depth: int) -> Any:
        """Return the hashable value for ``value``, and collect the tensors in it, in order."""
        self._left -= 1
        if self._left < 0:
            raise UnsupportedFunctionError(f"uses more than {_LARGEST} values")
        kind = type(value)
        if kind is Tensor or kind is torch.nn.Parameter:
            self.tensors.append(value)
            return (
                value.dtype,
                value.shape,
                value.stride() if value.layout is torch.strided else value.layout,
                value.device,
                value.is_neg(),
                value.is_conj(),
            )
        if value is None or kind in (bool, int, str):
            return (kind, value)
        if kind is float:
            return value.hex()
        if depth == 0:
            raise UnsupportedFunctionError("values within values, too deep")
        if kind is types.FunctionType:
            if _is_torch_function(value):
                return value
            return (
                value.__code__,
                self.of(value.__defaults__, depth - 1),
                self.of(value.__kwdefaults__, depth - 1),
                *[self.of(one, depth - 1) for _, one in names_used(value)],
            )
        if kind is tuple or kind is list:
            return (kind, *[self.of(one, depth - 1) for one in value])
        if kind is dict:
            return (kind, *[(k, self.of(v, depth - 1)) for k, v in value.items()])
        if isinstance(value, torch.nn.Module):
            return self._of_module(value, depth)
        # The table would keep the object alive, so only objects that live for good are returned.
        return value if isinstance(value, _LASTING) else ("unsupported", kind)

    def _of_module(self, module: torch.nn.Module, depth: int) -> Any:
        return (
            type(module),
            module.training,
            tracing_compat.has_global_module_hooks(),
            *[(n, self.of(v, depth - 1)) for n, v in module_tensors(module)],
            *[(n, self.of(v, depth - 1)) for n, v in module._modules.items()],
            *[(n, self.of(v, depth - 1)) for n, v in plain_attributes(module)],
        )


def module_tensors(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module._parameters.items()
    yield from module._buffers.items()


def plain_attributes(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name not in _MODULE_STATE and not (_is_hooks(name) and not value):
            yield name, value


def _is_hooks(name: str) -> bool:
    return name.startswith("_") and ("hook" in name or name == "_is_full_backward_hook")


@functools.lru_cache(maxsize=1024)
def _is_torch_function(function: types.FunctionType) -> bool:
    return is_by_reference(function)


def is_by_reference(value: Any) -> bool:
    """Return whether an object can be found by its name in a module that every worker has.

    Of functions, only those that do nothing but compute count.
    """
    if callable(value) and not isinstance(value, type) and not is_allowed_function(value):
        return False
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return False
    if module.partition(".")[0] not in BY_REFERENCE:
        return False
    try:
        return resolve_name(module, name) is value
    except (ImportError, AttributeError):
        return False


def resolve_name(module: str, name: str) -> Any:
    """Return the object called ``name`` in ``module``, which is imported if necessary.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such name.
    """
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))
