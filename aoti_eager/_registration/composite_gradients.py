"""The gradient of a composite op: above our kernels, autograd sees what it saw before."""

from __future__ import annotations

from typing import Any

from .._autograd.differentiable import Differentiable, Serving, signature_of
from .._base.torch_compat import autograd
from .._base.torch_compat.dispatcher import OpOverload
from .._dispatch.original import OriginalKernel
from .._functions.gradient import GradientOfOp
from .._keys.schema import OpSchema


def composite_gradients(
    op: OpOverload, schema: OpSchema, original: OriginalKernel, serving: Serving
) -> Differentiable:
    """Return what is above the kernels of a composite op: its gradients, and the original.

    Args:
        op: The op.
        schema: The op's schema.
        original: The op's kernel at the autograd key before ours.
        serving: Where the op and that of its gradient are served.
    """
    keyset = autograd.autograd_keyset()

    def run(*args: Any, **kwargs: Any) -> Any:
        return original(keyset, args, kwargs)

    local = schema.op.replace("::", "_").replace(".", "_")
    return Differentiable(
        op,
        schema,
        f"aoti_eager::_{local}_backward",
        function=run,
        run=run,
        source=GradientOfOp(schema.op, signature_of(schema)),
        serving=serving,
        decomposes=True,
    )
