"""What makes an op differentiable: the op of its gradient, and the kernels at the autograd key."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch

from .._base.op_library import new_op_library
from .._base.torch_compat import dispatcher
from .._base.torch_compat.dispatcher import OpOverload
from .._base.warn_once import warn_once
from .._dispatch.kernel_cache import KernelCache
from .._functions.description import PythonFunction
from .._functions.gradient import GradientFunction, GradientSignature
from .._functions.op_functions import define, forget
from .._keys.schema import Kind, OpSchema
from ..errors import NativePathError
from .kernel import AutogradKernel
from .node import SecondOrder

# Libraries of backward ops that graphs may still call after the forward ops are gone.
_called_yet: list[torch.library.Library] = []


def _free_name(name: str) -> str:
    """Return a free name for a new op: ``name``, or another name if an older op still has it."""
    free, count = name, 2
    while dispatcher.is_defined(free):
        free, count = f"{name}_{count}", count + 1
    return free


class Registered(Protocol):
    """An op that is served until ``unregister``."""

    def unregister(self) -> None:
        """Stop serving the op."""


class Serving(Protocol):
    """Where ops are registered and found; ``_registration.registry`` in short."""

    def register(self, op: OpOverload) -> Registered:
        """Serve calls of ``op``."""

    def find(self, op: OpOverload) -> KernelCache | None:
        """Return the kernel of ``op``, if it is served."""


def is_differentiable(schema: OpSchema) -> bool:
    """Return whether ops of this schema get compiled gradients: tensors in, new tensors out."""
    lists = any(a.is_tensor and a.kind is not Kind.TENSOR for a in schema.arguments)
    return (
        not schema.mutated
        and not lists
        and any(a.kind is Kind.TENSOR for a in schema.arguments)
        and bool(schema.returns)
        and all(one.kind is Kind.TENSOR and not one.is_view for one in schema.returns)
    )


def signature_of(schema: OpSchema) -> GradientSignature:
    """Return how an op and its gradient are called."""
    return GradientSignature(
        results=len(schema.returns),
        single=len(schema.returns) == 1,
        tensors=[i for i, a in enumerate(schema.arguments) if a.is_tensor],
        keywords=[a.name for a in schema.arguments if a.kwarg_only],
    )


class Differentiable:
    """The gradient of one op, in the dispatcher until ``close``.

    Args:
        op: The op.
        schema: Its schema; ``is_differentiable`` holds.
        backward_name: Qualified name of the op of its gradient, which is defined here.
        function: Computes the op's results by ops that autograd knows.
        run: ``function`` with the op's own errors; it runs where no kernel serves.
        source: The gradient, for keys.
        serving: Where both ops are served.
        decomposes: Whether traces and transforms always see the ops that the op consists of.
    """

    def __init__(
        self,
        op: OpOverload,
        schema: OpSchema,
        backward_name: str,
        *,
        function: Callable[..., Any],
        run: Callable[..., Any],
        source: PythonFunction,
        serving: Serving,
        decomposes: bool = False,
    ) -> None:
        signature = signature_of(schema)
        gradient = GradientFunction(function, signature)
        backward_name = _free_name(backward_name)
        namespace, _, local = backward_name.partition("::")
        self._backward_name = backward_name
        self._source = source
        self._libraries = [new_op_library(namespace)]
        self._registered: Registered | None = None
        self._gradients: AutogradKernel | None = None
        try:
            backward = define(
                self._libraries[0], backward_name, _backward_schema(op, signature), source
            )
            self._implement(local, gradient, "CompositeExplicitAutograd")
            self._implement(local, gradient, "FuncTorchBatched")
            function_op = local.replace("_backward", "_function")
            self._libraries[0].define(  # type: ignore[no-untyped-call]
                function_op + _arguments_and_results(op)
            )
            self._implement(function_op, run, "CompositeImplicitAutograd")
            self._implement(local, SecondOrder(backward, gradient), "Autograd", with_keyset=True)
            self._registered = serving.register(backward)

            def caches() -> tuple[KernelCache, KernelCache] | None:
                one, other = serving.find(op), serving.find(backward)
                return None if one is None or other is None else (one, other)

            self._gradients = AutogradKernel(
                op,
                schema,
                run,
                gradient,
                backward,
                caches,
                function_op=f"{namespace}::{function_op}",
                decomposes=decomposes,
            )
            space, _, name = schema.op.partition("::")
            self._libraries.append(new_op_library(space))
            self._implement(name, self._gradients, "Autograd", with_keyset=True)
        except BaseException:
            self.close()
            raise

    def _implement(self, name: str, kernel: Any, key: str, **options: Any) -> None:
        with warnings.catch_warnings():
            # PyTorch warns that a kernel is overridden, which is what was asked for.
            warnings.simplefilter("ignore")
            self._libraries[-1].impl(name, kernel, key, **options)  # type: ignore[no-untyped-call]

    def attach_native(self) -> None:
        """Let C++ join forward and backward, if it can; no call of the op may run."""
        if self._gradients is None or not self._source.is_constant:
            return
        try:
            self._gradients.attach_native()
        except NativePathError as error:
            warn_once("native", f"{error}; Python serves its gradients")

    def close(self) -> None:
        """Take the op's gradient out of the dispatcher; no call of the op may run.

        If graphs of the user may still call the gradient's op, that op stays, without our kernel.
        """
        nodes = 0
        if self._gradients is not None:
            nodes = self._gradients.nodes
            self._gradients.close()
            self._gradients = None
        if self._registered is not None:
            self._registered.unregister()
            self._registered = None
        forget(self._backward_name)
        if nodes:
            _called_yet.append(self._libraries.pop(0))
        for library in reversed(self._libraries):
            dispatcher.destroy(library)
        self._libraries.clear()


def _arguments_and_results(op: OpOverload) -> str:
    """Return the schema of ``op`` without its name."""
    schema = str(dispatcher.raw_schema(op))
    return schema[schema.index("(") :]


def _backward_schema(op: OpOverload, signature: GradientSignature) -> str:
    gradients = [f"Tensor? ae_gradient_{i}" for i in range(signature.results)]
    arguments = [
        f"{dispatcher.type_in_schema(argument)} {argument.name}"
        for argument in dispatcher.raw_schema(op).arguments
    ]
    results = ["Tensor"] * len(signature.tensors)
    returns = results[0] if len(results) == 1 else f"({', '.join(results)})"
    return f"({', '.join([*gradients, *arguments, 'bool[] ae_needs'])}) -> {returns}"
