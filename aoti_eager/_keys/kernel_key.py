"""Turns argument metadata and context into a key. Pure: no I/O, no compiler, no tensor data.

A key has two spellings. ``KernelKey`` is the canonical spelling: named components made of JSON
values. Its digest names an entry on disk, and a compile worker rebuilds the call from it. The fast
spelling is a tuple for the in-memory table; ``table_key.table_key_function`` generates the function
that makes it. Both spellings tell the same calls apart; a property-based test checks that.

A key does not contain:

- ``requires_grad``: at a backend's dispatch key, autograd has been handled above;
- storage offsets: an op that reads one declines;
- the value of a number in a Tensor slot: the value is an input of the kernel. The number's kind is
  in the key.
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
    """Everything about a call that affects the generated code.

    Attributes:
        op: Qualified name with overload, ``aten::add.Tensor``.
        dispatch_key: Name of the dispatch key that the kernel serves, ``CPU``.
        arguments: ``(name, component)`` for each argument, in schema order.
        context: ``(name, component)`` for everything besides the arguments that affects the code.
            ``threads`` is a count, or ``"any"`` for code that does not depend on the count.
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
        """Return every part of the key as text, by a dotted name, for ``explain`` to compare."""
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
    """Return the key of a call with the bound ``values``, in the present context.

    Args:
        schema: The overload's schema.
        dispatch_key: The dispatch key that the call was sent to.
        values: One value for each argument, in schema order (``OpSchema.bind``).
        overridden: Whether the original kernel is not torch's own. Such calls share no entry with
            calls of torch's kernel, because their results must equal another original's.
        more: Further components of the context: a user's function and its constants, or a device's
            compile backend.

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
    """Return the settings that a call depends on besides its arguments; C++ reads the same list."""
    return (
        torch.get_default_dtype(),
        deterministic_algorithms(),
        float32_matmul_precision(),
        torch.get_num_threads(),
        is_usual_float_mode(),
    )


def is_usual_float_mode() -> bool:
    """Return whether this thread keeps denormals and rounds to the nearest number.

    ``torch.set_flush_denormal`` changes the handling of denormals; other libraries change both.
    Python cannot read the CPU's register, so this looks at the effects; C++ compares the
    register's bits.
    """
    return _is_usual_float_mode()


# An expression that is true in the usual mode. Its first half tests denormals: the difference of
# two numbers near the least normal one is a denormal, which equals zero only if results or operands
# of the comparison are flushed. Its second half tests rounding: one plus a tiny number is rounded
# away from one by the sum (upwards) or by the difference (downwards), unless rounding is to the
# nearest. Both halves begin with a name, because Python's compiler evaluates expressions of
# literals, once for all threads. They are sums and differences, because products of denormals take
# a hundred times as long on some processors.
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
        # No kernel is compiled for a call with an undefined tensor where one is required.
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
    """Return a number with its type: ``True``, ``1``, ``1.0``, ``-0.0`` differ; NaN equals NaN."""
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
    """Return a tensor's metadata, or the kind of a number in a Tensor slot."""
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
    """Return the bits of a float64, spelled as in a key, as a signed integer."""
    (bits,) = struct.unpack("=q", struct.pack("=d", float.fromhex(text)))
    return int(bits)


def is_aligned(tensor: Tensor) -> bool:
    """Return whether a tensor's data begins at a multiple of 16 bytes; false for a fake tensor."""
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


def _flatten(name: str, component: Component, into: dict[str, str]) -> None:
    if isinstance(component, dict):
        for field, value in component.items():
            _flatten(f"{name}.{field}", value, into)
    elif isinstance(component, list) and any(isinstance(value, dict) for value in component):
        for index, value in enumerate(component):
            _flatten(f"{name}[{index}]", value, into)
    else:
        into[name] = json.dumps(component)
