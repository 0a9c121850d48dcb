"""A call as text on the command line: ``aten::silu 'f32[8,8]'``."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.op_names import find_packet, overloads_of
from .._base.torch_compat.dispatcher import raw_schema
from .._store.entry_inputs import short_dtype
from ..errors import CallTextError

_DTYPES = {
    short_dtype(name): dtype
    for name in sorted(vars(torch))
    if isinstance(dtype := getattr(torch, name), torch.dtype) and str(dtype) == f"torch.{name}"
}
_TENSOR = re.compile(r"(\w+)\[([\d,\s]*)\](?:\{([\d,\s]*)\})?")
# What somebody means as a tensor: a dtype, and a bracket.
_MEANT = re.compile(r"[a-z]\w*\[")
_WRITE = "write f32[8,8], or with strides f32[8,8]{8,1}"

ARGUMENTS_HELP = (
    "tensors as 'f32[8,8]' or with strides 'f32[8,8]{1,8}', other values as in Python, keyword "
    "arguments as 'alpha=2'"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that tell a call."""
    parser.add_argument("op", help="aten::silu, or aten::add.Tensor")
    parser.add_argument("arguments", nargs="*", help=ARGUMENTS_HELP)


def call_arguments(texts: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and keyword arguments; tensors are uninitialised.

    Raises:
        CallTextError: A text is meant as a tensor, and is none.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if separator and name.isidentifier():
            kwargs[name] = _value(value)
        else:
            args.append(_value(text))
    return args, kwargs


def no_such_call(op: str) -> CallTextError:
    """Return the error for arguments that no overload of ``op`` takes, with what they take."""
    schemas = [f"  {raw_schema(one)}" for one in overloads_of(find_packet(op))]
    lines = "\n".join([f"{op}: PyTorch takes no such call; the overloads are", *schemas])
    return CallTextError(lines)


def _value(text: str) -> Any:
    stripped = text.strip()
    match = _TENSOR.fullmatch(stripped)
    if match is not None:
        return _tensor(text, match)
    if _MEANT.match(stripped):
        raise CallTextError(f"not a tensor: {text!r}; {_WRITE}")
    if text.startswith("torch."):
        found = getattr(torch, text.removeprefix("torch."), None)
        if found is None:
            raise CallTextError(f"{text}: torch has no such name")
        return found
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def _tensor(text: str, match: re.Match[str]) -> Tensor:
    if match[1] not in _DTYPES:
        raise CallTextError(
            f"not a tensor: {text!r}; there is no dtype {match[1]!r}, the dtypes are "
            f"{', '.join(_DTYPES)}"
        )
    sizes, strides = _ints(match[2]), match[3]
    try:
        if strides is None:
            return torch.empty(sizes, dtype=_DTYPES[match[1]])
        return torch.empty_strided(sizes, _ints(strides), dtype=_DTYPES[match[1]])
    except RuntimeError as error:
        raise CallTextError(f"not a tensor: {text!r}; {str(error).splitlines()[0]}") from error


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]
