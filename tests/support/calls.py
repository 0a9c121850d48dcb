"""Calls of any registered op: valid values for each kind of argument, and what a call means.

``meaning`` is an account of a value that owes nothing to ``aoti_eager._keys.kernel_key``: two calls
mean the same exactly where the meanings of all their arguments are equal. The tests of the key hold
both spellings of it to this account.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from aoti_eager._base.op_names import find_overload
from aoti_eager._base.torch_compat.dispatcher import all_op_names
from aoti_eager._keys.schema import (
    Argument,
    Kind,
    OpSchema,
    op_schema,
)

# What no key can hold: calls with a required argument of these types always decline.
UNSUPPORTED_TYPES = {
    "Storage",
    "Stream",
    "List[__torch__.torch.classes.rnn.CellParamsBase]",
}


@functools.cache
def aten_schemas() -> tuple[OpSchema, ...]:
    """Return the schemas of all registered aten overloads."""
    names = sorted(name for name in all_op_names() if name.startswith("aten::"))
    return tuple(op_schema(find_overload(name)) for name in names)


@functools.cache
def keyable_schemas() -> tuple[OpSchema, ...]:
    """Return the schemas whose calls a key can hold."""
    return tuple(
        schema
        for schema in aten_schemas()
        if not any(a.kind is Kind.UNSUPPORTED and not a.optional for a in schema.arguments)
    )


# --- what a value means --------------------------------------------------------------------------


def meaning(argument: Argument, value: Any) -> Hashable:
    """Return something equal for two values of ``argument`` exactly if they mean the same."""
    return None if value is None else _MEANINGS[argument.kind](value)


def call_meaning(schema: OpSchema, values: Sequence[Any]) -> Hashable:
    """Return the meanings of all bound values of a call."""
    return tuple(map(meaning, schema.arguments, values))


def _tensor(value: Any) -> Hashable:
    if value is None or not isinstance(value, torch.Tensor):
        return type(value)  # Of a number in a Tensor slot only the kind matters.
    shape, strides = tuple(value.shape), value.stride()
    return (value.dtype, str(value.device), shape, strides, value.is_conj(), value.is_neg())


def _float(value: float) -> Hashable:
    return "nan" if value != value else struct.pack("d", value)


def _scalar(value: Any) -> Hashable:
    if isinstance(value, complex):
        return complex, _float(value.real), _float(value.imag)
    return type(value), _float(value) if isinstance(value, float) else value


def _each(one: Callable[[Any], Hashable]) -> Callable[[Sequence[Any]], Hashable]:
    return lambda values: tuple(map(one, values))


_MEANINGS: dict[Kind, Callable[[Any], Hashable]] = {
    Kind.TENSOR: _tensor,
    Kind.TENSORS: _each(_tensor),
    Kind.OPTIONAL_TENSORS: _each(_tensor),
    Kind.SCALAR: _scalar,
    Kind.SCALARS: _each(_scalar),
    Kind.INT: int,
    Kind.INTS: _each(int),
    Kind.FLOAT: _float,
    Kind.FLOATS: _each(_float),
    Kind.BOOL: bool,
    Kind.BOOLS: _each(bool),
    Kind.STR: str,
    Kind.DTYPE: str,
    Kind.LAYOUT: str,
    Kind.DEVICE: str,
    Kind.MEMORY_FORMAT: str,
}


# --- tensors -------------------------------------------------------------------------------------


def tensor(
    sizes: Sequence[int] = (2, 3),
    strides: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    conj: bool = False,
    neg: bool = False,
    offset: int = 0,
    requires_grad: bool = False,
) -> torch.Tensor:
    """Return a new tensor of that metadata; the strides default to contiguous ones.

    A negated tensor must be real: it is the imaginary part of a conjugated one, so its strides
    are even.
    """
    if strides is None:
        strides = torch.empty(sizes, device="meta").stride()
        strides = tuple(2 * stride for stride in strides) if neg else strides
    if neg:
        base_strides = [stride // 2 for stride in strides]
        made = tensor(sizes, base_strides, torch.complex64, conj=True, offset=offset).imag
    elif offset:
        extent = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        base = torch.zeros(max(extent, 0) + 1 + offset, dtype=dtype)
        made = base.as_strided(sizes, strides, offset)
    else:
        made = torch.empty_strided(sizes, strides, dtype=dtype)
    made = made.conj() if conj else made
    return made.detach().requires_grad_() if requires_grad else made


# Pairwise different in meaning, except the last two numbers. Made anew on every use.
TENSORS: tuple[Callable[[], Any], ...] = (
    tensor,
    lambda: tensor(dtype=torch.float64),
    lambda: tensor((3, 2)),
    lambda: tensor((2, 3), (1, 2)),
    lambda: tensor((2, 3), (0, 1)),
    lambda: tensor((2, 3), (6, 2)),
    lambda: tensor((2, 3), neg=True),
    lambda: tensor((2, 3), dtype=torch.complex64),
    lambda: tensor((2, 3), dtype=torch.complex64, conj=True),
    lambda: tensor(()),
    lambda: tensor((0, 3)),
)
NUMBERS_IN_TENSOR_SLOTS: tuple[Any, ...] = (True, 1, 1.0, 1j, 2, 2.0)
SCALARS: tuple[Any, ...] = (
    *(False, True, 0, 1, 2**40, -(2**63), 0.0, -0.0, 1.0, 1.5, 1e300),
    *(float("nan"), float("inf"), float("-inf"), 0j, complex(0.0, -0.0), 1 + 0j, 2**40 + 0j),
    *(complex(float("nan"), 0.0), complex(0.0, float("nan"))),
)
FLOATS: tuple[float, ...] = tuple(value for value in SCALARS if isinstance(value, float))
INTS: tuple[int, ...] = (0, 1, -1, 2, 2**40, -(2**63))
LISTS_OF_INTS: tuple[list[int], ...] = ([], [0], [1], [-1], [0, 0], [0, 1], [1, 0], [2**40])
DTYPES: tuple[torch.dtype, ...] = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.uint8, torch.bool, torch.complex64, torch.complex128),
)
LAYOUTS = (torch.strided, torch.sparse_coo, torch.sparse_csr)
DEVICES = tuple(map(torch.device, ("cpu", "meta", "cuda", "cuda:0", "cuda:1")))
MEMORY_FORMATS = (
    torch.contiguous_format,
    torch.preserve_format,
    torch.channels_last,
    torch.channels_last_3d,
)


def examples(argument: Argument) -> list[Any]:
    """Return fresh values for ``argument``, among them every one that was ever mixed up."""
    values = _examples(argument.kind)
    if argument.optional or argument.kind is Kind.TENSOR:
        values.append(None)  # For a required tensor: an undefined one.
    return values


def _examples(kind: Kind) -> list[Any]:
    if kind is Kind.TENSOR:
        return [*(make() for make in TENSORS), *NUMBERS_IN_TENSOR_SLOTS]
    if kind is Kind.TENSORS:
        return [[], [tensor()], [tensor(), tensor()], [tensor(), tensor((3,))], [tensor((3,))]]
    if kind is Kind.OPTIONAL_TENSORS:
        return [[], [None], [tensor()], [None, tensor()], [tensor(), None], [None, None]]
    lists: dict[Kind, Sequence[Any]] = {
        Kind.SCALAR: SCALARS,
        Kind.SCALARS: [[], *([value] for value in SCALARS), [1, 1.0], [1.0, 1]],
        Kind.INT: INTS,
        Kind.INTS: LISTS_OF_INTS,
        Kind.FLOAT: FLOATS,
        Kind.FLOATS: [[], *([value] for value in FLOATS), [0.0, -0.0], [-0.0, 0.0]],
        Kind.BOOL: [False, True],
        Kind.BOOLS: [[], [False], [True], [False, True], [True, False]],
        Kind.STR: ["", "mean", "sum", "None"],
        Kind.DTYPE: DTYPES,
        Kind.LAYOUT: LAYOUTS,
        Kind.DEVICE: DEVICES,
        Kind.MEMORY_FORMAT: MEMORY_FORMATS,
    }
    return list(lists.get(kind, ()))


# --- strategies ----------------------------------------------------------------------------------

dtypes = st.sampled_from(DTYPES)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Return a tensor of up to four dimensions in any of the layouts that eager code makes."""
    sizes = draw(st.lists(st.integers(0, 3), max_size=4))
    dtype = draw(dtypes)
    base = tensor(sizes, dtype=dtype, offset=draw(st.integers(0, 2)))
    layout = draw(
        st.sampled_from(["plain", "permuted", "expanded", "sliced", "channels", "neg", "conj"])
    )
    if layout == "permuted":
        base = base.permute(draw(st.permutations(range(base.dim()))))
    elif layout == "expanded":
        base = base.unsqueeze(0).expand(2, *base.shape)
    elif layout == "sliced" and base.dim():
        base = base[..., :: draw(st.integers(1, 2))]
    elif layout == "channels" and base.dim() == 4:
        base = base.to(memory_format=torch.channels_last)
    elif layout == "neg":
        base = tensor(sizes, neg=True)
    elif layout == "conj" and dtype.is_complex:
        base = base.conj()
    if draw(st.booleans()) and (base.is_floating_point() or base.is_complex()):
        base = base.detach().requires_grad_()
    return base


