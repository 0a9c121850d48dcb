"""The layout of an elementwise op's result, for an op that is taken apart. Worker only.

An eager kernel derives the strides of its result from all its tensors at once, in the order in
which it takes them: where the strides of one tell nothing (they are equal, or zero), the next one's
decide. Taken apart, a step sees the result of the step before in the place of the tensor.
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
    """Return a function whose result has the strides that an eager kernel's has.

    Args:
        function: Gives what the op does, of the op's arguments, or ``NotImplemented``.
        order: Gives the op's tensors in the order in which the kernel takes them.
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
    # Of one tensor, too: one that overlaps itself does not have the strides of a result.
    for tensor in reversed(tensors[:-1] or tensors):
        frame = torch.where(never, tensor, frame)
    pairs = zip(result.stride(), frame.stride(), strict=True)
    if all(statically_known_true(mine == theirs) for mine, theirs in pairs):
        return result
    return torch.where(never, frame.to(result.dtype), result)
