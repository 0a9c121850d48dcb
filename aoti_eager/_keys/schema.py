"""Binds a call to its op's schema: argument names, kinds, defaults, and mutated arguments.

The kinds are the type names of PyTorch's schema language; whether an argument is optional is kept
apart. Everything here is pure: no tensor is created, and only the schema is read.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .._base.data_class import dataclass, field
from .._base.torch_compat.dispatcher import OpOverload, parse_schema, raw_schema


class Kind(enum.Enum):
    """The values that an argument takes, apart from ``None``."""

    TENSOR = "Tensor"
    TENSORS = "Tensor[]"
    OPTIONAL_TENSORS = "Tensor?[]"
    SCALAR = "Scalar"
    SCALARS = "Scalar[]"
    INT = "int"
    INTS = "int[]"
    FLOAT = "float"
    FLOATS = "float[]"
    BOOL = "bool"
    BOOLS = "bool[]"
    STR = "str"
    DTYPE = "dtype"
    LAYOUT = "layout"
    DEVICE = "device"
    MEMORY_FORMAT = "memory_format"
    GENERATOR = "Generator"
    UNSUPPORTED = "unsupported"


_KINDS = {
    "Tensor": Kind.TENSOR,
    "List[Tensor]": Kind.TENSORS,
    "List[Optional[Tensor]]": Kind.OPTIONAL_TENSORS,
    "number": Kind.SCALAR,
    "List[number]": Kind.SCALARS,
    "int": Kind.INT,
    "SymInt": Kind.INT,
    "List[int]": Kind.INTS,
    "List[SymInt]": Kind.INTS,
    "float": Kind.FLOAT,
    "List[float]": Kind.FLOATS,
    "bool": Kind.BOOL,
    "List[bool]": Kind.BOOLS,
    "str": Kind.STR,
    "ScalarType": Kind.DTYPE,
    "Layout": Kind.LAYOUT,
    "Device": Kind.DEVICE,
    "MemoryFormat": Kind.MEMORY_FORMAT,
    "Generator": Kind.GENERATOR,
}

TENSOR_KINDS = frozenset({Kind.TENSOR, Kind.TENSORS, Kind.OPTIONAL_TENSORS})

# TorchScript stores these three enums as ints, and gives a schema's default as an int.
_LAYOUTS = {0: torch.strided}
_MEMORY_FORMATS = {
    0: torch.contiguous_format,
    1: torch.preserve_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
}
_DTYPES = {4: torch.int64, 6: torch.float32, 7: torch.float64, 11: torch.bool}


_ENUMS: dict[Kind, Mapping[int, Any]] = {
    Kind.LAYOUT: _LAYOUTS,
    Kind.MEMORY_FORMAT: _MEMORY_FORMATS,
    Kind.DTYPE: _DTYPES,
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a schema.

    ``mutated`` says whether the op writes to the argument (``Tensor(a!)``). ``type_name`` is the
    schema's own spelling, for messages. ``is_size`` says whether the argument is a ``SymInt`` or a
    list of them, which may be sizes.
    """

    name: str
    kind: Kind
    optional: bool
    has_default: bool
    default: Any = field(hash=False)  # May be a list.
    kwarg_only: bool
    mutated: bool
    type_name: str
    is_size: bool = False

    @property
    def is_tensor(self) -> bool:
        """Return whether the argument holds tensors: one, a list, or optional ones."""
        return self.kind in TENSOR_KINDS


@dataclass(frozen=True, slots=True)
class Return:
    """One result of a schema.

    ``argument`` names the mutated argument that is returned (in-place and ``out=``). ``is_view``
    says whether, by the schema, the result aliases an argument without writing to it.
    """

    kind: Kind
    argument: str | None
    is_view: bool
    type_name: str


@dataclass(frozen=True, slots=True)
class OpSchema:
    """The schema of one overload, with what this package needs of it.

    ``op`` is the qualified name with its overload, ``aten::add.Tensor``; a default overload has no
    suffix.
    """

    op: str
    arguments: tuple[Argument, ...]
    returns: tuple[Return, ...]

    @property
    def mutated(self) -> tuple[int, ...]:
        """Return the positions of the arguments that the op writes to."""
        return tuple(i for i, argument in enumerate(self.arguments) if argument.mutated)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return one value for each argument, in schema order, defaults filled in.

        Raises:
            TypeError: Too many values, an unknown name, a name given twice, or a required argument
                missing.
        """
        positional = sum(not argument.kwarg_only for argument in self.arguments)
        if len(args) > positional:
            raise TypeError(f"{self.op}: takes {positional} positional arguments, got {len(args)}")
        values = list(args)
        used = 0
        for position, argument in enumerate(self.arguments):
            if argument.name in kwargs:
                used += 1
                if position < len(args):
                    raise TypeError(f"{self.op}: argument {argument.name!r} is given twice")
                values.append(kwargs[argument.name])
            elif position >= len(args):
                if not argument.has_default:
                    raise TypeError(f"{self.op}: argument {argument.name!r} is missing")
                values.append(argument.default)
        if used != len(kwargs):
            names = {argument.name for argument in self.arguments}
            unknown = sorted(set(kwargs) - names)
            raise TypeError(f"{self.op}: no argument is named {', '.join(unknown)}")
        return tuple(values)


@functools.cache
def op_schema(op: OpOverload) -> OpSchema:
    """Return the schema of the overload ``op``."""
    return _op_schema(raw_schema(op))


def parsed_schema(text: str) -> OpSchema:
    """Return the schema that ``text`` spells; its op need not exist in this process."""
    return _op_schema(parse_schema(text))


def _op_schema(schema: Any) -> OpSchema:
    arguments = tuple(_argument(argument) for argument in schema.arguments)
    mutated = {
        name: argument.name
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for name in argument.alias_info.before_set
    }
    return OpSchema(
        op=_name(schema),
        arguments=arguments,
        returns=tuple(_return(result, mutated) for result in schema.returns),
    )


def qualified_name(op: OpOverload) -> str:
    """Return ``namespace::name.overload``, without the suffix for a default overload."""
    return _name(raw_schema(op))


def _name(schema: Any) -> str:
    return f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name


def _argument(argument: Any) -> Argument:
    kind, optional = _kind(str(argument.real_type))
    has_default = argument.has_default_value()
    return Argument(
        name=argument.name,
        kind=kind,
        optional=optional,
        has_default=has_default,
        default=_default(kind, argument.default_value) if has_default else None,
        kwarg_only=argument.kwarg_only,
        mutated=argument.alias_info is not None and argument.alias_info.is_write,
        type_name=str(argument.real_type),
        is_size="SymInt" in argument.real_type.str(),
    )


def _return(result: Any, mutated: Mapping[str, str]) -> Return:
    kind, _ = _kind(str(result.real_type))
    alias = result.alias_info
    if alias is None:
        return Return(kind, None, False, str(result.real_type))
    names = [mutated[name] for name in alias.before_set if name in mutated]
    argument = names[0] if alias.is_write and len(names) == 1 else None
    return Return(kind, argument, argument is None, str(result.real_type))


def _kind(type_name: str) -> tuple[Kind, bool]:
    optional = type_name.startswith("Optional[")
    inner = type_name[len("Optional[") : -1] if optional else type_name
    return _KINDS.get(inner, Kind.UNSUPPORTED), optional


def _default(kind: Kind, value: Any) -> Any:
    """Return a schema's default in the form in which a kernel would receive it."""
    if value is None:
        return None
    table = _ENUMS.get(kind)
    return table[value] if table is not None and isinstance(value, int) else value
