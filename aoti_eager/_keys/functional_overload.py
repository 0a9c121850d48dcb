"""Finds the functional overload that an in-place, out= or _foreach_ overload computes like."""

from __future__ import annotations

import functools

from .._base.op_names import find_overload, overloads_of_name
from .schema import OpSchema, op_schema

_FOREACH = "_foreach_"

# A ``_foreach_`` op names its overloads by the kind of its second operand. For each such name, the
# names of the overloads that take one tensor of each list, the likeliest first.
_OF_ONE = {
    "List": ("Tensor", "Tensor_Tensor", "default"),
    # Before ``Scalar``: ``pow.Scalar`` is a number to the power of a tensor.
    "Scalar": ("Tensor_Scalar", "Scalar", "default"),
    "ScalarList": ("Tensor_Scalar", "Scalar", "default"),
    "Tensor": ("Tensor", "default"),
    "ScalarAndTensor": ("Scalar", "default"),
    "default": ("default", "Tensor", "Scalar"),
}
# ``_foreach_`` ops whose op of one tensor has another name.
_BASES = {"norm": "linalg_vector_norm"}

# Arguments that say how and where a result is stored.
_OF_RESULT = frozenset({"dtype", "layout", "device", "pin_memory", "memory_format"})


@functools.cache
def functional_overload(name: str) -> str:
    """Return the qualified name of the functional overload with the code of ``name``.

    ``aten::mul_.Tensor``, ``aten::mul.out`` and ``aten::_foreach_mul.List`` give
    ``aten::mul.Tensor``. A functional overload gives itself, and so does an overload for which no
    functional one is found.

    Args:
        name: Qualified name of an overload, ``aten::mul_.Tensor``.

    Raises:
        UnknownOpError: There is no such op.
    """
    overload = find_overload(name)
    schema = op_schema(overload)
    namespace, _, rest = name.partition("::")
    base, _, kind = rest.partition(".")
    if schema.mutated:
        twin = _twin(schema, namespace, base)
        if twin is None:
            return name
        base, _, kind = twin.partition("::")[2].partition(".")
        name = twin
    if base.startswith(_FOREACH):
        return _of_one_tensor(namespace, base.removeprefix(_FOREACH), kind or "default") or name
    return name


def _twin(schema: OpSchema, namespace: str, base: str) -> str | None:
    """Return the overload with the same operands that returns what ``schema``'s op writes."""
    out = frozenset(one.name for one in schema.arguments if one.mutated and one.kwarg_only)
    found = [
        op_schema(overload)
        for candidate in ((base,) if out else _bases(base))
        for overload in overloads_of_name(f"{namespace}::{candidate}")
    ]
    if out:
        # Both overloads may write to running statistics.
        found = [one for one in found if not any(a.mutated and a.kwarg_only for a in one.arguments)]
    else:
        found = [one for one in found if not one.mutated]
    # An out= overload of a factory takes neither dtype nor device: its out argument has them.
    for ignored in (frozenset[str](), _OF_RESULT):
        wanted = _signature(schema, ignored | out)
        for other in found:
            if _signature(other, ignored) == wanted:
                return other.op
    return None


def _bases(base: str) -> tuple[str, ...]:
    """Return the names that the functional op of an in-place op may have."""
    if base.startswith("__i") and base.endswith("__"):
        return (f"__{base.removeprefix('__i')}",)  # Python's operators: __iand__ -> __and__.
    return (base.removesuffix("_"), base)


def _signature(schema: OpSchema, ignored: frozenset[str]) -> list[tuple[str, str]]:
    return [(one.name, one.type_name) for one in schema.arguments if one.name not in ignored]


def _of_one_tensor(namespace: str, base: str, kind: str) -> str | None:
    functional: dict[str, str] = {}
    for overload in overloads_of_name(f"{namespace}::{_BASES.get(base, base)}"):
        schema = op_schema(overload)
        if not schema.mutated:
            functional[schema.op.partition(".")[2] or "default"] = schema.op
    for candidate in _OF_ONE.get(kind, (kind, "default")):
        if candidate in functional:
            return functional[candidate]
    return None
