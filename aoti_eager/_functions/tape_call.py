"""One call on a tape: an op, its arguments as components, and the places its tensors come from.

A component is spelled as in a key (``_keys.kernel_key``), except a tensor's, which is a *source*:

- ``{"input": i}``: the tape's input i;
- ``{"result": [call, place]}``: a tensor that an earlier call has returned. ``place`` counts the
  call's results, the tensors of a returned list one by one;
- ``{"number": component}``: a number in a Tensor slot, spelled as a Scalar;
- ``{"data": {"dtype", "sizes", "values"}}``: a small constant; its values are spelled as Scalars.

Pure: no tensor is created.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.data_class import dataclass
from .._base.digest import Component
from .._base.op_names import find_overload
from .._base.torch_compat.dispatcher import OpOverload
from .._keys.call_template import argument_value
from .._keys.kernel_key import argument_component, scalar_component
from .._keys.schema import Argument, Kind, OpSchema, op_schema
from ..errors import AotiEagerError, TapeError, UnknownOpError

# A constant of more elements is data, which no tape holds.
MOST_DATA = 64
# The longest list in an argument, and the last place in a call's results.
_MOST_LISTED = 10_000
_LONGEST_TEXT = 1_000

# The dtypes of a constant, and the kind of its values.
DATA_DTYPES = {
    "bool": "bool",
    **dict.fromkeys(("uint8", "int8", "int16", "int32", "int64"), "int"),
    **dict.fromkeys(("float16", "bfloat16", "float32", "float64"), "float"),
    **dict.fromkeys(("complex64", "complex128"), "complex"),
}


@dataclass(frozen=True, slots=True)
class TapeCall:
    """One call.

    Attributes:
        op: Qualified name with overload, ``aten::addmm``, as in ``KernelKey.op``.
        arguments: ``(name, component)`` in schema order; arguments that equal the schema's default
            are left out.
    """

    op: str
    arguments: tuple[tuple[str, Component], ...]

    def sources(self) -> Iterator[tuple[str, Component]]:
        """Give ``(argument, source)`` for each tensor, number and constant in a Tensor slot."""
        tensors = tensor_arguments(self.op)
        for name, component in self.arguments:
            if name in tensors:
                for one in component if isinstance(component, list) else [component]:
                    if one is not None:
                        yield name, one

    def with_sources(self, change: Callable[[Component], Component]) -> TapeCall:
        """Return the call with each source passed through ``change``."""
        tensors = tensor_arguments(self.op)

        def changed(name: str, component: Component) -> Component:
            if name not in tensors or component is None:
                return component
            if isinstance(component, list):
                return [None if one is None else change(one) for one in component]
            return change(component)

        return TapeCall(self.op, tuple((n, changed(n, c)) for n, c in self.arguments))


def schema_of(op: str) -> OpSchema:
    """Return the schema of the op with this qualified name; see ``overload_of``."""
    return op_schema(overload_of(op))


@functools.lru_cache(maxsize=4096)
def tensor_arguments(op: str) -> frozenset[str]:
    """Return the names of an op's arguments that are tensors or lists of tensors."""
    return frozenset(one.name for one in schema_of(op).arguments if one.is_tensor)


@functools.lru_cache(maxsize=4096)
def overload_of(op: str) -> OpOverload:
    """Return the overload with this qualified name.

    Raises:
        TapeError: This process has no such op.
    """
    try:
        return find_overload(op)
    except UnknownOpError as error:
        raise TapeError(f"a tape calls {op}, which this process does not have") from error


