"""What a region is: a module, or a function with the modules and tensors that it refers to."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.data_class import dataclass
from .module_tree import each_named

# Attributes that every module has, and whose values are looked at in other ways than an attribute.
_OWN = frozenset(
    """
    training _parameters _buffers _non_persistent_buffers_set _backward_pre_hooks _backward_hooks
    _is_full_backward_hook _forward_hooks _forward_hooks_with_kwargs _forward_hooks_always_called
    _forward_pre_hooks _forward_pre_hooks_with_kwargs _state_dict_hooks _state_dict_pre_hooks
    _load_state_dict_pre_hooks _load_state_dict_post_hooks _modules forward
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)


_PLAIN = (bool, int, float, complex, str, bytes, type(None), tuple, list, dict, set, frozenset)


class Fused:
    """Base of what ``fuse`` puts in place of a forward: no attribute of the module's own."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """An object that a function refers to.

    Attributes:
        name: The name in the function.
        holder: A closure's cell, or the function's global names.
        value: The object at this moment.
    """

    name: str
    holder: Any
    value: Any


class Target:
    """A module or a function whose calls are a region.

    Args:
        forward: The function that runs a call: a module's own ``forward``, bound, or a function.
        module: The module; ``None`` for a function.
    """

    def __init__(self, forward: Callable[..., Any], module: torch.nn.Module | None) -> None:
        self.forward = forward
        self.module = module

    @property
    def name(self) -> str:
        """Return the name of the module's class, or of the function."""
        if self.module is not None:
            return type(self.module).__name__
        return str(getattr(self.forward, "__qualname__", type(self.forward).__name__))

    @property
    def training(self) -> bool | None:
        """Return whether the module is in training mode; ``None`` for a function."""
        return None if self.module is None else self.module.training

    def references(self) -> list[Reference]:
        """Return the objects that a function refers to by its closure and by global names."""
        if self.module is not None:
            return []
        function: Any = self.forward
        found = []
        while isinstance(function, functools.partial):
            found += _held(_numbered("argument", function.args)) + _held(function.keywords)
            function = function.func
        if not isinstance(function, types.FunctionType | types.MethodType):
            function = getattr(function, "__call__", None)  # noqa: B004 - bound to its object
        if isinstance(function, types.MethodType):
            found.append(Reference("self", {"self": function.__self__}, function.__self__))
            function = function.__func__
        seen: set[int] = set()
        while isinstance(function, types.FunctionType) and id(function) not in seen:
            seen.add(id(function))
            found += _referred(function)
            function = getattr(function, "__wrapped__", None)  # Below a decorator.
        return found

    def modules(self) -> list[tuple[str, torch.nn.Module]]:
        """Return the paths of all modules that a call may run, with the modules, each once."""
        if self.module is not None:
            return list(each_named(self.module))
        seen: set[int] = set()
        found = []
        for one in self.references():
            held = {one.name: one.value}
            if has_state(one.value):  # An object with networks, for a method of the object.
                inner = object_attributes(one.value)
                held = {f"{one.name}.{name}": value for name, value in inner.items()}
            for path, value in held.items():
                if isinstance(value, torch.nn.Module):
                    found += list(each_named(value, path, seen))
        return found


def _referred(function: types.FunctionType) -> list[Reference]:
    """Return what a function refers to by its defaults, its closure and global names."""
    found = _held(_numbered("default", function.__defaults__ or ()))
    found += _held(function.__kwdefaults__ or {})
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append(Reference(name, cell, cell.cell_contents))
        except ValueError:  # The cell is empty: the name is bound later.
            continue
    space = function.__globals__
    names = sorted(code.co_names)
    return found + [Reference(name, space, space[name]) for name in names if name in space]


def _numbered(what: str, values: Sequence[Any]) -> dict[str, Any]:
    return {f"{what} {place}": one for place, one in enumerate(values)}


def _held(values: dict[str, Any]) -> list[Reference]:
    return [Reference(name, values, one) for name, one in values.items()]


def own_attributes(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Give the attributes of a module that no module of ``torch.nn`` has by itself."""
    for name, value in list(vars(module).items()):
        if name not in _OWN:
            yield name, value


def class_attributes(value: Any) -> Iterator[tuple[type, str, Any]]:
    """Give the plain values that an object's classes have: the class, name and value."""
    for one in type(value).__mro__:
        if one is object or one.__module__.startswith("torch."):
            continue  # torch's own do not change.
        for name, plain in list(vars(one).items()):
            if isinstance(plain, _PLAIN) and not name.startswith("__"):
                yield one, name, plain


def has_state(value: Any) -> bool:
    """Return whether an object's attributes may decide on what a forward does."""
    if isinstance(value, torch.nn.Module | type | Tensor | types.ModuleType):
        return False
    room = type(value).__module__.partition(".")[0]
    return room not in ("builtins", "functools", "torch", "aoti_eager")


def object_attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that is no module, those in slots included."""
    found = {}
    for one in type(value).__mro__:
        slots = vars(one).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else list(slots):
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    inner = getattr(value, "__dict__", None)
    return {**found, **inner} if isinstance(inner, dict) else found


def tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, str, Tensor | None]]:
    """Give the dict that holds a tensor of a module, the tensor's name, and the tensor."""
    for table in ("_parameters", "_buffers"):
        for name, tensor in list(vars(module)[table].items()):
            yield table, name, tensor
    for name, value in own_attributes(module):
        if type(value) in (Tensor, torch.nn.Parameter):
            yield "", name, value


def hooked(module: torch.nn.Module, *, is_root: bool) -> bool:
    """Return whether hooks run inside of a region's call.

    The hooks of a region's own module run around its forward.
    """
    state = vars(module)
    return not is_root and bool(state["_forward_hooks"] or state["_forward_pre_hooks"])
