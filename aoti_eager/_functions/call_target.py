"""What a compile or a trial calls: an op that this process has, or a user's function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._base.op_names import find_overload
from .._keys.schema import OpSchema, op_schema, parsed_schema
from ..errors import CompileError, UnknownOpError
from .rebuilt import RebuiltFunction


def call_target(name: str, function: Mapping[str, Any] | None, schema: str) -> tuple[Any, OpSchema]:
    """Return what to call for the op ``name``, and its schema.

    Args:
        name: Qualified name of the op.
        function: The user's function as data; ``None`` for an op that every process has.
        schema: The schema of the function's op, as text.

    Raises:
        CompileError: The op is not defined here.
    """
    if function is not None:
        return RebuiltFunction(function), parsed_schema(schema)
    try:
        op = find_overload(name)
    except UnknownOpError as error:
        raise CompileError(
            "op_not_in_worker", f"{name} is not defined in the compile worker", remember=False
        ) from error
    return op, op_schema(op)