def tape_call(
    op: OpOverload, values: Sequence[Any], source: Callable[[Any], Component]
) -> TapeCall:
    """Return a call as it is written on a tape.

    Args:
        op: The overload.
        values: One value for each argument, in schema order (``OpSchema.bind``).
        source: Gives the source of a tensor, or of a recorded tensor.

    Raises:
        UnsupportedArgumentError: An argument has a type that no key can hold.
        TapeError: A tensor is missing where the op requires one.
    """
    schema = op_schema(op)
    pairs = []
    for argument, value in zip(schema.arguments, values, strict=True):
        if argument.is_tensor and value is not None:
            component = _tensor_sources(argument, value, source)
        else:
            component = argument_component(schema.op, argument, value)
        if component == {"undefined": True}:
            raise TapeError(f"{schema.op}: argument {argument.name!r} is an undefined tensor")
        pairs.append((argument.name, component))
    return without_defaults(TapeCall(schema.op, tuple(pairs)))


def _tensor_sources(
    argument: Argument, value: Any, source: Callable[[Any], Component]
) -> Component:
    def one(value: Any) -> Component:
        if value is None:
            return None
        is_number = isinstance(value, bool | int | float | complex)
        return {"number": scalar_component(value)} if is_number else source(value)

    return one(value) if argument.kind is Kind.TENSOR else [one(each) for each in value]


def data_source(tensor: Tensor) -> Component | None:
    """Return a small constant's source, its values spelled exactly; ``None`` for other tensors."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.numel() > MOST_DATA or dtype not in DATA_DTYPES or tensor.device.type != "cpu":
        return None
    if tensor.layout is not torch.strided or not tensor.is_contiguous():
        return None
    flat = tensor.resolve_conj().resolve_neg().reshape(-1).tolist()
    values = [scalar_component(value) for value in flat]
    return {"data": {"dtype": dtype, "sizes": list(tensor.shape), "values": values}}


def without_defaults(call: TapeCall) -> TapeCall:
    """Return the call without the arguments that equal the schema's defaults."""
    defaults = _defaults(call.op)
    kept = tuple(
        (name, component)
        for name, component in call.arguments
        if name not in defaults or defaults[name] != _spelled(component)
    )
    return TapeCall(call.op, kept)


@functools.lru_cache(maxsize=4096)
def _defaults(op: str) -> Mapping[str, str]:
    found = {}
    for argument in schema_of(op).arguments:
        if argument.has_default:
            found[argument.name] = _spelled(argument_component(op, argument, argument.default))
    return found


def _spelled(component: Component) -> str:
    # As JSON, because True equals 1 in Python.
    return json.dumps(component, sort_keys=True)


# --- reading a document ---------------------------------------------------------------------------


def call_from_document(values: Component, number: int, inputs: int) -> TapeCall:
    """Return the call that a document describes.

    Args:
        values: The call as JSON: ``[op, [[name, component], ...]]``.
        number: The call's place on the tape; its sources lie before that.
        inputs: The number of the tape's inputs.

    Raises:
        TapeError: The values describe no call of a tape.
    """
    where = f"call {number} of the tape"
    try:
        op, listed = values
        pairs = [(name, component) for name, component in listed]
    except (TypeError, ValueError):
        raise TapeError(f"{where} is not an op and its arguments") from None
    if not isinstance(op, str) or len(op) > _LONGEST_TEXT:
        raise TapeError(f"{where}: its op is no name")
    schema = schema_of(op)
    known = {argument.name: argument for argument in schema.arguments}
    names = [name for name, _ in pairs]
    if any(not isinstance(n, str) or n not in known for n in names):
        raise TapeError(f"{where}: {op} has no such argument")
    places = [list(known).index(name) for name in names]
    if places != sorted(set(places)):
        raise TapeError(f"{where}: the arguments of {op} are not in the schema's order")
    for argument in schema.arguments:
        if argument.name not in names and not argument.has_default:
            raise TapeError(f"{where}: {op} lacks its argument {argument.name!r}")
    for name, component in pairs:
        _check(known[name], component, f"{where}, {op}, argument {name!r}", number, inputs)
    return without_defaults(TapeCall(op, tuple(pairs)))


