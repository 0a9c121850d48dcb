"""The layout of a decomposed elementwise op's result. Worker only.

An eager kernel derives the strides of its result from all its tensors at once, in the order in
which it takes them: where the strides of one tensor tell nothing (they are equal, or zero), the
next tensor's strides decide. In a decomposition, a step sees the result of the step before in the
place of the tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

_aten = torch.ops.aten
Order = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def as_given(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The order of a kernel that takes its tensors as the op has them."""
    return tensors


def first_last(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The order of a kernel that takes the op's first tensor last."""
    return [*tensors[1:], tensors[0]]


def elementwise(function: Callable[..., Any], order: Order = as_given) -> Callable[..., Any]:
    """Return a function whose result has the strides of an eager kernel's result.

    Args:
        function: Returns the op's result for the op's arguments, or ``NotImplemented``.
        order: Returns the op's tensors in the order in which the kernel takes them.
    """

    @functools.wraps(function)
    def decomposition(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        tensors = [one for one in args if isinstance(one, Tensor)]
        if result is NotImplemented or not tensors:
            return result
        return laid_out(result, order(tensors))

    return decomposition


def laid_out_elsewhere() -> tuple[Any, ...]:
    """Return the elementwise ops whose results Inductor lays out in another way than eager."""
    return (
        *(_aten.xlogy.Tensor, _aten.special_xlogy.default),
        *(_aten.fmax.default, _aten.fmin.default, _aten.lerp.Tensor),
        *(_aten.hardsigmoid_backward.default, _aten.softplus_backward.default),
        _aten.logit_backward.default,
    )


def laid_out(result: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    never = torch.zeros((), dtype=torch.bool, device=result.device)
    frame = tensors[-1]
    # Also for a single tensor: a tensor that overlaps itself does not have a result's strides.
    for tensor in reversed(tensors[:-1] or tensors):
        frame = torch.where(never, tensor, frame)
    pairs = zip(result.stride(), frame.stride(), strict=True)
    if all(statically_known_true(mine == theirs) for mine, theirs in pairs):
        return result
    return torch.where(never, frame.to(result.dtype), result)
