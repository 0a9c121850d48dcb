"""Guards of a dynamic kernel: a call's values for them, and the sizes of 1 that a trial adds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from .._keys.guards import Guards, match
from .._keys.kernel_key import KernelKey
from .._keys.key_words import key_words, pattern_words
from .._keys.pattern import is_pattern, with_values
from .._keys.pattern_instances import size_symbols, with_ones
from .._keys.schema import OpSchema
from ..errors import CompileError

# The most sizes of 1 in one trial of a dynamic specialisation; it serves no calls with more.
_MOST_ONES = 3


def values_of_symbols(
    schema: OpSchema, key: KernelKey, pattern: KernelKey, guards: Guards
) -> dict[str, int]:
    """Return the values of a pattern's symbols in the call that it was compiled for.

    Raises:
        CompileError: The pattern has no symbols, or does not serve that call.
    """
    if not is_pattern(pattern):
        message = "the code depends on each of the sizes"
        raise CompileError("not_dynamic", message, remember=True)
    words, general = key_words(schema, key), pattern_words(schema, pattern)
    values = None if words is None or general is None else match(words, general, guards)
    if values is None:
        message = "its guards do not let the call pass that it is for"
        raise CompileError("not_dynamic", message, remember=True)
    return values


def relaxed_guards(
    pattern: KernelKey,
    guards: Guards,
    values: Mapping[str, int],
    was_compared: Callable[[KernelKey], bool],
) -> Guards:
    """Return the guards, extended by sizes of 1 where a trial found them right.

    The compiler assumes that no size is 1: broadcasting is another graph.

    Args:
        pattern: The calls that the kernel serves.
        guards: The conditions that the compiler has set.
        values: The symbols' values in the call that the kernel was compiled for.
        was_compared: Tries the kernel on a call; returns whether anything was compared.
    """

    def is_right(names: Sequence[str]) -> bool:
        """Return whether the code was right with all of these symbols at 1."""
        ones = {**values, **dict.fromkeys(names, 1)}
        if len(names) > _MOST_ONES or not with_ones(guards, names).hold(ones):
            return False
        try:
            return was_compared(with_values(pattern, ones))
        except CompileError as error:
            if error.reason != "mismatch":
                raise
            return False

    try:
        passed = [name for name in sorted(size_symbols(pattern)) if is_right([name])]
        # In eager, a tensor with two sizes of 1 may have other strides than one with a single size
        # of 1.
        wrong: list[tuple[str, ...]] = []
        for count in range(2, len(passed) + 1):
            for names in itertools.combinations(passed, count):
                is_known = any(set(one) <= set(names) for one in wrong)
                if not is_known and not is_right(names):
                    wrong.append(names)
    except CompileError:
        return guards  # A size of 1 may be out of bounds.
    return with_ones(guards, passed, wrong)
