"""The kernels of a user's operator: its function, results without data, versions of what it writes.

What differentiates the operator is in ``op_gradients``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat import autograd, dispatcher
from .._base.torch_compat import tracing as tracing_compat
from .._base.torch_compat.dispatcher import OpOverload
from .._keys.schema import OpSchema


def implement(
    library: torch.library.Library,
    op: OpOverload,
    schema: OpSchema,
    run: Callable[..., Any],
    function: Callable[..., Any],
    device_types: str | Sequence[str] | None,
) -> None:
    """Register the kernels of ``op`` in the library that defines the operator.

    Args:
        library: The library.
        op: The operator.
        schema: The operator's schema.
        run: The user's function with checks of its results.
        function: The user's function.
        device_types: Types of the devices that the operator is for; ``None`` for all.
    """

    def fake(*args: Any, **kwargs: Any) -> Any:
        """Return results without data; tensors that the function finds by name are real ones."""
        with tracing_compat.real_tensors_allowed():
            return function(*args, **kwargs)

    local = schema.op.partition("::")[2]
    for key in _dispatch_keys(device_types):
        library.impl(local, run, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(schema.op, fake, lib=library)
    # Under vmap, the function's own ops know what to do.
    library.impl(local, run, "FuncTorchBatched")  # type: ignore[no-untyped-call]
    if schema.mutated:
        library.impl(  # type: ignore[no-untyped-call]
            local, _counting_versions(op, schema), "ADInplaceOrView", with_keyset=True
        )


def _dispatch_keys(device_types: str | Sequence[str] | None) -> list[str]:
    if device_types is None:
        return ["CompositeExplicitAutograd"]
    listed = [device_types] if isinstance(device_types, str) else device_types
    return [dispatcher.dispatch_key_of(one) for one in listed]


def _counting_versions(op: OpOverload, schema: OpSchema) -> Callable[..., Any]:
    """Return a kernel that counts the writes to what the operator mutates, and goes on."""

    def count_versions(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        written = [
            value
            for argument, value in zip(schema.arguments, args, strict=False)
            if argument.mutated
        ]
        written += [kwargs[a.name] for a in schema.arguments if a.mutated and a.name in kwargs]
        for one in tensors_in(written, {}):
            if one.is_inference() and not torch.is_inference_mode_enabled():
                raise RuntimeError(
                    f"{schema.op}: writes to an inference tensor outside of InferenceMode; make a "
                    "clone and pass that"
                )
            torch.autograd.graph.increment_version(one)
        return autograd.redispatch_below_versions(op, keyset, args, kwargs)

    return count_versions


def tensors_in(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among the arguments of a call, those in lists included."""
    found = []
    for value in (*args, *kwargs.values()):
        listed = value if isinstance(value, tuple | list) else (value,)
        found += [one for one in listed if isinstance(one, Tensor)]
    return found
