"""How a user's operator is differentiated: by a compiled gradient, or by following its function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .._autograd.differentiable import Differentiable, is_differentiable, signature_of
from .._base.op_library import new_op_library
from .._base.torch_compat import autograd, dispatcher
from .._base.torch_compat import tracing as tracing_compat
from .._base.torch_compat.dispatcher import OpOverload
from .._functions.description import PythonFunction
from .._functions.gradient import GradientOfFunction
from .._keys.schema import OpSchema
from ..errors import CustomOpError
from . import registry
from .op_kernels import tensors_in


class OpGradients:
    """The kernels of one operator at the autograd key, until ``remove``.

    Args:
        op: The operator.
        schema: The operator's schema.
        source: The user's function, for keys.
        run: The function with checks of its results.
        function: The function.
        may_be_compiled: Whether kernels serve the operator.
    """

    def __init__(
        self,
        op: OpOverload,
        schema: OpSchema,
        source: PythonFunction,
        run: Callable[..., Any],
        function: Callable[..., Any],
        *,
        may_be_compiled: bool,
    ) -> None:
        self._op = op
        self._name = schema.op
        self._source = source
        self._run = run
        self._compiled: Differentiable | None = None
        self._following: torch.library.Library | None = None
        try:
            # If the function finds a value by name, that value may have changed by the backward
            # pass, and may have a gradient itself: then autograd follows the function.
            if may_be_compiled and is_differentiable(schema) and source.is_constant:
                self._add_compiled(schema, function)
            else:
                self._add_following()
        except BaseException:
            self.remove()
            raise

    @property
    def compiled(self) -> Differentiable | None:
        """Return the compiled gradient; ``None`` if autograd follows the function."""
        return self._compiled

    def remove(self) -> None:
        """Take the kernels out of the dispatcher; no call of the operator may run."""
        registry.forget_native(self._attach_native)
        if self._compiled is not None:
            self._compiled.close()
            self._compiled = None
        if self._following is not None:
            dispatcher.destroy(self._following)
            self._following = None

    def _add_compiled(self, schema: OpSchema, function: Callable[..., Any]) -> None:
        namespace, _, local = self._name.partition("::")
        self._compiled = Differentiable(
            self._op,
            schema,
            f"{namespace}::_{local}_backward",
            function=function,
            run=self._run,
            source=GradientOfFunction(self._source, signature_of(schema)),
            serving=registry.SERVING,
        )
        self._attach_native()
        registry.on_native(self._attach_native)

    def _add_following(self) -> None:
        namespace, _, local = self._name.partition("::")
        self._following = new_op_library(namespace)
        self._following.impl(  # type: ignore[no-untyped-call]
            local, self._follow, "Autograd", with_keyset=True
        )

    def _attach_native(self) -> None:
        if self._compiled is not None:
            self._compiled.attach_native()

    def _follow(self, keyset: Any, *args: Any, **kwargs: Any) -> Any:
        """Let autograd follow the function where one of its tensors has a gradient."""
        if torch.is_grad_enabled():
            closed_over = self._source.snapshot()[1]
            if any(one.requires_grad for one in (*tensors_in(args, kwargs), *closed_over)):
                if closed_over and tracing_compat.is_tracing():
                    raise CustomOpError(
                        f"{self._name}: its function finds a tensor by name, which a trace with "
                        "gradients cannot have; make it an argument, or do not compile or export "
                        "calls of it that want gradients"
                    )
                return self._run(*args, **kwargs)
        if autograd.is_transforming():
            return self._run(*args, **kwargs)
        return autograd.redispatch_below_autograd(self._op, keyset, args, kwargs)
