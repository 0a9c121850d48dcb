"""Read a call that misses: its key, its tensors, and why it declines whatever the store holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .._base.cpu import cpu_features, cpu_target
from .._base.data_class import dataclass, field
from .._base.warn_once import warn_of_function
from .._compile_service.kernel_compiler import KernelCompiler
from .._keys.call_template import CallTemplate, call_template
from .._keys.declines import call_decline
from .._keys.kernel_key import KernelKey, kernel_key
from .._keys.key_words import native_key, words_of_values
from .._native.passthrough import passthrough
from ..config import config
from ..errors import UnsupportedArgumentError, UnsupportedFunctionError
from .certificates import refusal as certificate_refusal
from .decision import Refusal
from .kernel import call_inputs
from .kernel_request import Cache, KernelRequest
from .table import Table, TableKey


@dataclass(frozen=True, slots=True)
class ReadCall:
    """What a call says of itself.

    Attributes:
        request: The call without its tensors; ``None`` if it declines, or if another thread has
            changed what the op's function uses since the call began.
        refusal: Why it declines, if it does.
        words: The key in C++; ``None`` if it has none.
        inputs: The call's tensors, in slot order.
    """

    request: KernelRequest | None = None
    refusal: Refusal | None = None
    words: bytes | None = None
    inputs: list[Tensor] = field(default_factory=list)


def read_call(
    cache: Cache,
    table: Table,
    table_key: TableKey,
    toolchain: KernelCompiler,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> ReadCall:
    """Return what a call says of itself.

    Args:
        cache: The op's kernel cache.
        table: The op's table when the call began.
        table_key: The call's key in the table.
        toolchain: The op's kernel compiler when the call began.
        args: The call's positional arguments.
        kwargs: The call's keyword arguments.
    """
    schema, function = cache.schema, cache.function
    values: Sequence[Any] = ()
    try:
        with passthrough():
            values = schema.bind(args, kwargs)
            description, constants = cache.describe_function()
            key = kernel_key(
                schema,
                cache.dispatch_key,
                values,
                overridden=cache.original.overridden,
                more=cache.key_context(toolchain, description),
            )
            template = call_template(schema, key)
            overlaps = bool(schema.mutated) and _mutation_overlaps(cache, table_key)
            words = native_key(schema, key, overlaps=overlaps)
    except UnsupportedArgumentError as error:
        words = words_of_values(schema, cache.dispatch_key, values)
        return ReadCall(refusal=Refusal(error.reason, str(error)), words=words)
    except UnsupportedFunctionError as error:
        return _function_refused(cache, values, error)
    refusal = _refusal(cache, key, template, overlaps=overlaps)
    if refusal is not None:
        return ReadCall(refusal=refusal, words=words)
    if function is not None and function.snapshot()[0] != table_key[0]:
        return ReadCall(words=words)
    inputs = [*call_inputs(schema, values), *constants]
    request = KernelRequest(
        cache=cache,
        table=table,
        table_key=table_key,
        key=key,
        template=template,
        function=description,
        toolchain=toolchain,
        words=words,
        numel=sum(tensor.numel() for tensor in inputs),
        device=next((tensor.device for tensor in inputs if tensor.device.type != "cpu"), None),
    )
    return ReadCall(request, words=words, inputs=inputs)


def _function_refused(
    cache: Cache, values: Sequence[Any], error: UnsupportedFunctionError
) -> ReadCall:
    """Return a call whose op has a Python function that no worker can have."""
    schema, function = cache.schema, cache.function
    # Refused for good: neither Python nor C++ looks at what a refused function uses.
    refused = function is not None and function.is_refused
    words = words_of_values(schema, cache.dispatch_key, values) if refused else None
    message = f"{schema.op}: its function {error}"
    if function is not None and function.refusal is not None:
        warn_of_function(schema.op, message)
    return ReadCall(refusal=Refusal("unsupported_function", message), words=words)


def _refusal(
    cache: Cache, key: KernelKey, template: CallTemplate, *, overlaps: bool
) -> Refusal | None:
    """Return why no kernel may serve the call, as far as its key tells."""
    op = cache.schema.op
    reason = call_decline(template)
    if reason is None and overlaps:
        reason = "mutated_argument_overlaps"
    if reason is not None:
        return Refusal(reason, f"{op}: {reason}")
    target = cpu_target(cpu_features(), config.cpu_target)
    message = certificate_refusal(cache.schema, key, target, required=config.certified)
    return None if message is None else Refusal("uncertified", message)


def _mutation_overlaps(cache: Cache, table_key: TableKey) -> bool:
    # The table key has the answer just before the four values of the context. For an op with a
    # Python function, the key begins with the function's state and an answer that includes the
    # constants.
    with_constants = cache.function is not None and table_key[1]
    return bool(table_key[-5] or with_constants)
