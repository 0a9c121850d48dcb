"""Argument metadata and context -> key. Pure: no I/O, no compiler, nothing is read from a tensor.

There are two spellings of one key. ``KernelKey`` is the canonical one: named components made of
JSON values, whose digest names an entry on disk and from which a compile worker rebuilds the call.
``table_key_function`` generates the fast one, a tuple for the in-memory table. They tell the same
calls apart (a property-based test holds them to it).

What is not in a key, and why: ``requires_grad`` (at a backend key autograd is already above us),
storage offsets (the op that reads one declines), and the value of a number in a Tensor slot (it is
an input of the kernel; its kind is keyed).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.data_class import dataclass
from .._base.digest import Component, json_digest
from .._base.torch_compat.settings import deterministic_algorithms, float32_matmul_precision
from .._base.torch_compat.tensors import DTYPES, DisableTorchFunctionSubclass
from ..errors import UnsupportedArgumentError
from .aliasing import mutation_overlaps
from .schema import Argument, Kind, OpSchema

ANY_THREADS = "any"


@dataclass(frozen=True, slots=True)
class KernelKey:
    """The identity of a call, as far as it shapes machine code.

    Attributes:
        op: Qualified name with overload, ``aten::add.Tensor``.
        dispatch_key: Name of the dispatch key that the kernel serves, ``CPU``.
        arguments: ``(name, component)`` for each argument, in schema order.
        context: What besides the arguments shapes the code, by name; ``threads`` is a count, or
            ``"any"`` for code that does not depend on it.
    """

    op: str
    dispatch_key: str
    arguments: tuple[tuple[str, Component], ...]
    context: tuple[tuple[str, Component], ...]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return json_digest(self.to_json())

    def to_json(self) -> dict[str, Component]:
        """Return the key as JSON values, for an entry or a request to a worker."""
        return {
            "op": self.op,
            "dispatch_key": self.dispatch_key,
            "arguments": [list(pair) for pair in self.arguments],
            "context": [list(pair) for pair in self.context],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Component]) -> KernelKey:
        """Return the key that ``to_json`` wrote."""
        return cls(
            op=values["op"],
            dispatch_key=values["dispatch_key"],
            arguments=tuple((name, component) for name, component in values["arguments"]),
            context=tuple((name, component) for name, component in values["context"]),
        )

    def with_threads(self, threads: int | str) -> KernelKey:
        """Return the same key for another thread count, or for ``"any"``."""
        context = tuple((n, threads if n == "threads" else c) for n, c in self.context)
        return KernelKey(self.op, self.dispatch_key, self.arguments, context)

    def components(self) -> dict[str, str]:
        """Return every part of the key by a dotted name, as text: what ``explain`` compares."""
        parts = {"op": self.op, "dispatch_key": self.dispatch_key}
        for prefix, pairs in (("", self.arguments), ("context.", self.context)):
            for name, component in pairs:
                _flatten(prefix + name, component, parts)
        return parts


def kernel_key(
    schema: OpSchema,
    dispatch_key: str,
    values: Sequence[Any],
    *,
    overridden: bool = False,
    more: Sequence[tuple[str, Component]] = (),
) -> KernelKey:
    """Return the key of a call with the bound ``values``, under the context of this moment.

    Args:
        schema: The overload's schema.
        dispatch_key: The dispatch key that the call was sent to.
        values: One value an argument, in schema order (``OpSchema.bind``).
        overridden: Whether the original kernel is not torch's own: such calls share no entry with
            the others, because the original that a result must equal is another.
        more: Further components of the context: a function of the user's and its constants, or a
            device's compile backend.

    Raises:
        UnsupportedArgumentError: An argument has a type that no key can hold.
    """
    arguments = tuple(
        (argument.name, argument_component(schema.op, argument, value))
        for argument, value in zip(schema.arguments, values, strict=True)
    )
    dtype, deterministic, precision, threads, is_usual = call_context()
    context = (
        *more,
        ("default_dtype", _dtype_name(dtype)),
        ("deterministic", deterministic),
        ("float32_matmul_precision", precision),
        *(() if is_usual else (("float_mode", "unusual"),)),
        ("original", "override" if overridden else "torch"),
        ("threads", threads),
    )
    return KernelKey(schema.op, dispatch_key, arguments, context)


def call_context() -> tuple[torch.dtype, bool, str, int, bool]:
    """Return what a call depends on besides its arguments; a closed list that C++ can read."""
    return (
        torch.get_default_dtype(),
        deterministic_algorithms(),
        float32_matmul_precision(),
        torch.get_num_threads(),
        is_usual_float_mode(),
    )


def is_usual_float_mode() -> bool:
    """Return whether this thread keeps denormals and rounds to the nearest number.

    ``torch.set_flush_denormal`` changes the first, other libraries change both. Nothing in Python
    reads the CPU's register, so its effects are looked at: C++ compares the bits.
    """
    return _is_usual_float_mode()


# The difference of two numbers next to the least normal one is a denormal, which is no zero unless
# results are flushed, or arguments of the comparison; one and next to nothing is rounded away from
# one, upwards by the sum or downwards by the difference. Each begins with a name: the compiler of
# Python computes with literals, once for all threads. Sums, because products of denormals take a
# hundred times as long on some processors.
_LEAST, _TINY = 2.0**-1022, 2.0**-60
_FLOAT_MODE = f"ae_more - {_LEAST!r} > 0.0 and ae_one + {_TINY!r} - {_TINY!r} == 1.0"
_FLOAT_MODE_NAMES = {"ae_more": 1.5 * _LEAST, "ae_one": 1.0}
_is_usual_float_mode: Callable[[], bool] = eval(f"lambda: {_FLOAT_MODE}", dict(_FLOAT_MODE_NAMES))


def argument_component(op: str, argument: Argument, value: Any) -> Component:
    """Return the canonical component of one bound value.

    Raises:
        UnsupportedArgumentError: The value is of a type that no key can hold.
    """
    if value is None:
        # An undefined tensor where one is required is no call that a kernel was compiled for.
        if argument.kind is Kind.TENSOR and not argument.optional:
            return {"undefined": True}
        return None
    encode = _ENCODERS.get(argument.kind)
    if encode is None:
        raise UnsupportedArgumentError(
            f"{op}: argument {argument.name!r} is {argument.type_name}, got "
            f"{type(value).__name__}; calls with it run the original kernel"
        )
    return encode(value)


def scalar_component(value: Any) -> Component:
    """Return a number with its type: ``True``, ``1``, ``1.0`` and ``-0.0`` differ, NaN is NaN."""
    if isinstance(value, bool):
        return {"bool": value}
    if isinstance(value, int):
        return {"int": value}
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    raise UnsupportedArgumentError(
        f"a Scalar is {type(value).__name__}; bool, int, float and complex are supported"
    )


def tensor_component(value: Any) -> Component:
    """Return a tensor's metadata, or the kind of a number that stands in a Tensor slot."""
    if not isinstance(value, Tensor):
        return {"number": next(iter(scalar_component(value)))}
    component = {
        "dtype": _dtype_name(value.dtype),
        "device": str(value.device),
        "layout": str(value.layout).removeprefix("torch."),
        "sizes": list(value.shape),
        "strides": list(value.stride()) if value.layout is torch.strided else None,
        "conj": value.is_conj(),
        "neg": value.is_neg(),
    }
    if value.device.type != "cpu" and value.layout is torch.strided:
        # Code for other devices may load 16 bytes at a time.
        component["aligned"] = is_aligned(value)
    return component


