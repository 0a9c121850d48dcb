"""Rebuilds a Python function from its document, with given tensors for its constants.

This runs in the compile worker and in the trial process only. The document comes from the parent
process through a pipe, and contains source that the parent runs itself.
"""

from __future__ import annotations

import builtins
import importlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.op_names import find_overload
from .gradient import GradientFunction, GradientSignature
from .state import (
    resolve_name,
)
from .tape import Tape


class RebuiltFunction:
    """A user's function that takes its constants as arguments of each call."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    @property
    def differentiates(self) -> bool:
        """Return whether the document describes the gradient of a function."""
        return "gradient" in self._document

    def with_constants(
        self, constants: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the result of a call with ``constants`` in place of the function's own tensors."""
        return self.with_constants_for_good(constants)(*args, **kwargs)

    def with_constants_for_good(self, constants: Sequence[Tensor]) -> Callable[..., Any]:
        """Return the function with ``constants`` bound, for many calls."""
        reader = _Reader(constants)
        gradient = self._document.get("gradient")
        if gradient is None:
            function: Callable[..., Any] = reader.function(self._document)
            return function
        op = self._document.get("op")
        return GradientFunction(
            reader.function(self._document["function"]) if op is None else find_overload(op),
            GradientSignature(**gradient),
        )


class RebuiltTape:
    """A tape as a function that takes the list of its inputs; see ``RebuiltFunction``.

    Args:
        tape: The tape.
        instead: Functions to call instead of ops, by the ops' qualified names.
    """

    differentiates = False

    def __init__(self, tape: Tape, instead: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self.tape = tape
        self._replay = tape.replay_function(instead)

    def with_constants(
        self, constants: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[Tensor]:
        """Return the tape's results; a tape has no constants."""
        return self._replay(*args, **kwargs)

    def with_constants_for_good(self, constants: Sequence[Tensor]) -> Callable[..., Any]:
        """Return the function of the inputs, for many calls; a tape has no constants."""
        return self._replay


class _Reader:
    """Turns the components of a document into the values that they describe.

    More than 12 methods, because each kind of component has one of its own.
    """

    def __init__(self, constants: Sequence[Tensor]) -> None:
        self._constants = constants

    def function(self, document: Mapping[str, Any]) -> Any:
        names = {name: self.value(value) for name, value in document["names"].items()}
        namespace: dict[str, Any] = {"__builtins__": builtins, **names}
        exec(compile(document["source"], "<user function>", "exec"), namespace)  # noqa: S102
        function = namespace[document["name"]]
        assert isinstance(function, types.FunctionType)
        # If the function uses its own name, the name has the value that it had in the user's code,
        # and not the function that exec has just bound to it.
        if document["name"] in names:
            namespace[document["name"]] = names[document["name"]]
        function.__defaults__ = self.value(document["defaults"])
        function.__kwdefaults__ = self.value(document["kwdefaults"])
        return function

    def value(self, component: Mapping[str, Any]) -> Any:
        ((kind, value),) = component.items()
        if kind == "constant":
            return self._constants[value]
        return getattr(self, f"_{kind}")(value)

    def _plain(self, value: Any) -> Any:
        return value

    def _float(self, value: str) -> float:
        return float.fromhex(value)

    def _builtin(self, name: str) -> Any:
        return getattr(builtins, name)

    def _function(self, document: Mapping[str, Any]) -> Any:
        return self.function(document)

    def _tuple(self, values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(self.value(value) for value in values)

    def _list(self, values: Sequence[Any]) -> list[Any]:
        return [self.value(value) for value in values]

    def _dict(self, pairs: Sequence[Any]) -> dict[str, Any]:
        return {key: self.value(value) for key, value in pairs}

    def _torch(self, name: str) -> Any:
        return getattr(torch, name)

    def _device(self, name: str) -> torch.device:
        return torch.device(name)

    def _module(self, name: str) -> Any:
        return importlib.import_module(name)

    def _reference(self, names: Sequence[str]) -> Any:
        return resolve_name(names[0], names[1])

    def _nn(self, fields: Mapping[str, Any]) -> torch.nn.Module:
        cls = resolve_name(*fields["class"])
        module: torch.nn.Module = cls.__new__(cls)
        torch.nn.Module.__init__(module)
        vars(module).update({n: self.value(v) for n, v in fields["attributes"].items()})
        module.training = fields["training"]
        for name, component in fields["tensors"].items():
            # Not by attribute: that would require a Parameter, and this may be a fake tensor.
            table: Any = module._parameters if name in fields["parameters"] else module._buffers
            table[name] = self.value(component)
        for name, component in fields["modules"].items():
            module._modules[name] = self.value(component)
        return module
