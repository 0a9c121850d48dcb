"""What a compile or a trial calls: an op that this process has, or a user's function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._base.op_names import find_overload
from .._keys.schema import OpSchema, op_schema, parsed_schema
from ..errors import CompileError, TapeError, UnknownOpError
from .rebuilt import RebuiltFunction, RebuiltTape
from .tape import Tape
from .tape_rules import refusal


def call_target(name: str, function: Mapping[str, Any] | None, schema: str) -> tuple[Any, OpSchema]:
    """Return what to call for the op ``name``, and its schema.

    Args:
        name: Qualified name of the op.
        function: The user's function, or a region's tape, as data; ``None`` for an op that every
            process has.
        schema: The schema of the function's op, as text.

    Raises:
        CompileError: The op is not defined here, or no library may serve the tape.
    """
    if function is not None and is_tape(function):
        return _rebuilt_tape(function), parsed_schema(schema)
    if function is not None:
        return RebuiltFunction(function), parsed_schema(schema)
    try:
        op = find_overload(name)
    except UnknownOpError as error:
        raise CompileError(
            "op_not_in_worker", f"{name} is not defined in the compile worker", remember=False
        ) from error
    return op, op_schema(op)


def is_tape(function: Mapping[str, Any] | None) -> bool:
    """Return whether a function's document is a tape."""
    return function is not None and "tape" in function


def is_constant(function: Mapping[str, Any]) -> bool:
    """Return whether nothing that a function uses changes from call to call; see its document."""
    return is_tape(function) or bool(function["constant"])


def _rebuilt_tape(document: Mapping[str, Any]) -> RebuiltTape:
    try:
        tape = Tape.from_document(document)
    except TapeError as error:
        # Another process may have the ops that this one lacks.
        raise CompileError("op_not_in_worker", str(error), remember=False) from error
    refused = refusal(tape)
    if refused is not None:
        raise CompileError(*refused, remember=True)
    return RebuiltTape(tape)
