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
from ..errors import UnsupportedArgumentError
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
FLOAT_MODE = f"ae_more - {_LEAST!r} > 0.0 and ae_one + {_TINY!r} - {_TINY!r} == 1.0"
FLOAT_MODE_NAMES = {"ae_more": 1.5 * _LEAST, "ae_one": 1.0}
_is_usual_float_mode: Callable[[], bool] = eval(f"lambda: {FLOAT_MODE}", dict(FLOAT_MODE_NAMES))


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


def _flatten(name: str, component: Component, into: dict[str, str]) -> None:
    if isinstance(component, dict):
        for field, value in component.items():
            _flatten(f"{name}.{field}", value, into)
    elif isinstance(component, list) and any(isinstance(value, dict) for value in component):
        for index, value in enumerate(component):
            _flatten(f"{name}[{index}]", value, into)
    else:
        into[name] = json.dumps(component)
