"""Keys with symbols: what several calls of one op have in common. Pure.

The *family* of a key is the key with a symbol in place of every size of two or more, every stride
that does not follow from sizes, and every number that may be an input. Calls of one family have the
same ranks, dtypes, stride order, broadcasting and settings. A *pattern* is a family in which some
symbols have values again: the symbols that do not vary from call to call. A dynamic specialisation
is compiled for a pattern.

Sizes of 0 and 1 are never symbols: they decide on broadcasting, and eager has other strides and
errors for them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .._base.data_class import dataclass, field
from .._base.digest import Component
from .guards import (
    INT64_MIN,
    Expression,
    Guards,
    NoValueError,
    evaluate,
    text,
)
from .kernel_key import KernelKey, float_bits
from .schema import Kind, OpSchema
from .size_arguments import TensorSizes, expressions, with_sizes

# The kinds of arguments whose numbers may be inputs of a kernel. A ``float``, unlike a ``Scalar``,
# cannot be traced as a symbol, because the dispatcher asks for its value.
_NUMBER_KINDS = (Kind.SCALAR,)
_UNLIMITED = 1 << 62  # No size is larger.
# The magnitudes of numbers that may be inputs.
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100
# Ops that compute differently for some numbers: a square root for 0.5, a square for 2.
_SPECIAL_NUMBERS = ("pow", "float_power")


@dataclass(frozen=True, slots=True)
class Family:
    """A key's family, and the values of its symbols in that key.

    Attributes:
        pattern: The key with all symbols.
        values: The value of each symbol; a number's value is the bits of a float64.
        meanings: What each symbol stands for, for people: ``input.size(0)``.
        places: Slot (see ``CallTemplate``) and dimension of each symbol of a size or stride.
    """

    pattern: KernelKey
    values: dict[str, int]
    meanings: dict[str, str]
    places: dict[str, tuple[int, int]]


@dataclass(slots=True)
class _Symbols:
    values: dict[str, int] = field(default_factory=dict)
    meanings: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tensors: list[TensorSizes] = field(default_factory=list)
    slot: int = -1

    def new(self, prefix: str, value: int, meaning: str, dim: int = -1) -> str:
        number = self.counts.get(prefix, 0)
        self.counts[prefix] = number + 1
        name = f"{prefix}{number}"
        self.values[name], self.meanings[name] = value, meaning
        if dim >= 0:
            self.places[name] = (self.slot, dim)
        return name


def family_of(schema: OpSchema, key: KernelKey) -> Family:
    """Return the family of ``key``."""
    symbols = _Symbols()
    numbers = _takes_numbers(schema, key)
    arguments: list[tuple[str, Component]] = []
    for argument, (name, component) in zip(schema.arguments, key.arguments, strict=True):
        if component is None:
            general = None
        elif argument.kind is Kind.TENSOR:
            general = _tensor(name, component, symbols)
        elif argument.is_tensor:
            general = [
                None if one is None else _tensor(f"{name}[{index}]", one, symbols)
                for index, one in enumerate(component)
            ]
        elif numbers and argument.kind in _NUMBER_KINDS:
            general = _number(name, argument.kind, component, symbols)
        else:
            general = component
        arguments.append((name, general))
    general_arguments = with_sizes(schema, arguments, symbols.tensors)
    pattern = KernelKey(key.op, key.dispatch_key, general_arguments, key.context)
    return Family(pattern, symbols.values, symbols.meanings, symbols.places)


def _tensor(name: str, component: dict[str, Any], symbols: _Symbols) -> Component:
    symbols.slot += 1
    if component.get("layout") != "strided" or "undefined" in component:
        return component
    sizes: list[Expression] = [
        symbols.new("s", size, f"{name}.size({dim})", dim) if size > 1 else size
        for dim, size in enumerate(component["sizes"])
    ]
    symbols.tensors.append(TensorSizes(component["sizes"], sizes))
    strides = _strides(name, component["sizes"], component["strides"], sizes, symbols)
    return {**component, "sizes": sizes, "strides": strides}


def _strides(
    name: str,
    sizes: Sequence[int],
    strides: Sequence[int],
    general_sizes: Sequence[Expression],
    symbols: _Symbols,
) -> list[Expression]:
    """Return the strides, as products of sizes where possible, from the innermost dimension on."""
    general: list[Expression] = list(strides)
    expected, expression = 1, 1  # type: int, Expression
    order = sorted(range(len(sizes)), key=lambda dim: (strides[dim], -dim))
    for dim in order:
        if sizes[dim] == 0 or strides[dim] == 0:
            continue
        if sizes[dim] == 1:
            # The stride of a freshly allocated tensor, or of one row of a tensor with more rows.
            general[dim] = (
                expression
                if strides[dim] == expected
                else symbols.new("t", strides[dim], f"{name}.stride({dim})", dim)
            )
            continue
        if strides[dim] != expected:
            expected = strides[dim]
            # A symbol even for a step of 2 or 3, which needs code of its own no more than a row's
            # length does.
            expression = symbols.new("t", expected, f"{name}.stride({dim})", dim)
        general[dim] = expression
        expected *= sizes[dim]
        size = general_sizes[dim]
        expression = size if expression == 1 else _product(expression, size)
    return general


def _product(expression: Expression, size: Expression) -> Expression:
    if isinstance(expression, list):
        return [*expression, size]
    return ["*", expression, size]


def _number(name: str, kind: Kind, component: Component, symbols: _Symbols) -> Component:
    text = component if kind is Kind.FLOAT else component.get("float")
    if text is None or number_range(float_bits(text)) is None:
        return component
    return symbolic_number(kind, symbols.new("v", float_bits(text), name))


def symbolic_number(kind: Kind, symbol: str) -> Component:
    """Return the component of a number argument whose number is ``symbol``."""
    return {"symbol": symbol} if kind is Kind.FLOAT else {"float": {"symbol": symbol}}


def number_range(bits: int) -> tuple[int, int] | None:
    """Return the range of numbers, as bits, that one kernel may serve together with this number.

    ``None`` means that the number needs a kernel of its own. Zeros, infinities, NaN and numbers
    outside of float32's range are special to many ops, and so is the sign.
    """
    low, high = float_bits(_SMALLEST.hex()), float_bits(_LARGEST.hex())
    for least, most in ((low, high), (INT64_MIN + low, INT64_MIN + high)):
        if least <= bits <= most:
            return least, most
    return None


def _takes_numbers(schema: OpSchema, key: KernelKey) -> bool:
    """Return whether the numbers of a call may be inputs of its kernel."""
    if schema.op.partition("::")[2].startswith(_SPECIAL_NUMBERS):
        return False
    tensors = [
        one
        for argument, (_, component) in zip(schema.arguments, key.arguments, strict=True)
        if argument.is_tensor and component is not None
        for one in (component if isinstance(component, list) else [component])
        if one is not None
    ]
    # With integers, the result's dtype depends on the number; with half precision, its rounding.
    return all(one.get("dtype") in ("float32", "float64") for one in tensors)


def number_arguments(pattern: KernelKey) -> tuple[str, ...]:
    """Return the names of the arguments whose number is a symbol."""
    return tuple(
        name
        for name, component in pattern.arguments
        if isinstance(component, dict)
        and ("symbol" in component or isinstance(component.get("float"), dict))
    )


def with_values(pattern: KernelKey, values: Mapping[str, int]) -> KernelKey:
    """Return ``pattern`` with ``values`` in place of some or all of its symbols."""
    arguments = tuple((name, _filled(component, values)) for name, component in pattern.arguments)
    return KernelKey(pattern.op, pattern.dispatch_key, arguments, pattern.context)


def _filled(component: Component, values: Mapping[str, int]) -> Component:
    if isinstance(component, list):
        return [_filled(one, values) for one in component]
    if not isinstance(component, dict):
        return component
    if component.get("strides") is not None:
        return {
            **component,
            "sizes": [_reduced(size, values) for size in component["sizes"]],
            "strides": [_reduced(stride, values) for stride in component["strides"]],
        }
    if "size" in component:
        size = _reduced(component["size"], values)
        return size if isinstance(size, int) else {"size": size}
    if "symbol" in component:
        name = component["symbol"]
        return float_text(values[name]) if name in values else component
    if isinstance(component.get("float"), dict):
        name = component["float"]["symbol"]
        return {"float": float_text(values[name])} if name in values else component
    return component


def _reduced(expression: Expression, values: Mapping[str, int]) -> Expression:
    if isinstance(expression, str):
        return values.get(expression, expression)
    if not isinstance(expression, list):
        return expression
    try:
        return evaluate(expression, values)
    except NoValueError:
        operator, *operands = expression
        return [operator, *(_reduced(one, values) for one in operands)]


def symbols_in(pattern: KernelKey) -> set[str]:
    """Return the names of ``pattern``'s symbols."""
    found: set[str] = set()
    for _, component in pattern.arguments:
        _collect(component, found)
    return found


