"""The function that PyTorch's dispatcher calls for one overload, generated from its schema.

Key, lookup and hit stand in one function without a loop, because each call of another Python
function costs a tenth of ATen's whole ``mul`` on a small tensor. What is rare
(bypass, miss, a run that raised) is a call of the cache's methods. Its own names begin with ``ae_``
so that no keyword argument of an op can hide one; without that, ``mul.Tensor`` reads::

    def kernel(keyset, a0, a1):
        if failures and ident() in failures and (way := cache.native_way()):
            return way(keyset, (a0, a1, ), {})
        if (
            cache.bypassed
            or (passing and ident() in passing)
            or (cache.asks_native and native_passing())
        ):
            return cache.bypass(keyset, (a0, a1, ), {})
        try:
            key = (<the key's expression>)
        except RuntimeError as error:
            return cache.no_key(error, keyset, (a0, a1, ), {})
        kernel = cache.lookup(key)
        if kernel is None:
            return cache.miss(key, keyset, (a0, a1, ), {})
        for none in kernel.quiet:
            break
        else:
            return kernel.look(kernel, keyset, (a0, a1, ), {})
        run = profiled(kernel.run) if is_profiling() else kernel.run
        try:
            with kernel.lock:
                outputs = run([a0, a1] if kernel.plain else flat_inputs([a0, a1]))
        except RuntimeError as error:
            return cache.run_failed(error, keyset, (a0, a1, ), {})
        count_hit()
        if kernel.single:
            return outputs[0]
        return kernel.results(outputs, (a0, a1, ), {})
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .._base.generated_code import run_generated
from .._base.torch_compat.settings import is_profiling
from .._keys.schema import Kind, OpSchema
from .._keys.table_key import (
    overlap_source,
    parameter_names,
    parameters,
    table_key_source,
)
from .._native.library import failures
from .._native.op_kernel import is_passing
from .._native.passthrough import passing
from .counters import OpCounters
from .kernel import flat_inputs
from .versions import count_writes

if TYPE_CHECKING:
    from .._functions.description import PythonFunction


def profiled_name(op: str) -> str:
    """Return the name under which runs of the op's kernel libraries show up in a profile."""
    return f"aoti_eager::{op}"


