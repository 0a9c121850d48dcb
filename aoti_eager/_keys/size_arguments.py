"""``SymInt`` and ``SymInt[]`` arguments that repeat a tensor's sizes. Pure.

``native_group_norm`` takes its input's sizes a second time, ``native_layer_norm`` the width. In a
pattern, such an int is the size's symbol, or the product of several sizes' symbols, so that calls
of many sizes share a kernel; all other ints keep their values. In a schema, ``SymInt`` marks the
ints that may be sizes; plain ints are dimensions and flags.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .._base.data_class import dataclass
from .._base.digest import Component
from .guards import Expression
from .schema import Kind, OpSchema


@dataclass(frozen=True, slots=True)
class TensorSizes:
    """The sizes of one tensor of a call, and the symbols that the family has in their place."""

    values: Sequence[int]
    symbols: Sequence[Expression]


def with_sizes(
    schema: OpSchema, arguments: Sequence[tuple[str, Component]], tensors: Sequence[TensorSizes]
) -> tuple[tuple[str, Component], ...]:
    """Return the arguments of a family with ``{"size": expression}`` for ints that repeat sizes."""
    found: list[tuple[str, Component]] = []
    ints = 0
    for argument, (name, component) in zip(schema.arguments, arguments, strict=True):
        if not argument.is_size or component is None:
            found.append((name, component))
        elif argument.kind is Kind.INT:
            found.append((name, _general(component, ints, 0, tensors)))
            ints += 1
        else:
            missing = max((len(one.values) for one in tensors), default=0) - len(component)
            general = [_general(one, i, missing, tensors) for i, one in enumerate(component)]
            found.append((name, general))
    return tuple(found)


def _general(value: int, place: int, missing: int, tensors: Sequence[TensorSizes]) -> Component:
    """Return what an int stands for; a size in the int's own place wins over any other size."""
    if value < 2:
        return value
    for candidate, expression in _candidates(place, missing, tensors):
        if candidate == value:
            return {"size": expression}
    return value


def _candidates(
    place: int, missing: int, tensors: Sequence[TensorSizes]
) -> Iterator[tuple[int, Expression]]:
    for tensor in tensors:
        dims = range(len(tensor.values))
        preferred = [dim for dim in (place + missing, place) if dim in dims]
        for dim in dict.fromkeys((*preferred, *dims)):
            yield tensor.values[dim], tensor.symbols[dim]
    # The product of several dimensions: pixels of an image, rows of a matrix.
    for tensor in tensors[:1]:
        count = len(tensor.values)
        for start in range(count):
            for end in range(count, start + 1, -1):
                symbols = [one for one in tensor.symbols[start:end] if one != 1]
                if len(symbols) > 1:
                    yield math.prod(tensor.values[start:end]), ["*", *symbols]


def size_arguments(arguments: Sequence[tuple[str, Component]]) -> dict[str, Component]:
    """Return the arguments that repeat sizes, by name."""
    return {name: component for name, component in arguments if any(expressions(component))}


def expressions(component: Component) -> Iterator[Expression]:
    """Give the expressions that stand for ints in an argument."""
    for one in component if isinstance(component, list) else [component]:
        if isinstance(one, dict) and "size" in one:
            yield one["size"]


def resolved(component: Component, value_of: Callable[[Expression], Any]) -> Any:
    """Return an argument with ``value_of`` applied to its expressions."""
    if isinstance(component, list):
        return [resolved(one, value_of) for one in component]
    if isinstance(component, dict):
        return value_of(component["size"])
    return component


def product(expression: Expression, sizes: Mapping[str, Any]) -> Any:
    """Return the value of a size or of a product of sizes; sizes may be symbolic ints."""
    if isinstance(expression, list):
        return math.prod(product(one, sizes) for one in expression[1:])
    return sizes[expression] if isinstance(expression, str) else expression
