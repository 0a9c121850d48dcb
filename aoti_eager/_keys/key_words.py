"""Turns a canonical key into the words under which the C++ hit path finds the key's entry. Pure.

``csrc/key.h`` reads the same words from the dispatcher's stack, with the same tags and numbers; a
property-based test compares both. A kernel is published under the words that this module makes of
the key that the kernel was compiled for. So a difference would cost a call its fast path, and could
never give the call another key's kernel.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .._base.digest import Component
from .._base.torch_compat.aotinductor import device_type_numbers, dtypes_by_number
from ..errors import UnsupportedArgumentError
from .guards import Expression
from .kernel_key import KernelKey, argument_component, call_context
from .schema import Argument, Kind, OpSchema

_NONE, _TENSOR, _NUMBER, _LIST, _INT, _FLOAT, _BOOL, _COMPLEX, _STRING = range(9)
_DEVICE, _PRESENT, _OVERLAP, _CONTEXT = range(9, 13)

_NUMBER_KINDS = {"bool": 0, "int": 1, "float": 2, "complex": 3}
_PRECISIONS = {"highest": 0, "high": 1, "medium": 2}
_MEMORY_FORMATS = {"contiguous_format": 0, "preserve_format": 1, "channels_last": 2}
_MEMORY_FORMATS["channels_last_3d"] = 3

# How ``csrc/key.h`` reads an argument.
VALUE, ONE_TENSOR, TENSOR_LIST, OPAQUE = range(4)

# Stands for the component of an argument that no key can hold.
PRESENT = object()


def argument_kind(argument: Argument) -> int:
    """Return the number that tells C++ how to read ``argument``: ``VALUE``, ``ONE_TENSOR``, ..."""
    if argument.kind is Kind.TENSOR:
        return ONE_TENSOR
    if argument.is_tensor:
        return TENSOR_LIST
    return OPAQUE if argument.kind in (Kind.GENERATOR, Kind.UNSUPPORTED) else VALUE


def native_key(schema: OpSchema, key: KernelKey, *, overlaps: bool = False) -> bytes | None:
    """Return the words of ``key``'s calls in native byte order, or ``None`` if C++ has none.

    Args:
        schema: The overload's schema.
        key: The canonical key, with the calls' thread count.
        overlaps: Whether a mutated argument overlaps another one.
    """
    return _packed(_key_words(schema, key, overlaps))


def key_words(schema: OpSchema, key: KernelKey) -> list[int] | None:
    """Return the words of ``key``'s calls as signed integers, or ``None`` if C++ has none."""
    words = _key_words(schema, key, overlaps=False)
    return None if words is None else [_signed(word) for word in words]


def pattern_words(schema: OpSchema, pattern: KernelKey) -> list[Expression] | None:
    """Return the words of a key with symbols; words of sizes and strides may be expressions."""
    return key_words(schema, pattern)


def _key_words(schema: OpSchema, key: KernelKey, overlaps: bool) -> list[Any] | None:
    components = [component for _, component in key.arguments]
    return _words(schema, components, dict(key.context), key.dispatch_key != "CPU", overlaps)


def _packed(words: list[int] | None) -> bytes | None:
    if words is None:
        return None
    return struct.pack(f"={len(words)}Q", *(word & 0xFFFF_FFFF_FFFF_FFFF for word in words))


def _signed(word: Any) -> Any:
    if not isinstance(word, int):
        return word
    word &= 0xFFFF_FFFF_FFFF_FFFF
    return word - (1 << 64) if word >> 63 else word


def words_of_values(schema: OpSchema, dispatch_key: str, values: Sequence[Any]) -> bytes | None:
    """Return the words of a call with the bound ``values`` that has no canonical key."""
    components = []
    for argument, value in zip(schema.arguments, values, strict=True):
        try:
            components.append(argument_component(schema.op, argument, value))
        except UnsupportedArgumentError:
            components.append(None if value is None else PRESENT)
    dtype, deterministic, precision, threads, is_usual = call_context()
    context = {
        "default_dtype": str(dtype).removeprefix("torch."),
        "deterministic": deterministic,
        "float32_matmul_precision": precision,
        "threads": threads,
        **({} if is_usual else {"float_mode": "unusual"}),
    }
    # Overlaps do not matter, because no kernel serves such a call.
    return _packed(_words(schema, components, context, dispatch_key != "CPU", overlaps=False))