numbers = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-2, 2),
    st.floats(),
    st.complex_numbers(),
    st.sampled_from(SCALARS),
)
ints = st.one_of(st.sampled_from(INTS), st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))
floats = st.one_of(st.sampled_from(FLOATS), st.floats())
tensor_or_number = st.one_of(tensors(), tensors(), numbers)

_STRATEGIES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TENSOR: tensor_or_number,
    Kind.TENSORS: st.lists(tensors(), max_size=3),
    Kind.OPTIONAL_TENSORS: st.lists(st.none() | tensors(), max_size=3),
    Kind.SCALAR: numbers,
    Kind.SCALARS: st.lists(numbers, max_size=3),
    Kind.INT: ints,
    Kind.INTS: st.lists(ints, max_size=3),
    Kind.FLOAT: floats,
    Kind.FLOATS: st.lists(floats, max_size=3),
    Kind.BOOL: st.booleans(),
    Kind.BOOLS: st.lists(st.booleans(), max_size=3),
    Kind.STR: st.sampled_from(["", "mean", "sum", "none", "tanh"]) | st.text(max_size=5),
    Kind.DTYPE: dtypes,
    Kind.LAYOUT: st.sampled_from(LAYOUTS),
    Kind.DEVICE: st.sampled_from(DEVICES),
    Kind.MEMORY_FORMAT: st.sampled_from(MEMORY_FORMATS),
}

