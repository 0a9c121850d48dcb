"""Reads the arguments of a region's call: its tensors, and everything else as a key.

Two calls with equal keys run the same code with tensors of the same metadata, as far as arguments
decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Values of these types are a part of the key.
_PLAIN = frozenset({bool, int, str, bytes, type(None)})
_TORCH_VALUES = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_TENSORS = frozenset({Tensor, torch.nn.Parameter})
# So deep are lists and dicts read.
_DEPTH = 8


class UnreadableArgumentError(TypeError):
    """An argument of a region's call has a type that no key can hold."""


def read_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Return the key of a call's arguments, and their tensors in order.

    Raises:
        UnreadableArgumentError: An argument is of another type than tensors, numbers, strings,
            torch's own values, and lists, tuples and dicts of these.
    """
    tensors: list[Tensor] = []
    try:
        key: tuple[Any, ...] = tuple([_key(value, tensors, _DEPTH) for value in args])
        if kwargs:
            key += tuple([(name, _key(value, tensors, _DEPTH)) for name, value in kwargs.items()])
    except RuntimeError as error:  # A tensor without strides: sparse, nested.
        raise UnreadableArgumentError(f"a tensor that is not plain and strided: {error}") from error
    if len(tensors) > 1 and len(set(map(id, tensors))) < len(tensors):
        # One tensor in two places is one input of the tape.
        first: dict[int, int] = {}
        key += (tuple([first.setdefault(id(t), i) for i, t in enumerate(tensors)]),)
    return key, tensors


def _key(value: Any, tensors: list[Tensor], depth: int) -> Any:
    kind = type(value)
    if kind in _TENSORS:
        tensors.append(value)
        metadata = (
            value.dtype,
            value.shape,
            value.stride(),
            value.device,
            value.requires_grad,
            kind is Tensor,
        )
        # What Python code has put on the tensor, and may read there; mostly nothing.
        on_tensor = value.__dict__
        return (metadata, _key(on_tensor, [], depth - 1)) if on_tensor and depth else metadata
    if kind in _PLAIN:
        return (kind, value)
    if kind is float:
        return value.hex()
    if kind is complex:
        return (kind, value.real.hex(), value.imag.hex())
    if depth == 0:
        raise UnreadableArgumentError("lists within lists, too deep")
    if kind is tuple or kind is list or kind is torch.Size:
        return (kind, *[_key(one, tensors, depth - 1) for one in value])
    if kind is dict:
        return (kind, *[(_name(k), _key(v, tensors, depth - 1)) for k, v in value.items()])
    if isinstance(value, _TORCH_VALUES):
        return value
    if kind is slice:
        parts = (value.start, value.stop, value.step)
        return (kind, *[_key(one, tensors, depth - 1) for one in parts])
    raise UnreadableArgumentError(
        f"a {kind.__module__}.{kind.__qualname__}; tensors, numbers, strings, and lists, tuples "
        "and dicts of these are supported"
    )


def _name(key: Any) -> Any:
    if type(key) not in _PLAIN:
        raise UnreadableArgumentError(f"a dict with a {type(key).__qualname__} for a key")
    return (type(key), key)
