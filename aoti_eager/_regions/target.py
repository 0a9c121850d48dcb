"""What a region is: a module, or a function with the modules and tensors that it refers to."""

from __future__ import annotations

import functools
import types
import weakref
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


# Objects of classes from these packages do not change, or are looked at in other ways.
_FIXED_ROOMS = frozenset({"builtins", "functools", "torch", "aoti_eager"})


class Fused:
    """Base of what ``fuse`` puts in place of a forward: no attribute of the module's own."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """An object that a function refers to.

    Attributes:
        name: The name in the function; numbered where functions below a decorator have the same.
        key: The key in the holder, if that is a dict or a tuple; ``None`` for a cell.
        holder: A closure's cell, a function's default values, or global names.
        value: The object at this moment.
    """

    name: str
    key: str | int | None
    holder: Any
    value: Any


class Target:
    """A module or a function whose calls are a region.

    The module is held weakly: whoever calls the module holds it.

    Args:
        forward: The function that runs a call; ``None`` for the forward of a module's class, which
            each call looks up, because somebody may replace it on the class.
        module: The module; ``None`` for a function.
    """

    def __init__(self, forward: Callable[..., Any] | None, module: torch.nn.Module | None) -> None:
        self._forward = forward
        # For a report on a module that is gone.
        self._name = str(getattr(forward, "__qualname__", type(forward).__name__))
        if module is not None:
            self._name = type(module).__name__
        self._module = None if module is None else weakref.ref(module)

    @property
    def forward(self) -> Callable[..., Any]:
        """Return the function that runs a call."""
        if self._forward is not None:
            return self._forward
        module: Any = self.module
        return types.MethodType(type(module).forward, module)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the forward returns for these arguments."""
        return self.forward(*args, **kwargs)

    @property
    def module(self) -> torch.nn.Module | None:
        """Return the module; ``None`` for a function, and for a module that is gone."""
        return None if self._module is None else self._module()

    @property
    def is_function(self) -> bool:
        """Return whether the target is no module."""
        return self._module is None

    @property
    def name(self) -> str:
        """Return the name of the module's class, or of the function."""
        module = self.module
        return self._name if module is None else type(module).__name__

    @property
    def training(self) -> bool | None:
        """Return whether the module is in training mode; ``None`` for a function."""
        module = self.module
        return None if module is None else module.training

    def references(self) -> list[Reference]:
        """Return the objects that a function refers to by its closure and by global names."""
        if not self.is_function:
            return []
        function: Any = self._forward
        found = []
        while isinstance(function, functools.partial):
            found += _held(_numbered("argument", function.args)) + _held(function.keywords)
            function = function.func
        if not isinstance(function, types.FunctionType | types.MethodType):
            function = getattr(function, "__call__", None)  # noqa: B004 - bound to its object
        if isinstance(function, types.MethodType):
            found += _held({"self": function.__self__})
            function = function.__func__
        seen: set[int] = set()
        while isinstance(function, types.FunctionType) and id(function) not in seen:
            seen.add(id(function))
            found += _referred(function)
            function = getattr(function, "__wrapped__", None)  # Below a decorator.
        return _told_apart(found)

    def modules(self) -> list[tuple[str, torch.nn.Module]]:
        """Return the paths of all modules that a call may run, with the modules, each once."""
        module = self.module
        if module is not None:
            return list(each_named(module))
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

    def part_count(self) -> int:
        """Return how many modules, parameters and buffers a call may run or read."""
        found = [vars(module) for _, module in self.modules()]
        return sum(1 + len(one["_parameters"]) + len(one["_buffers"]) for one in found)


def _referred(function: types.FunctionType) -> list[Reference]:
    """Return what a function refers to by its defaults, its closure and global names."""
    found = _held(_numbered("default", function.__defaults__ or ()))
    found += _held(function.__kwdefaults__ or {})
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append(Reference(name, None, cell, cell.cell_contents))
        except ValueError:  # The cell is empty: the name is bound later.
            continue
    space = function.__globals__
    names = sorted(code.co_names)
    return found + [Reference(name, name, space, space[name]) for name in names if name in space]


def _told_apart(references: Sequence[Reference]) -> list[Reference]:
    """Return the references with a number behind each name that an earlier one has."""
    taken: dict[str, int] = {}
    found = []
    for one in references:
        count = taken[one.name] = taken.get(one.name, 0) + 1
        shown = one.name if count == 1 else f"{one.name} ({count})"
        found.append(Reference(shown, one.key, one.holder, one.value))
    return found


def _numbered(what: str, values: Sequence[Any]) -> dict[str, Any]:
    return {f"{what} {place}": one for place, one in enumerate(values)}


def _held(values: dict[str, Any]) -> list[Reference]:
    return [Reference(name, name, values, one) for name, one in values.items()]


def own_attributes(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Give the attributes of a module that no module of ``torch.nn`` has by itself."""
    for name, value in list(vars(module).items()):
        if name not in _OWN:
            yield name, value


def user_classes(kind: type) -> Iterator[type]:
    """Give a class and the classes that it inherits from, without torch's and the built-in ones."""
    for one in kind.__mro__:
        if room(one) not in _FIXED_ROOMS:
            yield one


def class_attributes(kind: type) -> Iterator[tuple[str, Any]]:
    """Give the attributes that a class has itself, but for those that every class has."""
    for name, value in list(vars(kind).items()):
        if not name.startswith("__"):
            yield name, value


def room(kind: Any) -> str:
    """Return the name of the package that a class or a function is from."""
    name = getattr(kind, "__module__", None)
    return name.partition(".")[0] if isinstance(name, str) else ""


def has_state(value: Any) -> bool:
    """Return whether an object's attributes may decide on what a forward does."""
    if isinstance(value, functools.partial):
        return True
    if isinstance(value, torch.nn.Module | type | Tensor | types.ModuleType):
        return False
    return room(type(value)) not in _FIXED_ROOMS


def slots_of(value: Any) -> Iterator[str]:
    """Give the names of the attributes that an object has a slot for, set or not."""
    if isinstance(value, functools.partial):
        yield from ("func", "args", "keywords")
    for one in type(value).__mro__:
        slots = vars(one).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else list(slots):
            if name.startswith("__") and not name.endswith("__"):
                yield f"_{one.__name__.lstrip('_')}{name}"
            elif not name.startswith("__"):
                yield name


def object_attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that is no module, those in slots included."""
    found = {name: getattr(value, name) for name in slots_of(value) if hasattr(value, name)}
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
