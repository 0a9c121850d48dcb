"""A training step of one function: eager, served by a backward kernel, and declined.

For the gate of a backward kernel, in the process that measures. A step is the forward pass and the
gradients: with a backward kernel, the forward pass records nothing but its arguments.

The forward kernel is not known here. In a served step, empty results stand for the forward kernel:
they take its way through the dispatcher. The caller adds the time of the forward computation, and
takes the time of the function without a graph for it: a forward kernel that is slower does not
serve, and the function runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .._autograd.kernel import AutogradKernel
from .._autograd.native_joins import put_call
from .._autograd.node import GradientNode, JoinedCall, Pair
from .._base.torch_compat import dispatcher
from .._base.torch_compat.dispatcher import OpOverload
from .._dispatch.kernel_cache import KernelCache
from .._functions.gradient import GradientFunction
from .._keys.key_words import argument_kind
from .._keys.schema import op_schema
from .._native.autograd_kernel import NativeAutogradKernel

Step = Callable[..., Any]


class MeasuredStep:
    """The step of one call.

    Args:
        function: The gradient of the function.
        backward: The op of that gradient; kernels serve it in turn.
        values: Its arguments.
    """

    def __init__(
        self, function: GradientFunction, backward: OpOverload, values: Sequence[Any]
    ) -> None:
        self._function, self._backward = function, backward
        signature = function.signature
        self._results, self._arguments, self._needs = signature.split(values)
        for place, need in zip(signature.tensors, self._needs, strict=True):
            if need:
                self._arguments[place].requires_grad_()
        results = signature.call(function.function, self._arguments)
        like = [one.detach() for one in results]

        def stand_in(*_: Any, **__: Any) -> Any:
            made = tuple(torch.empty_like(one) for one in like)
            return made[0] if signature.single else made

        self._stand_in = stand_in
        pair = Pair(stand_in, backward, tuple(signature.tensors), tuple(signature.keywords))
        self._joined = JoinedCall(pair, self._needs, results)
        self._library: torch.library.Library | None = None
        self._kernels: list[NativeAutogradKernel] = []
        self._steps: dict[tuple[str, bool], Step] = {}

    def eager(self, *_: Any) -> Any:
        """Make the step without any kernel or node of ours."""
        return self._back(self._function.signature.call(self._function.function, self._arguments))

    def forward(self, *_: Any) -> Any:
        """Run the function without a graph."""
        with torch.no_grad():
            return self._function.signature.call(self._function.function, self._arguments)

    def served(self, path: str) -> Step:
        """Return the step with the node of that hit path, and an empty forward pass.

        The C++ hit path must be loaded for its node.
        """
        return self._through(path, declined=False)

    def declined(self, path: str) -> Step:
        """Return the step that reaches the function through that hit path."""
        return self._through(path, declined=True)

    def _back(self, results: Any) -> Any:
        listed = list(results) if isinstance(results, tuple | list) else [results]
        return self._function.found(self._arguments, self._needs, listed, self._results)

    def _through(self, path: str, *, declined: bool) -> Step:
        """Return the step whose forward pass calls an op."""
        step = self._steps.get((path, declined))
        if step is None:
            op = self._op(path, declined=declined)
            step = self._steps[path, declined] = lambda *_: self._back(op(*self._arguments))
        return step

    def _op(self, path: str, *, declined: bool) -> OpOverload:
        """Return an op of this process that runs the function, with the path's gradient."""
        backward, signature = dispatcher.raw_schema(self._backward), self._function.signature
        namespace = backward.name.partition("::")[0]
        if self._library is None:
            self._library = dispatcher.new_library(namespace, "FRAGMENT")
        library = self._library
        listed = backward.arguments[signature.results : -1]
        arguments = ", ".join(f"{dispatcher.type_in_schema(one)} {one.name}" for one in listed)
        returns = ", ".join(["Tensor"] * signature.results)
        schema = f"({arguments}) -> {returns if signature.single else f'({returns})'}"
        name = f"{path}_{'declined' if declined else 'served'}"
        for one in (name, f"{name}_function"):
            library.define(one + schema)  # type: ignore[no-untyped-call]

        def run(*values: Any) -> Any:
            if not declined:
                return self._stand_in()
            results = signature.call(self._function.function, values)
            return results[0] if signature.single else tuple(results)

        op: OpOverload = getattr(getattr(torch.ops, namespace), name).default
        own = op_schema(op)
        gradients = AutogradKernel(
            op, own, run, self._function, self._backward, lambda: None, function_op=""
        )

        def above(keyset: Any, *values: Any) -> Any:
            """Do what ``AutogradKernel`` does in Python, with the results of its cache lookups."""
            found = gradients(keyset, *values) if declined else None
            cache.lookup(cache.key(*values))
            return GradientNode.apply(self._joined, *values) if found is None else found  # type: ignore[no-untyped-call]

        library.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        library.impl(name, above, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
        cache = KernelCache(op, "CPU")  # ``KernelCache`` needs an op with a kernel.
        library.impl(f"{name}_function", run, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
        if path == "native":
            kinds = [argument_kind(argument) for argument in own.arguments]
            kernel = NativeAutogradKernel(
                own.op, backward.name, f"{namespace}::{name}_function", kinds, signature.results
            )
            kernel.install()
            self._kernels.append(kernel)
            put_call(kernel, own, self._joined, self._arguments, declined=declined)
        return op