def _collect(component: Component, into: set[str]) -> None:
    if isinstance(component, list):
        for one in component:
            _collect(one, into)
    elif isinstance(component, dict):
        if "sizes" in component:
            into |= {size for size in component["sizes"] if isinstance(size, str)}
            into |= {stride for stride in component["strides"] or () if isinstance(stride, str)}
        elif "symbol" in component:
            into.add(component["symbol"])
        elif isinstance(component.get("float"), dict):
            into.add(component["float"]["symbol"])


def expressions_in(pattern: KernelKey) -> Iterator[Expression]:
    """Give the sizes and strides of ``pattern`` that are symbols or expressions."""
    for _, component in pattern.arguments:
        yield from expressions(component)
        for one in component if isinstance(component, list) else [component]:
            if isinstance(one, dict) and "sizes" in one:
                for word in (*one["sizes"], *(one["strides"] or ())):
                    if not isinstance(word, int):
                        yield word


def is_pattern(key: KernelKey) -> bool:
    """Return whether ``key`` has symbols."""
    return bool(symbols_in(key))


def guard_texts(guards: Guards) -> list[str]:
    """Return the guards as people write them: first the ranges, then the conditions."""
    lines = []
    for name, (low, high) in sorted(guards.ranges.items()):
        if name.startswith("v"):  # Bits of numbers: for negative numbers, higher bits are lower.
            ends = sorted(float.fromhex(float_text(bits)) for bits in (low, high))
            lines.append(f"{ends[0]:.6g} <= {name} <= {ends[1]:.6g}")
        elif high >= _UNLIMITED:
            lines.append(f"{low} <= {name}")
        else:
            lines.append(f"{low} <= {name} <= {high}")
    return lines + [text(condition) for condition in guards.conditions]


def varied(families: Iterable[Mapping[str, int]]) -> set[str]:
    """Return the symbols whose values differ among calls, given each call's symbols."""
    seen: dict[str, int] = {}
    different: set[str] = set()
    for values in families:
        for name, value in values.items():
            if seen.setdefault(name, value) != value:
                different.add(name)
    return different


def float_text(bits: int) -> str:
    """Return the number with these bits, spelled as in a key."""
    (value,) = struct.unpack("=d", struct.pack("=q", bits))
    return float(value).hex()