def check_source(source: Component, where: str, number: int, inputs: int) -> None:
    """Refuse what is no source of a tensor before call ``number``.

    Raises:
        TapeError: As said.
    """
    if not isinstance(source, dict) or len(source) != 1:
        raise TapeError(f"{where}: {_short(source)} is no source of a tensor")
    ((kind, value),) = source.items()
    if kind == "input" and _is_int(value) and 0 <= value < inputs:
        return
    if kind == "result" and isinstance(value, list) and [_is_int(n) for n in value] == [True] * 2:
        call, place = value
        if 0 <= call < number and 0 <= place < _MOST_LISTED:
            return
    if kind == "number" and _is_scalar(value):
        return
    if kind == "data" and _is_data(value):
        return
    raise TapeError(f"{where}: {_short(source)} is no source of a tensor there")


def _check(argument: Argument, component: Component, where: str, number: int, inputs: int) -> None:
    if component is None:
        if not argument.optional:
            raise TapeError(f"{where} is missing")
        return
    if argument.kind is Kind.TENSOR:
        check_source(component, where, number, inputs)
        return
    if argument.is_tensor:
        if not isinstance(component, list) or len(component) > _MOST_LISTED:
            raise TapeError(f"{where} is no list of tensors")
        for one in component:
            if one is not None or argument.kind is Kind.TENSORS:
                check_source(one, where, number, inputs)
        return
    if argument.kind in (Kind.UNSUPPORTED, Kind.GENERATOR):
        raise TapeError(f"{where} is {argument.type_name}, which no tape holds")
    if not _is_small(component) or not _is_spelled_value(argument, component):
        raise TapeError(f"{where}: {_short(component)} is no {argument.type_name}")


def _is_spelled_value(argument: Argument, component: Component) -> bool:
    """Return whether a component is exactly what a key spells for some value."""
    if argument.kind in (Kind.DTYPE, Kind.LAYOUT, Kind.MEMORY_FORMAT):
        kind = {Kind.DTYPE: torch.dtype, Kind.LAYOUT: torch.layout}.get(
            argument.kind, torch.memory_format
        )
        is_name = isinstance(component, str) and re.fullmatch(r"\w+", component) is not None
        return is_name and isinstance(getattr(torch, component, None), kind)
    try:
        value = argument_value(argument.kind, component)
        again = argument_component("", argument, value)
    except (AotiEagerError, TypeError, ValueError, KeyError, IndexError, RuntimeError):
        return False
    return _spelled(again) == _spelled(component)


def _is_small(component: Component) -> bool:
    text = isinstance(component, str) and len(component) > _LONGEST_TEXT
    return not text and not (isinstance(component, list) and len(component) > _MOST_LISTED)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_SCALAR = Argument("", Kind.SCALAR, False, False, None, False, False, "Scalar")


def _is_scalar(component: Component) -> bool:
    """Return whether a component spells a number, of 64 bits if it is an integer."""
    if not isinstance(component, dict) or len(component) != 1:
        return False
    ((kind, value),) = component.items()
    if kind == "int":
        return _is_int(value) and -(1 << 63) <= value < 1 << 63
    return kind in ("bool", "float", "complex") and _is_spelled_value(_SCALAR, component)


def _is_data(values: Component) -> bool:
    if not isinstance(values, dict) or values.keys() != {"dtype", "sizes", "values"}:
        return False
    kind = DATA_DTYPES.get(values["dtype"]) if isinstance(values["dtype"], str) else None
    sizes, flat = values["sizes"], values["values"]
    if kind is None or not isinstance(sizes, list) or not isinstance(flat, list):
        return False
    if len(sizes) > MOST_DATA or len(flat) > MOST_DATA or not all(map(_is_int, sizes)):
        return False
    numel = 1
    for size in sizes:
        numel *= size
    if any(size < 0 for size in sizes) or numel != len(flat):
        return False
    return all(_is_scalar(one) and kind in one for one in flat)


def _short(value: Component) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