schemas = st.deferred(lambda: st.sampled_from(keyable_schemas()))


def argument_values(argument: Argument) -> st.SearchStrategy[Any]:
    """Return a strategy of the values that ``argument`` takes, its default among them."""
    values = _STRATEGIES.get(argument.kind)
    choices = [] if values is None else [values]
    if argument.optional or values is None:
        choices.append(st.none())
    if argument.has_default:
        choices.append(st.just(argument.default))
    return st.one_of(choices)


def bound_values(schema: OpSchema) -> st.SearchStrategy[tuple[Any, ...]]:
    """Return a strategy of the values of one call, in schema order."""
    return st.tuples(*map(argument_values, schema.arguments))


def fresh(value: Any) -> Any:
    """Return a value that means the same: other memory, data, offset and ``requires_grad``."""
    if isinstance(value, list | tuple):
        return type(value)(fresh(one) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_neg():
        return tensor(value.shape, value.stride(), neg=True)
    return tensor(
        value.shape,
        value.stride(),
        value.dtype,
        conj=value.is_conj(),
        offset=3,
        requires_grad=not value.requires_grad and (value.is_floating_point() or value.is_complex()),
    )


@st.composite
def spellings(
    draw: st.DrawFn, schema: OpSchema, values: Sequence[Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and keyword arguments that spell the call with ``values``.

    Defaults are given or left out; what need not be positional is passed by name or by position.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_position = True
    for argument, value in zip(schema.arguments, values, strict=True):
        if is_default(argument, value) and draw(st.booleans()):
            by_position = False
        elif by_position and not argument.kwarg_only and draw(st.integers(0, 3)):
            args.append(value)
        else:
            by_position = False
            kwargs[argument.name] = value
    return args, kwargs


def as_pytorch_hands_over(
    schema: OpSchema, values: Sequence[Any], *, keep_defaults: bool = False
) -> tuple[list[Any], dict[str, Any]]:
    """Return the call as PyTorch hands it to a Python kernel.

    Keyword-only arguments come by name and all others by position; what equals its default is left
    out, positional ones from the end. With ``keep_defaults`` nothing is left out.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    pairs = list(zip(schema.arguments, values, strict=True))
    for argument, value in reversed(pairs):
        default = is_default(argument, value) and not keep_defaults
        if argument.kwarg_only:
            if not default:
                kwargs[argument.name] = value
        elif args or not default:
            args.insert(0, value)
    return args, kwargs


def is_default(argument: Argument, value: Any) -> bool:
    """Return whether ``value`` means what leaving ``argument`` out means."""
    return argument.has_default and meaning(argument, value) == meaning(argument, argument.default)