def profiled(
    name: str, run: Callable[[list[Tensor]], list[Tensor]]
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return ``run`` as a profiler sees it: under the op's own event, with a name of its own."""

    def run_recorded(inputs: list[Tensor]) -> list[Tensor]:
        with torch.profiler.record_function(name):
            return run(inputs)

    return run_recorded


# A kernel to register, and a function that gives the key of a call in the table.
Kernels = tuple[Callable[..., Any], Callable[..., tuple[Any, ...]]]


class Cache(Protocol):
    """What the generated kernel needs of a kernel cache."""

    schema: OpSchema
    dispatch_key: str
    counters: OpCounters
    bypassed: bool
    asks_native: bool
    is_composite: bool
    counts_writes: bool
    function: PythonFunction | None
    lookup: Callable[[tuple[Any, ...]], Any]

    def bypass(self, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Return the original's result for a call that is not to be served."""

    def native_way(self) -> Callable[[Any, Any, Any], Any] | None:
        """Return what takes a call that C++ has sent to Python for a reason, if it has."""

    def no_key(self, error: RuntimeError, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of a call under settings that cannot be read."""

    def miss(self, key: Any, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of a call whose key has no kernel."""

    def run_failed(self, error: RuntimeError, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of a call whose library raised."""


def late_python_kernel(cache: Cache, put: Callable[[Kernels], None]) -> Kernels:
    """Return what ``python_kernel`` returns; the source is generated and compiled at the first use.

    Compiling the source takes more time than all else of a registration, and most ops that are
    registered for a whole script are never called.

    Args:
        cache: The kernel cache.
        put: Gets the generated functions, for uses that come after the first.
    """
    made: list[Kernels] = []

    def generated() -> Kernels:
        if not made:
            made.append(python_kernel(cache))  # Of two threads, both may; either will do.
            put(made[0])
        return made[0]

    def kernel(ae_keyset: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not made:
            try:
                generated()
            except (RecursionError, MemoryError):  # The call is deep in a stack, and may be served.
                return cache.bypass(ae_keyset, args, kwargs)
        return made[0][0](ae_keyset, *args, **kwargs)

    def table_key(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return generated()[1](*args, **kwargs)

    kernel.__name__ = kernel.__qualname__ = cache.schema.op
    return kernel, table_key


def python_kernel(cache: Cache) -> Kernels:
    """Return the kernel to register, and a function that gives the key of a call in the table.

    The kernel takes the keyset as its first argument; the key function takes only the call's
    arguments.
    """
    schema = cache.schema
    names: dict[str, Any] = {
        "ae_cache": cache,
        "ae_passing": passing,
        "ae_ident": get_ident,
        "ae_failures": failures,
        "ae_native_passing": is_passing,
        "ae_count_hit": cache.counters.hits.add,
        "ae_flat_inputs": flat_inputs,
        "ae_is_profiling": is_profiling,
        "ae_profiled": functools.partial(profiled, profiled_name(schema.op)),
    }
    key = table_key_source(schema, cache.dispatch_key, names)
    snapshot = constants = autocast = ""
    if cache.is_composite:
        names["ae_is_autocast"] = torch.is_autocast_enabled
        autocast = 'or ae_is_autocast("cpu")'
    if cache.function is not None:
        # What the op's function closes over is a part of the key, and the tensors among it are
        # inputs.
        names["ae_snapshot"] = cache.function.snapshot
        snapshot = "ae_state, ae_constants = ae_snapshot()"
        constants = "*ae_constants"
        overlap = overlap_source(schema, "ae_constants") if schema.mutated else "False"
        key = f"(ae_state, {overlap}, {key[1:]}"
    named = list(zip(schema.arguments, parameter_names(schema), strict=True))
    args = "".join(f"{name}, " for argument, name in named if not argument.kwarg_only)
    kwargs = ", ".join(f"{name!r}: {name}" for argument, name in named if argument.kwarg_only)
    call = f"ae_keyset, ({args}), {{{kwargs}}}"
    tensors = [(argument, name) for argument, name in named if argument.is_tensor]
    plain = ", ".join(name for _, name in tensors)
    flat = ", ".join(n if a.kind is Kind.TENSOR else f"*({n} or ())" for a, n in tensors)
    plain, flat = (", ".join(part for part in (p, constants) if part) for p in (plain, flat))
    counting = ""
    if cache.counts_writes:
        names["ae_count_writes"] = count_writes
        written = [(a, name) for a, name in tensors if a.mutated]
        listed = (n if a.kind is Kind.TENSOR else f"*({n} or ())" for a, n in written)
        counting = f"ae_count_writes([{', '.join(listed)}])"
    own = parameters(schema, names)
    signature = ", ".join(part for part in ("ae_keyset", own) if part)
    source = f"""
def kernel({signature}):
    if ae_failures and ae_ident() in ae_failures and (ae_way := ae_cache.native_way()):
        return ae_way({call})
    if (
        ae_cache.bypassed
        or (ae_passing and ae_ident() in ae_passing)
        or (ae_cache.asks_native and ae_native_passing())
        {autocast}
    ):
        return ae_cache.bypass({call})
    {snapshot}
    try:
        ae_key = {key}
    except RuntimeError as ae_error:
        return ae_cache.no_key(ae_error, {call})
    ae_kernel = ae_cache.lookup(ae_key)
    if ae_kernel is None:
        return ae_cache.miss(ae_key, {call})
    for ae_none in ae_kernel.quiet:
        break
    else:
        return ae_kernel.look(ae_kernel, {call})
    ae_run = ae_profiled(ae_kernel.run) if ae_is_profiling() else ae_kernel.run
    try:
        with ae_kernel.lock:
            ae_outputs = ae_run([{plain}] if ae_kernel.plain else ae_flat_inputs([{flat}]))
    except RuntimeError as ae_error:
        return ae_cache.run_failed(ae_error, {call})
    ae_count_hit()
    {counting}
    if ae_kernel.single:
        return ae_outputs[0]
    return ae_kernel.results(ae_outputs, ({args}), {{{kwargs}}})

def table_key({own}):
    {snapshot}
    return {key}
"""
    run_generated(source, f"kernel of {schema.op}", names)
    function: Callable[..., Any] = names["kernel"]
    function.__name__ = function.__qualname__ = schema.op
    return function, names["table_key"]
