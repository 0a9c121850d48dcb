"""The Python functions behind ops that this package or ``torch.library.custom_op`` defines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat.dispatcher import OpOverload
from .._keys.schema import qualified_name
from .description import PythonFunction, python_function

_functions: dict[str, PythonFunction] = {}


def define(
    library: torch.library.Library, name: str, schema: str, function: PythonFunction, **options: Any
) -> OpOverload:
    """Define an op in ``library`` whose calls run ``function``, and return its overload.

    Args:
        library: A library of the op's namespace, made by ``new_op_library``.
        name: Qualified name of the op.
        schema: The op's arguments and results, ``(Tensor x) -> Tensor``.
        function: The function behind the op, for keys.
        options: As for ``torch.library.Library.define``.
    """
    namespace, _, local = name.partition("::")
    library.define(local + schema, **options)  # type: ignore[no-untyped-call]
    _functions[name] = function
    overload: OpOverload = getattr(getattr(torch.ops, namespace), local).default
    return overload


def forget(name: str) -> None:
    """Forget the function of an op whose library is destroyed."""
    _functions.pop(name, None)


def function_of(op: OpOverload, dispatch_key: str) -> PythonFunction | None:
    """Return the Python function that ``op`` runs at ``dispatch_key``, or ``None``."""
    own = _functions.get(qualified_name(op))
    return own if own is not None else python_function(op, dispatch_key)


def tape_behind(op: Any) -> Callable[..., list[Tensor]] | None:
    """Return the replay of the tape behind a region's op; ``None`` for anything else.

    A dispatch mode sees the calls of a replay, and of the op nothing but the op.
    """
    function = _functions.get(qualified_name(op)) if isinstance(op, OpOverload) else None
    return getattr(function, "replay", None)
