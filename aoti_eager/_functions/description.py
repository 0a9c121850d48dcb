"""A Python function as data: its source, the plain values it uses, and its tensors as constants.

The compile worker has none of the user's code. The worker gets a JSON document and rebuilds the
function from it (``rebuilt``); the document's digest is in the key. Tensors that the function
closes over, and the parameters of modules, are not in the document: they are constants. The key has
a constant's metadata, and each call passes the constant's present value to the kernel. So a change
of a constant's value, in place or by rebinding, needs no compile, and any other change is a miss.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._base.data_class import dataclass
from .._base.digest import Component, json_digest
from .._base.torch_compat import dispatcher
from .._base.torch_compat import tracing as tracing_compat
from .._base.torch_compat.dispatcher import OpOverload
from .._keys.kernel_key import tensor_component
from .._keys.schema import qualified_name
from ..errors import UnsupportedFunctionError
from .allowed_names import UNKNOWN, is_allowed_function
from .source import function_source
from .state import (
    ABSENT,
    BY_REFERENCE,
    TORCH_VALUES,
    State,
    is_by_reference,
    module_tensors,
    names_used,
    plain_attributes,
)

# Builtins that have no effect except their result.
_BUILTINS = frozenset(
    """
    abs all any bool complex dict divmod enumerate filter float frozenset int iter len list map max
    min next pow range reversed round set slice sorted str sum tuple zip
    ArithmeticError AssertionError AttributeError Exception IndexError KeyError
    NotImplementedError RuntimeError TypeError ValueError ZeroDivisionError
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)
_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Description:
    """A function at one moment.

    Attributes:
        document: The JSON document from which the worker rebuilds the function.
        constants: ``(name, metadata)`` of the function's tensors, in the order of the kernel's
            inputs.
    """

    document: dict[str, Any]
    constants: tuple[tuple[str, Component], ...]

    def context(self) -> tuple[tuple[str, Component], ...]:
        """Return the components that the function adds to the context of a kernel's key."""
        named = [{"name": name, **component} for name, component in self.constants]
        return (("constants", named), ("function", json_digest(self.document)))


class PythonFunction:
    """The Python function behind an op, for example one that ``torch.library.custom_op`` made.

    A function that cannot be sent to a worker stays refused until another function takes its place:
    the values that it closes over are not looked at again in each call.

    Args:
        function: Gives the function that a call of the op runs at this moment, or ``None``.
        fixed: Whether ``function`` always gives the same function.
    """

    def __init__(
        self, function: Callable[[], types.FunctionType | None], *, fixed: bool = False
    ) -> None:
        self._function = function
        self._fixed = fixed
        self._refused: tuple[types.FunctionType | None, str] | None = None

    @property
    def is_constant(self) -> bool:
        """Return whether nothing that the function uses can change from call to call.

        This holds if all names that the function uses are builtins, or modules, functions and
        values of torch and math. Then C++, which cannot look at these names, may serve the calls.
        """
        function = self._function() if self._fixed else None
        return function is not None and all(_is_lasting(*one) for one in names_used(function))

    @property
    def is_refused(self) -> bool:
        """Return whether the function is always the same and was found to be unsupported."""
        return self._fixed and self._refused is not None

    @property
    def refusal(self) -> str | None:
        """Return why the present function can never be sent to a worker, or ``None`` if it can."""
        refused = self._refused
        return refused[1] if refused is not None and refused[0] is self._function() else None

    def snapshot(self) -> tuple[Any, list[Tensor]]:
        """Return the function's state at this moment, for the table key, and its tensors.

        Never raises: in a call, a state that cannot be read is a reason to run the original.
        """
        function = self._function()
        if self._refused is not None and self._refused[0] is function:
            return _REFUSED, []
        if torch.is_autocast_enabled("cpu"):
            return _UNDER_AUTOCAST, []
        state = State()
        try:
            return state.of(function, _DEPTH), state.tensors
        except Exception as error:  # noqa: BLE001 - objects of the user's may raise anything
            self._refused = (function, f"cannot be looked at: {error!r}")
            return _REFUSED, []

    def describe(self) -> tuple[Description, list[Tensor]]:
        """Return the function as data, and its tensors, which are not copied.

        Raises:
            UnsupportedFunctionError: It uses something that cannot be sent to the compile worker;
                the message names it.
        """
        function = self._function()
        if function is None:
            raise UnsupportedFunctionError("the op's function is disabled or was replaced")
        if self._refused is not None and self._refused[0] is function:
            raise UnsupportedFunctionError(self._refused[1])
        if torch.is_autocast_enabled("cpu"):
            raise UnsupportedFunctionError("runs under autocast")
        writer = _Writer()
        try:
            document = writer.function(function, "", _DEPTH)
        except UnsupportedFunctionError as error:
            self._refused = (function, str(error))
            raise
        except Exception as error:
            self._refused = (function, f"cannot be looked at: {error!r}")
            raise UnsupportedFunctionError(self._refused[1]) from error
        document["constant"] = self.is_constant
        return Description(document, tuple(writer.constants)), writer.tensors


_REFUSED = ("refused",)
_UNDER_AUTOCAST = ("autocast",)