def float_bits(text: str) -> int:
    """Return the bits of a float64 that is spelled as in a key, as a signed integer."""
    (bits,) = struct.unpack("=q", struct.pack("=d", float.fromhex(text)))
    return int(bits)


def is_aligned(tensor: Tensor) -> bool:
    """Return whether a tensor's data begins at a multiple of 16 bytes; a fake one has none."""
    try:
        return tensor.data_ptr() % 16 == 0
    except RuntimeError:
        return False


def _generator_component(value: Any) -> Component:
    raise UnsupportedArgumentError(
        "a Generator was passed; random streams of compiled code are not eager's"
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_ENCODERS: dict[Kind, Callable[[Any], Component]] = {
    Kind.TENSOR: tensor_component,
    Kind.TENSORS: lambda values: [tensor_component(value) for value in values],
    Kind.OPTIONAL_TENSORS: lambda values: [
        None if value is None else tensor_component(value) for value in values
    ],
    Kind.SCALAR: scalar_component,
    Kind.SCALARS: lambda values: [scalar_component(value) for value in values],
    Kind.INT: int,
    Kind.INTS: lambda values: [int(value) for value in values],
    Kind.FLOAT: lambda value: float(value).hex(),
    Kind.FLOATS: lambda values: [float(value).hex() for value in values],
    Kind.BOOL: bool,
    Kind.BOOLS: lambda values: [bool(value) for value in values],
    Kind.STR: str,
    Kind.DTYPE: _dtype_name,
    Kind.LAYOUT: lambda value: str(value).removeprefix("torch."),
    Kind.DEVICE: str,
    Kind.MEMORY_FORMAT: lambda value: str(value).removeprefix("torch."),
    Kind.GENERATOR: _generator_component,
}


# --- the fast spelling ---------------------------------------------------------------------------


def number_kind(value: Any) -> str | None:
    """Return the kind of a number in a Tensor slot, or ``None`` for no tensor at all."""
    return None if value is None else type(value).__name__


def scalar_table_key(value: Any) -> Any:
    """Return a hashable that tells Scalars apart as ``scalar_component`` does."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, complex):
        return (value.real.hex(), value.imag.hex())
    return (type(value), value)


# Tensors whose attributes are read without a detour; a subclass may have __torch_function__.
_PLAIN = frozenset({Tensor, torch.nn.Parameter})


def _other_key_function(tensor: str) -> Callable[[Any], Any]:
    """Return a function that gives the key of what is no plain tensor: a subclass, or no tensor."""
    names: dict[str, Any] = {"ae_is_aligned": is_aligned, "ae_complex": _COMPLEX}
    exec(f"def tensor_key(t): return {tensor.format('t')}", names)  # noqa: S102
    tensor_key = names["tensor_key"]

    def other_key(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return number_kind(value)
        with DisableTorchFunctionSubclass():
            return tensor_key(value)

    return other_key


# On the CPU key every tensor is a strided CPU one: other layouts and devices have keys of their
# own, so asking for them would only cost time.
# Only complex numbers are conjugated; to ask costs as much as all other attributes.
_COMPLEX = frozenset(dtype for dtype in DTYPES if dtype.is_complex)
_CPU_TENSOR = (
    "((ae_dtype := {0}.dtype), {0}.shape, {0}.stride(), {0}.is_neg(), "
    "ae_dtype in ae_complex and {0}.is_conj())"
)
_DEVICE_TENSOR = f"({_CPU_TENSOR[1:-1]}, {{0}}.device, ae_is_aligned({{0}}))"


def table_key_function(schema: OpSchema, dispatch_key: str) -> Callable[..., tuple[Any, ...]]:
    """Return a function of a call's arguments that gives its key in the in-memory table.

    It takes what PyTorch hands to a Python kernel: positional arguments by position, keyword-only
    ones by name, arguments that equal their default left out.
    """
    names: dict[str, Any] = {}
    expression = table_key_source(schema, dispatch_key, names)
    exec(f"def table_key({parameters(schema, names)}): return {expression}", names)  # noqa: S102
    function: Callable[..., tuple[Any, ...]] = names["table_key"]
    return function


def table_key_source(schema: OpSchema, dispatch_key: str, names: dict[str, Any]) -> str:
    """Return the Python expression of a call's table key; what it refers to is put in ``names``.

    It is generated, because a generic loop over the schema costs more than the whole call of a
    small kernel.
    """
    tensor = _CPU_TENSOR if dispatch_key == "CPU" else _DEVICE_TENSOR
    one = f"{tensor} if {{0}}.__class__ in ae_plain else ae_other_key({{0}})"
    # With a prefix, builtins too: a keyword-only argument of an op may have any other name.
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
        **_FLOAT_MODE_NAMES,
    )
    exec(f"def ae_tensor_key(t): return {one.format('t')}", names)  # noqa: S102
    parts = [
        _table_key_part(argument, name, one)
        for argument, name in zip(schema.arguments, parameter_names(schema), strict=True)
    ]
    if schema.mutated:
        parts.append(overlap_source(schema))
    parts += ["ae_default_dtype()", "ae_deterministic()", "ae_precision()"]
    # A thread in an unusual mode declines, however many others there are. As a condition, which
    # costs less than one more part of the key.
    parts.append(f"(ae_threads() if {_FLOAT_MODE} else None)")
    return f"({', '.join(parts)},)"


def parameter_names(schema: OpSchema) -> list[str]:
    """Return a Python parameter name for each argument: its own only where a caller uses it."""
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
        # A call with one of these declines; that it is not None is all that its key must say.
        Kind.GENERATOR: f"{name} is not None",
        Kind.UNSUPPORTED: f"{name} is not None",
    }.get(argument.kind, name)
    return f"(None if {name} is None else {part})" if argument.optional else part


def overlap_source(schema: OpSchema, others: str | None = None) -> str:
    """Return the source of "a mutated argument overlaps another": layouts alone do not tell.

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


def _flatten(name: str, component: Component, into: dict[str, str]) -> None:
    if isinstance(component, dict):
        for field, value in component.items():
            _flatten(f"{name}.{field}", value, into)
    elif isinstance(component, list) and any(isinstance(value, dict) for value in component):
        for index, value in enumerate(component):
            _flatten(f"{name}[{index}]", value, into)
    else:
        into[name] = json.dumps(component)
