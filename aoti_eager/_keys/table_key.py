"""Generates the function that reads a call's key in the in-memory table from its metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat.settings import deterministic_algorithms, float32_matmul_precision
from .._base.torch_compat.tensors import DTYPES, DisableTorchFunctionSubclass
from .aliasing import mutation_overlaps
from .kernel_key import FLOAT_MODE, FLOAT_MODE_NAMES, is_aligned
from .schema import Argument, Kind, OpSchema


def number_kind(value: Any) -> str | None:
    """Return the kind of a number in a Tensor slot, or ``None`` for an undefined tensor."""
    return None if value is None else type(value).__name__


def scalar_table_key(value: Any) -> Any:
    """Return a hashable value that tells Scalars apart as ``scalar_component`` does."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, complex):
        return (value.real.hex(), value.imag.hex())
    return (type(value), value)


# Classes of tensors whose attributes are read directly; a subclass may have __torch_function__.
_PLAIN = frozenset({Tensor, torch.nn.Parameter})


def _other_key_function(tensor: str) -> Callable[[Any], Any]:
    """Return a function that gives the key of a tensor subclass or of a value that is no tensor."""
    names: dict[str, Any] = {"ae_is_aligned": is_aligned, "ae_complex": _COMPLEX}
    exec(f"def tensor_key(t): return {tensor.format('t')}", names)  # noqa: S102
    tensor_key = names["tensor_key"]

    def other_key(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return number_kind(value)
        with DisableTorchFunctionSubclass():
            return tensor_key(value)

    return other_key


# Only complex tensors can be conjugated, and ``is_conj`` costs as much as all other attributes.
_COMPLEX = frozenset(dtype for dtype in DTYPES if dtype.is_complex)


# At the dispatch key CPU, every tensor is strided and on the CPU: other layouts and devices have
# dispatch keys of their own, so reading layout and device would only cost time.
_CPU_TENSOR = (
    "((ae_dtype := {0}.dtype), {0}.shape, {0}.stride(), {0}.is_neg(), "
    "ae_dtype in ae_complex and {0}.is_conj())"
)


_DEVICE_TENSOR = f"({_CPU_TENSOR[1:-1]}, {{0}}.device, ae_is_aligned({{0}}))"


def table_key_function(schema: OpSchema, dispatch_key: str) -> Callable[..., tuple[Any, ...]]:
    """Return a function of a call's arguments that gives the call's key in the in-memory table.

    The function takes arguments as PyTorch passes them to a Python kernel: positional arguments by
    position, keyword-only arguments by name, arguments that equal their default left out.
    """
    names: dict[str, Any] = {}
    expression = table_key_source(schema, dispatch_key, names)
    exec(f"def table_key({parameters(schema, names)}): return {expression}", names)  # noqa: S102
    function: Callable[..., tuple[Any, ...]] = names["table_key"]
    return function


def table_key_source(schema: OpSchema, dispatch_key: str, names: dict[str, Any]) -> str:
    """Return the Python expression of a call's table key; names in the expression go to ``names``.

    The expression is generated, because a generic loop over the schema costs more than the whole
    call of a small kernel.
    """
    tensor = _CPU_TENSOR if dispatch_key == "CPU" else _DEVICE_TENSOR
    one = f"{tensor} if {{0}}.__class__ in ae_plain else ae_other_key({{0}})"
    # All names have a prefix, also builtins: an op's keyword-only argument may have any other name.
    names.update(
        ae_is_aligned=is_aligned,
        ae_isinstance=isinstance,
        ae_tuple=tuple,
        ae_plain=_PLAIN,
        ae_complex=_COMPLEX,
        ae_other_key=_other_key_function(tensor),
        ae_number_kind=number_kind,
        ae_scalar_key=scalar_table_key,
        ae_overlaps=mutation_overlaps,
        ae_float_hex=float.hex,
        ae_default_dtype=torch.get_default_dtype,
        ae_deterministic=deterministic_algorithms,
        ae_precision=float32_matmul_precision,
        ae_threads=torch.get_num_threads,
        **FLOAT_MODE_NAMES,
    )
    exec(f"def ae_tensor_key(t): return {one.format('t')}", names)  # noqa: S102
    parts = [
        _table_key_part(argument, name, one)
        for argument, name in zip(schema.arguments, parameter_names(schema), strict=True)
    ]
    if schema.mutated:
        parts.append(overlap_source(schema))
    parts += ["ae_default_dtype()", "ae_deterministic()", "ae_precision()"]
    # In an unusual float mode, a call declines whatever the number of threads. So the mode is a
    # condition here, which costs less than one more part of the key.
    parts.append(f"(ae_threads() if {FLOAT_MODE} else None)")
    return f"({', '.join(parts)},)"


def parameter_names(schema: OpSchema) -> list[str]:
    """Return a Python parameter name for each argument: the schema's name if it is keyword-only."""
    return [a.name if a.kwarg_only else f"ae_{i}" for i, a in enumerate(schema.arguments)]


def parameters(schema: OpSchema, names: dict[str, Any]) -> str:
    """Return the Python parameter list of a kernel of ``schema``; defaults are put in ``names``."""
    text: list[str] = []
    starred = False
    for index, (argument, name) in enumerate(
        zip(schema.arguments, parameter_names(schema), strict=True)
    ):
        if argument.kwarg_only and not starred:
            text.append("*")
            starred = True
        if argument.has_default:
            names[f"ae_default_{index}"] = argument.default
            text.append(f"{name}=ae_default_{index}")
        elif text and not starred and "=" in text[-1]:
            # The schema language lets a required argument follow a default, Python does not.
            text.append(f"{name}=None")
        else:
            text.append(name)
    return ", ".join(text)


def _table_key_part(argument: Argument, name: str, one: str) -> str:
    part = {
        Kind.TENSOR: f"({one.format(name)})",
        Kind.TENSORS: f"ae_tuple([ae_tensor_key(t) for t in {name}])",
        Kind.OPTIONAL_TENSORS: f"ae_tuple([ae_tensor_key(t) for t in {name}])",
        Kind.SCALAR: f"ae_scalar_key({name})",
        Kind.SCALARS: f"ae_tuple([ae_scalar_key(v) for v in {name}])",
        Kind.FLOAT: f"ae_float_hex({name})",
        Kind.FLOATS: f"ae_tuple([ae_float_hex(v) for v in {name}])",
        Kind.INTS: f"ae_tuple({name})",
        Kind.BOOLS: f"ae_tuple({name})",
        # A call with one of these declines, so its key must only say that the value is not None.
        Kind.GENERATOR: f"{name} is not None",
        Kind.UNSUPPORTED: f"{name} is not None",
    }.get(argument.kind, name)
    return f"(None if {name} is None else {part})" if argument.optional else part


def overlap_source(schema: OpSchema, others: str | None = None) -> str:
    """Return the source of "a mutated argument overlaps another", which layouts do not tell.

    ``others`` is the source of the tensors to compare with, by default the other arguments.
    """

    def listed(wanted: bool) -> str:
        items = [
            name if argument.kind is Kind.TENSOR else f"*({name} or ())"
            for argument, name in zip(schema.arguments, parameter_names(schema), strict=True)
            if argument.is_tensor and argument.mutated is wanted
        ]
        return f"({', '.join(items)},)" if items else "()"

    return f"ae_overlaps({listed(True)}, {others or listed(False)})"