def python_function(op: OpOverload, dispatch_key: str) -> PythonFunction | None:
    """Return the ``custom_op`` function that ``op`` runs at ``dispatch_key``, or ``None``."""
    name = qualified_name(op)
    if dispatcher.custom_op_function(name, dispatch_key) is None:
        return None
    return PythonFunction(lambda: dispatcher.custom_op_function(name, dispatch_key))


# --- the document ---------------------------------------------------------------------------------


class _Writer:
    """Writes values as JSON and collects the tensors among them, in the order of ``State``."""

    def __init__(self) -> None:
        self.constants: list[tuple[str, Component]] = []
        self.tensors: list[Tensor] = []

    def function(self, function: types.FunctionType, path: str, depth: int) -> dict[str, Any]:
        if depth == 0:
            raise UnsupportedFunctionError(f"{path}: functions that call functions, too deep")
        used = dict(names_used(function))
        source = function_source(function, lambda name: _named(used, name))
        document: dict[str, Any] = {
            "name": function.__name__,
            "source": source,
            "python": list(sys.version_info[:2]),
            "defaults": self.value(function.__defaults__, f"{path}defaults", depth - 1),
            "kwdefaults": self.value(function.__kwdefaults__, f"{path}defaults", depth - 1),
        }
        document["names"] = {
            name: self.used(name, value, path + name, depth - 1) for name, value in used.items()
        }
        return document

    def used(self, name: str, value: Any, path: str, depth: int) -> Component:
        if value is ABSENT:
            if not hasattr(builtins, name):
                raise UnsupportedFunctionError(f"uses {name!r}, which has no value")
            if name not in _BUILTINS:
                raise UnsupportedFunctionError(
                    f"uses {name!r}, which may do more than compute a result"
                )
            return {"builtin": name}
        return self.value(value, path, depth)

    def value(self, value: Any, path: str, depth: int) -> Component:
        kind = type(value)
        if kind is Tensor or kind is torch.nn.Parameter:
            return self.constant(value, path)
        if value is None or kind in (bool, int, str):
            return {"plain": value}
        if kind is float:
            return {"float": value.hex()}
        if depth == 0:
            raise UnsupportedFunctionError(f"{path}: values within values, too deep")
        if kind is types.FunctionType and not is_by_reference(value):
            return {"function": self.function(value, path + ".", depth)}
        if kind is tuple or kind is list:
            items = [self.value(v, f"{path}.{i}", depth - 1) for i, v in enumerate(value)]
            return {kind.__name__: items}
        if kind is dict and all(type(k) is str for k in value):
            return {
                "dict": [[k, self.value(v, f"{path}.{k}", depth - 1)] for k, v in value.items()]
            }
        if isinstance(value, TORCH_VALUES):
            return {"torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, torch.nn.Module):
            return self.module(value, path, depth)
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] in BY_REFERENCE:
                return {"module": value.__name__}
            raise UnsupportedFunctionError(
                f"uses the module {path} ({value.__name__}), which the compile worker does not "
                "have; import the function that is needed from it by name"
            )
        if is_allowed_function(value) and is_by_reference(value):
            return {"reference": [value.__module__, value.__qualname__]}
        raise UnsupportedFunctionError(
            f"uses {path}, a {kind.__module__}.{kind.__qualname__}; tensors, numbers, strings, "
            "lists, functions, torch.nn modules and what of torch only computes are supported"
        )

    def constant(self, tensor: Tensor, path: str) -> Component:
        component = tensor_component(tensor)
        if component["layout"] != "strided" or component["conj"] or component["neg"]:
            raise UnsupportedFunctionError(f"uses {path}, a tensor that is not plain and strided")
        self.constants.append((path, component))
        self.tensors.append(tensor)
        return {"constant": len(self.constants) - 1}

    def module(self, module: torch.nn.Module, path: str, depth: int) -> Component:
        cls = type(module)
        if tracing_compat.has_global_module_hooks():
            raise UnsupportedFunctionError("uses a module while hooks for all modules are set")
        if not is_by_reference(cls):
            raise UnsupportedFunctionError(
                f"uses {path}, a module of class {cls.__qualname__}, whose code the compile worker "
                "does not have; modules of torch.nn are supported, and so are functions of tensors"
            )
        tensors = {n: self.value(v, f"{path}.{n}", depth - 1) for n, v in module_tensors(module)}
        modules = {n: self.value(v, f"{path}.{n}", depth - 1) for n, v in module._modules.items()}
        before = len(self.constants)
        attributes = {
            n: self.value(v, f"{path}.{n}", depth - 1) for n, v in plain_attributes(module)
        }
        if len(self.constants) != before:
            raise UnsupportedFunctionError(f"uses {path}, a module with a tensor for an attribute")
        return {
            "nn": {
                "class": [cls.__module__, cls.__qualname__],
                "training": module.training,
                "parameters": list(module._parameters),
                "tensors": tensors,
                "modules": modules,
                "attributes": attributes,
            }
        }


def _is_lasting(name: str, value: Any) -> bool:
    if value is ABSENT:
        return hasattr(builtins, name)  # Any other name may be defined later, as anything.
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in BY_REFERENCE
    return is_by_reference(value) or isinstance(value, TORCH_VALUES)


def _named(used: dict[str, Any], name: str) -> Any:
    """Return the value of a name in a function, or ``UNKNOWN`` for a local or absent name."""
    value = used.get(name, UNKNOWN)
    return UNKNOWN if value is ABSENT else value
