"""Instances of a pattern (keys that it gives with values for its symbols), and size classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from .._base.digest import Component
from .guards import (
    Expression,
    Guards,
)
from .kernel_key import KernelKey
from .pattern import with_values


def size_class(key: KernelKey) -> int:
    """Return a call's size class; a measurement of one call counts for all calls of its class.

    Calls of one class differ by less than four times in the number of elements of all tensors.
    """
    return sum(_numels(component) for _, component in key.arguments).bit_length() // 2


def in_size_class(pattern: KernelKey, size: int) -> list[Expression]:
    """Return the conditions under which an instance of ``pattern`` is of size class ``size``."""
    terms = [term for _, component in pattern.arguments for term in _numel_terms(component)]
    # A call without tensors, of a dynamic number, has no elements.
    total: Expression = 0 if not terms else terms[0] if len(terms) == 1 else ["+", *terms]
    least = 1 << (2 * size - 1) if size > 0 else 0
    return [["<=", least, total], ["<", total, 1 << (2 * size + 1)]]


def _numel_terms(component: Component) -> list[Expression]:
    if isinstance(component, list):
        return [term for one in component for term in _numel_terms(one)]
    if isinstance(component, dict) and "sizes" in component:
        sizes = component["sizes"]
        if len(sizes) < 2:
            return list(sizes) or [1]
        return [["*", *sizes]]
    return []


def _numels(component: Component) -> int:
    if isinstance(component, list):
        return sum(_numels(one) for one in component)
    if isinstance(component, dict) and "sizes" in component:
        return math.prod(component["sizes"])
    return 0


# A bit in the middle of a float64's fraction.
_OTHER_NUMBER = 1 << 50


_OTHER_SIZES: tuple[Callable[[int], int], ...] = (
    lambda size: 2,
    lambda size: 3,
    lambda size: size // 2,
    lambda size: size - 1,
    lambda size: 2 * size + 1,
)


def instances(
    pattern: KernelKey, guards: Guards, values: Mapping[str, int], *, most_elements: int
) -> list[KernelKey]:
    """Return some other calls that a pattern serves, smaller and larger than a known call.

    Args:
        pattern: The pattern.
        guards: The pattern's guards.
        values: The values of the pattern's symbols in the known call.
        most_elements: Most elements that a returned call has in all its tensors.
    """
    sizes = size_symbols(pattern)
    numbers = {name for name in values if name.startswith("v")}
    found: list[KernelKey] = []
    for choose in _OTHER_SIZES:
        # Strides keep their values, because another stride may make elements overlap.
        chosen = {
            name: choose(n) if name in sizes else n ^ _OTHER_NUMBER if name in numbers else n
            for name, n in values.items()
        }
        has_strides = len(sizes) + len(numbers) < len(values)
        if has_strides and any(chosen[name] > values[name] for name in sizes):
            continue
        key = with_values(pattern, chosen)
        elements = sum(_numels(component) for _, component in key.arguments)
        is_new = key not in found and chosen != values
        if is_new and elements <= most_elements and guards.hold(chosen):
            found.append(key)
    return found


def with_ones(guards: Guards, names: Iterable[str], wrong: Iterable[Sequence[str]] = ()) -> Guards:
    """Return guards that let these symbols be 1, but not all of a ``wrong`` group at once."""
    ranges = dict(guards.ranges)
    for name in names:
        ranges[name] = (1, ranges[name][1])
    refused = [["not", ["and", *(["==", name, 1] for name in group)]] for group in wrong]
    return Guards(ranges, (*guards.conditions, *refused))


def size_symbols(pattern: KernelKey) -> set[str]:
    """Return the symbols that stand for the size of a dimension."""
    found: set[str] = set()
    for _, component in pattern.arguments:
        for one in component if isinstance(component, list) else [component]:
            if isinstance(one, dict) and "sizes" in one:
                found |= {size for size in one["sizes"] if isinstance(size, str)}
    return found
