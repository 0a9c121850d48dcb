"""The gradient of a function, as a function from which a backward kernel is compiled.

A gradient function takes the gradients of the results and the function's own arguments, and
computes the function once more: Inductor fuses both, so that only arguments are kept between
forward and backward. Gradient functions are used in the worker, and in the user's process as the
original of the backward kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeGuard

import torch
from torch import Tensor

from .._base.data_class import dataclass
from .._base.digest import Component
from .._base.torch_compat import autograd
from ..errors import UnsupportedFunctionError
from .description import Description, PythonFunction
from .tracing import storage_identity

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class GradientSignature:
    """How a function and its gradient are called.

    Attributes:
        results: How many tensors the function returns.
        single: Whether the function returns one tensor without a tuple around it.
        tensors: Places of the function's tensor arguments; each gets a gradient, or ``None``.
        keywords: Names of the function's keyword-only arguments, which are its last arguments.
    """

    results: int
    single: bool
    tensors: list[int]
    keywords: list[str]

    def call(self, function: Function, arguments: Sequence[Any]) -> list[Tensor]:
        """Return the results of ``function``, called with all arguments by their places."""
        split = len(arguments) - len(self.keywords)
        keywords = dict(zip(self.keywords, arguments[split:], strict=True))
        result = function(*arguments[:split], **keywords)
        return [result] if self.single else list(result)

    def split(self, values: Sequence[Any]) -> tuple[Sequence[Any], list[Any], Sequence[bool]]:
        """Return the gradients, the arguments, and for which of them gradients are wanted."""
        return values[: self.results], list(values[self.results : -1]), values[-1]


class GradientFunction:
    """The gradient of ``function``: ``(*gradients, *arguments, needs) -> gradients``.

    ``needs`` says for each tensor argument whether its gradient is wanted. An argument on which the
    results do not depend has no gradient.
    """

    def __init__(self, function: Function, signature: GradientSignature) -> None:
        self.function = function
        self.signature = signature

    def __call__(self, *values: Any) -> Any:
        """Return the gradient of each tensor argument; ``None`` where there is none."""
        gradients, arguments, needs = self.signature.split(values)
        with autograd.with_autograd():
            for place, need in zip(self.signature.tensors, needs, strict=True):
                if arguments[place] is not None:
                    arguments[place] = arguments[place].detach()
                    if need:
                        arguments[place].requires_grad_()
            results = self.signature.call(self.function, arguments)
            found = self.found(arguments, needs, results, gradients)
        listed = [found] if len(self.signature.tensors) == 1 else list(found)
        own = _own(listed, [*gradients, *arguments])
        return own[0] if len(own) == 1 else tuple(own)

    def found(
        self,
        arguments: Sequence[Any],
        needs: Sequence[bool],
        results: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        **options: Any,
    ) -> Any:
        """Return the gradients of a forward run's arguments, as autograd finds them.

        Args:
            arguments: The function's arguments; the results depend on some of them.
            needs: For each tensor argument, whether its gradient is wanted.
            results: The function's results.
            gradients: The gradients of the results.
            options: As for ``torch.autograd.grad``.
        """
        pairs = [
            (result, gradient)
            for result, gradient in zip(results, gradients, strict=True)
            if gradient is not None and result.requires_grad
        ]
        places = self.signature.tensors
        wanted = [
            arguments[place]
            for place, need in zip(places, needs, strict=True)
            if need and arguments[place] is not None
        ]
        none: list[Tensor | None] = [None] * len(wanted)
        found = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                wanted,
                [gradient for _, gradient in pairs],
                allow_unused=True,
                **options,
            )
            if pairs and wanted
            else none
        )
        by_place = [
            next(found) if need and arguments[place] is not None else None
            for place, need in zip(places, needs, strict=True)
        ]
        return by_place[0] if len(by_place) == 1 else tuple(by_place)


def _has_storage(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _own(found: Sequence[Tensor | None], given: Sequence[Any]) -> list[Tensor | None]:
    """Return the gradients without shared memory, among themselves or with ``given``.

    Gradients that share memory are copied: autograd gives one tensor for both terms of a sum, and
    an op must return new tensors.
    """
    taken = {storage_identity(one) for one in given if _has_storage(one)}
    own: list[Tensor | None] = []
    for one in found:
        if _has_storage(one) and storage_identity(one) in taken:
            one = one.clone()
        if _has_storage(one):
            taken.add(storage_identity(one))
        own.append(one)
    return own


class GradientOfOp(PythonFunction):
    """The gradient of a PyTorch op that is composed of other ops, for keys.

    Args:
        op: The op's qualified name; a worker has the op, too.
        signature: How the op and its gradient are called.
    """

    def __init__(self, op: str, signature: GradientSignature) -> None:
        self._op = op
        self._signature = signature

    @property
    def is_constant(self) -> bool:
        """Return true: the gradient is the same in each call."""
        return True

    @property
    def is_refused(self) -> bool:
        """Return false: a worker can always compute the gradient."""
        return False

    @property
    def refusal(self) -> str | None:
        """Return ``None``: a worker can always compute the gradient."""
        return None

    def snapshot(self) -> tuple[Any, list[Tensor]]:
        """Return the state of autocast, on which the gradient depends; see ``PythonFunction``."""
        return torch.is_autocast_enabled("cpu"), []

    def describe(self) -> tuple[Description, list[Tensor]]:
        """Return the gradient as data; see ``PythonFunction``."""
        if torch.is_autocast_enabled("cpu"):
            raise UnsupportedFunctionError("runs under autocast")
        document = {"op": self._op, "gradient": asdict(self._signature), "constant": True}
        return Description(document, ()), []


class GradientOfFunction(PythonFunction):
    """The gradient of a user's function, for keys; both depend on the same state."""

    def __init__(self, function: PythonFunction, signature: GradientSignature) -> None:
        self._of = function
        self._signature = signature

    @property
    def is_constant(self) -> bool:
        """Return whether the gradient is the same in each call."""
        return self._of.is_constant

    @property
    def is_refused(self) -> bool:
        """Return whether the function was refused; see ``PythonFunction``."""
        return self._of.is_refused

    @property
    def refusal(self) -> str | None:
        """Return why the function was refused, or ``None``; see ``PythonFunction``."""
        return self._of.refusal

    def snapshot(self) -> tuple[Any, list[Tensor]]:
        """Return the function's state; see ``PythonFunction``."""
        return self._of.snapshot()

    def describe(self) -> tuple[Description, list[Tensor]]:
        """Return the gradient as data; see ``PythonFunction``."""
        description, tensors = self._of.describe()
        gradient: dict[str, Component] = asdict(self._signature)
        document = {
            "function": description.document,
            "gradient": gradient,
            "constant": self.is_constant,
        }
        return Description(document, description.constants), tensors