def _words(
    schema: OpSchema,
    components: Sequence[Component],
    context: Mapping[str, Component],
    with_device: bool,
    overlaps: bool,
) -> list[Any] | None:
    words: list[Any] = []
    try:
        for argument, component in zip(schema.arguments, components, strict=True):
            _write(argument, component, words, with_device)
        if schema.mutated:
            words.append(_OVERLAP | overlaps << 8)
        words.append(
            _CONTEXT
            | _dtype_numbers()[context["default_dtype"]] << 8
            | context["deterministic"] << 16
            | ("float_mode" in context) << 17
            | _PRECISIONS[context["float32_matmul_precision"]] << 24
            | context["threads"] << 32
        )
    except _NoWordsError:
        return None
    return words


class _NoWordsError(Exception):
    """A value is of a kind for which C++ has no words."""


@functools.cache
def _dtype_numbers() -> dict[str, int]:
    numbers = dtypes_by_number()
    return {str(dtype).removeprefix("torch."): number for number, dtype in numbers.items()}


def _write(argument: Argument, component: Component, words: list[Any], with_device: bool) -> None:
    kind = argument_kind(argument)
    if component is None:
        words.append(_NONE)
    elif kind == OPAQUE:
        words.append(_PRESENT)
    elif component is PRESENT:
        raise _NoWordsError
    elif kind == ONE_TENSOR:
        _write_tensor(component, words, with_device)
    elif kind == TENSOR_LIST:
        words.append(_LIST | len(component) << 32)
        for one in component:
            if one is None:
                words.append(_NONE)
            else:
                _write_tensor(one, words, with_device)
    else:
        _write_value(argument.kind, component, words)


def _write_tensor(component: Component, words: list[Any], with_device: bool) -> None:
    if "number" in component:
        words.append(_NUMBER | _NUMBER_KINDS[component["number"]] << 8)
        return
    if "undefined" in component:
        words.append(_NONE)
        return
    if component["layout"] != "strided":
        raise _NoWordsError
    words.append(
        _TENSOR
        | _dtype_numbers()[component["dtype"]] << 8
        | component["neg"] << 16
        | component["conj"] << 17
        | len(component["sizes"]) << 32
    )
    words += component["sizes"]
    words += component["strides"]
    if with_device:
        _write_device(component["device"], words)
        words.append(component.get("aligned", True))


def _write_value(kind: Kind, component: Component, words: list[Any]) -> None:
    if kind in (Kind.SCALAR, Kind.SCALARS):
        scalars = [component] if kind is Kind.SCALAR else component
        if kind is Kind.SCALARS:
            words.append(_LIST | len(scalars) << 32)
        for scalar in scalars:
            ((name, value),) = scalar.items()
            if isinstance(value, dict):
                words += (_FLOAT, value["symbol"])
                continue
            _write_number(name, value, words)
    elif kind in _LISTS:
        words.append(_LIST | len(component) << 32)
        for value in component:
            _write_number(_LISTS[kind], value, words)
    elif kind is Kind.FLOAT and isinstance(component, dict):
        words += (_FLOAT, component["symbol"])
    elif kind in _NUMBERS:
        _write_number(_NUMBERS[kind], component, words)
    elif kind is Kind.STR:
        text = component.encode()
        words.append(_STRING | len(text) << 32)
        text += b"\0" * (-len(text) % 8)
        words += struct.unpack(f"={len(text) // 8}Q", text)
    elif kind is Kind.DTYPE:
        words += (_INT, _dtype_numbers()[component])
    elif kind is Kind.LAYOUT and component == "strided":
        words += (_INT, 0)
    elif kind is Kind.MEMORY_FORMAT:
        words += (_INT, _MEMORY_FORMATS[component])
    elif kind is Kind.DEVICE:
        _write_device(component, words)
    else:
        raise _NoWordsError


_NUMBERS = {Kind.INT: "int", Kind.FLOAT: "float", Kind.BOOL: "bool"}
_LISTS = {Kind.INTS: "int", Kind.FLOATS: "float", Kind.BOOLS: "bool"}


def _write_number(name: str, value: Component, words: list[Any]) -> None:
    if isinstance(value, dict):
        words += (_INT, value["size"])
    elif name == "bool":
        words.append(_BOOL | value << 8)
    elif name == "int":
        if not -(1 << 63) <= value < 1 << 63:
            raise _NoWordsError
        words += (_INT, value)
    elif name == "float":
        words += (_FLOAT, _float_bits(value))
    else:
        words += (_COMPLEX, *map(_float_bits, value))


def _float_bits(text: str) -> int:
    value = float.fromhex(text)
    if math.isnan(value):
        return 0x7FF8_0000_0000_0000
    (bits,) = struct.unpack("=Q", struct.pack("=d", value))
    return int(bits)


def _write_device(name: str, words: list[Any]) -> None:
    device = torch.device(name)
    number = device_type_numbers().get(device.type)
    if number is None:
        raise _NoWordsError
    index = 0xFF if device.index is None else device.index
    words.append(_DEVICE | number << 8 | index << 32)
