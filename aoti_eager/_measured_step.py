"""The backward pass of one function, as eager code makes it and with a compiled kernel.

For the gate of a backward kernel, in the process that measures. The forward pass runs once, before:
forward kernels have a measurement of their own, and both must win.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _compat
from ._compat import OpOverload
from ._gradient_function import GradientFunction
from ._gradient_node import GradientNode, JoinedCall, Pair
from ._gradients import Gradients
from ._native import NativeGate
from ._native_key import argument_kind
from ._schema import op_schema

Step = Callable[..., Any]


class MeasuredStep:
    """The backward pass of one call; each way goes back over a graph of its own again and again.

    Args:
        function: The gradient of the function.
        backward: The op of that gradient, served by kernels in turn.
        values: Its arguments.

    Attributes:
        eager: The pass without us.
        python: The pass with Python's node.
    """

    def __init__(
        self, function: GradientFunction, backward: OpOverload, values: Sequence[Any]
    ) -> None:
        self._function, self._backward = function, backward
        signature = function.signature
        gradients, self._arguments, needs = signature.split(values)
        for place, need in zip(signature.tensors, needs, strict=True):
            if need:
                self._arguments[place].requires_grad_()
        results = signature.call(function.function, self._arguments)
        self._pair = Pair(
            function.function, backward, tuple(signature.tensors), tuple(signature.keywords)
        )
        self._joined = JoinedCall(self._pair, needs, results)
        self._kept: list[Any] = []

        def back(results: Any) -> Step:
            listed = list(results) if isinstance(results, tuple | list) else [results]

            def step(*_: Any) -> Any:
                return function.found(self._arguments, needs, listed, gradients, retain_graph=True)

            return step

        self._back = back
        self.eager = back(results)
        self.python = back(GradientNode.apply(self._joined, *self._arguments))  # type: ignore[no-untyped-call]
        self._native: Step | None = None

    def native(self, *_: Any) -> Any:
        """Make the pass with C++'s node; the C++ hit path must be loaded."""
        if self._native is None:
            self._native = self._back(self._gated()(*self._arguments))
        return self._native()

    def _gated(self) -> OpOverload:
        """Return an op of this process's that runs the function, differentiated by C++'s node."""
        namespace = _compat.raw_schema(self._backward).name.partition("::")[0]
        signature = self._function.signature
        library = _compat.new_library(namespace, "FRAGMENT")
        listed = _compat.raw_schema(self._backward).arguments[signature.results : -1]
        arguments = ", ".join(f"{_compat.type_in_schema(one)} {one.name}" for one in listed)
        returns = ", ".join(["Tensor"] * signature.results)
        schema = f"({arguments}) -> {returns if signature.single else f'({returns})'}"
        for name in ("forward", "function"):
            library.define(name + schema)  # type: ignore[no-untyped-call]

        def run(*values: Any) -> Any:
            results = signature.call(self._function.function, values)
            return results[0] if signature.single else tuple(results)

        def above(keyset: Any, *values: Any) -> Any:
            return run(*values)

        library.impl("forward", run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        library.impl("forward", above, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
        library.impl("function", run, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
        op: OpOverload = getattr(torch.ops, namespace).forward.default
        own = op_schema(op)
        gate = NativeGate(
            own.op,
            _compat.raw_schema(self._backward).name,
            f"{namespace}::function",
            [argument_kind(argument) for argument in own.arguments],
            signature.results,
        )
        gate.install()
        gradients = Gradients(
            op, own, run, self._function, self._backward, lambda: None, function_op=""
        )
        gradients.put(gate, self._joined, self._arguments)
        self._kept += [library, gate]
        return op
