"""The user's marks: which sizes and numbers vary from call to call, and which do not."""

from __future__ import annotations

import threading

from .._base.op_names import find_overload, find_packet, overloads_of
from .._base.torch_compat.dispatcher import OpOverload, raw_schema
from .._keys.pattern import Family
from ..errors import RegistrationError

# op (with or without overload) -> argument -> dimension, or None for all -> whether it varies.
_marks: dict[str, dict[str, dict[int | None, bool]]] = {}
_lock = threading.RLock()


def mark_dynamic(op: str, argument: str, dim: int | None = None) -> None:
    """Let a kernel of ``op`` serve all values of a size or a number, from the first call on.

    A size or number that the compiler cannot leave open stays static. Kernels of an op that is a
    Python function, such as one of ``@custom_op``, are always static: each serves calls of one
    size.

    Args:
        op: Qualified name, ``"aten::mul.Tensor"``, or ``"aten::mul"`` for all overloads.
        argument: Name of the argument in the op's schema.
        dim: A dimension of that tensor, counted from the front; ``None`` for all. Always ``None``
            for a number.

    Raises:
        UnknownOpError: There is no such op.
        RegistrationError: The op has no such argument, or ``dim`` is no dimension.
    """
    _mark(op, argument, dim, True)


def mark_static(op: str, argument: str, dim: int | None = None) -> None:
    """Make one kernel of ``op`` for each value of a size or a number, from the first call on.

    Args:
        op: Qualified name, ``"aten::mul.Tensor"``, or ``"aten::mul"`` for all overloads.
        argument: Name of the argument in the op's schema.
        dim: A dimension of that tensor, counted from the front; ``None`` for all. Always ``None``
            for a number.

    Raises:
        UnknownOpError: There is no such op.
        RegistrationError: The op has no such argument, or ``dim`` is no dimension.
    """
    _mark(op, argument, dim, False)


def _mark(op: str, argument: str, dim: int | None, varies: bool) -> None:
    if not isinstance(op, str):
        raise RegistrationError(f'got {op!r} for an op: its name is wanted, "aten::mul.Tensor"')
    known = {one.name for found in _overloads(op) for one in raw_schema(found).arguments}
    if argument not in known:
        raise RegistrationError(
            f"{op}: has no argument {argument!r}; it has {', '.join(sorted(known))}"
        )
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 0):
        raise RegistrationError(f"{op}: {argument}: got dim {dim!r}; wants a dimension from 0 on")
    with _lock:
        _marks.setdefault(op, {}).setdefault(argument, {})[dim] = varies


def _overloads(op: str) -> list[OpOverload]:
    if "." in op:
        return [find_overload(op)]
    return overloads_of(find_packet(op))


def unmark(op: str) -> None:
    """Forget the marks that ``mark_dynamic`` and ``mark_static`` set for ``op``.

    Args:
        op: The name that was given to them; for a name without marks, nothing happens.
    """
    with _lock:
        _marks.pop(op, None)


def marked(op: str, family: Family) -> dict[str, bool]:
    """Return for each marked symbol whether it varies."""
    if not _marks:
        return {}
    with _lock:
        said = {**_marks.get(op.partition(".")[0], {}), **_marks.get(op, {})}
    found: dict[str, bool] = {}
    for name, meaning in family.meanings.items():
        argument = meaning.partition(".")[0].partition("[")[0]
        dims = said.get(argument, {})
        dim = family.places[name][1] if name in family.places else None
        varies = dims.get(dim, dims.get(None))
        if varies is not None:
            found[name] = varies
    return found
