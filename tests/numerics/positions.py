"""What eager gives for the same values at another place of a tensor.

Eager has one code for whole vectors and one for the elements behind the last of them. Where these
disagree on a NaN or on an infinity, eager's result depends on where an element lies, and
no code can give both. A compiled result that is one of the two is eager's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# More than any vector holds.
_WHOLE = 64
# Elements that are asked for one by one; a chunk with more of them is wrong in another way.
_MOST = 1 << 14
# So many orders of a row are tried: each lane of a vector has every place once.
_ORDERS = 18


def as_elsewhere(
    eager: Callable[[Sequence[Any]], list[Tensor]],
    inputs: Sequence[Any],
    want: Tensor,
    have: Tensor,
) -> tuple[Tensor, int]:
    """Return eager's result with what it gives elsewhere where that is ``have``, and how often.

    Only where an input is NaN, or one of the results is NaN or infinite: of all other results, the
    error decides.

    Args:
        eager: Gives eager's results of inputs.
        inputs: Tensors and numbers of one call, in slot order.
        want: Eager's result of the call.
        have: The compiled code's.
    """
    tensors = [one for one in inputs if isinstance(one, Tensor) and one.dim()]
    plain = want.is_floating_point() and want.dtype == have.dtype and want.shape == have.shape
    if not plain or any(one.shape != want.shape for one in tensors):
        return want, 0
    differs = ~((want == have) | (want.isnan() & have.isnan()))
    special = ~(want.isfinite() & have.isfinite())
    for one in tensors:
        special |= one.isnan()
    where = (differs & special).flatten().nonzero().squeeze(1)
    if not len(where) or len(where) > _MOST:
        return want, 0
    few = [one.flatten()[where] if isinstance(one, Tensor) and one.dim() else one for one in inputs]
    found, compiled = want.flatten()[where], have.flatten()[where]
    is_eagers = torch.zeros(len(where), dtype=torch.bool)
    for other in (_in_vectors(eager, few), _alone(eager, few, len(where))):
        is_eagers |= (other == compiled) | (other.isnan() & compiled.isnan())
    result = want.clone(memory_format=torch.contiguous_format)
    result.view(-1)[where] = torch.where(is_eagers, compiled, found)
    restored = torch.empty_strided(want.shape, want.stride(), dtype=want.dtype).copy_(result)
    return restored, int(is_eagers.sum())


def _in_vectors(eager: Callable[[Sequence[Any]], list[Tensor]], inputs: Sequence[Any]) -> Tensor:
    repeated = [
        one.repeat_interleave(_WHOLE) if isinstance(one, Tensor) and one.dim() else one
        for one in inputs
    ]
    return eager(repeated)[0][::_WHOLE]


def _alone(
    eager: Callable[[Sequence[Any]], list[Tensor]], inputs: Sequence[Any], count: int
) -> Tensor:
    def part(i: int) -> list[Any]:
        return [one[i : i + 1] if isinstance(one, Tensor) and one.dim() else one for one in inputs]

    return torch.cat([eager(part(i))[0] for i in range(count)])


def as_in_another_order(
    eager: Callable[[Sequence[Any]], list[Tensor]],
    inputs: Sequence[Any],
    index: int,
    want: Tensor,
    have: Tensor,
) -> Tensor:
    """Return eager's result with what it gives for another order of rows where that is ``have``.

    Only where one of the two is NaN or infinite.

    Args:
        eager: Gives eager's results of inputs.
        inputs: Of one call; the first has the rows as its last dimension.
        index: Of a result that has a number for each row, whatever the row's order.
        want: Eager's result of the call.
        have: The compiled code's.
    """
    result = want.clone()
    rows = inputs[0]
    for places in range(1, min(rows.shape[-1], _ORDERS)):
        differs = ~((result == have) | (result.isnan() & have.isnan()))
        differs &= ~(result.isfinite() & have.isfinite())
        if not differs.any():
            break
        other = eager([rows.roll(places, -1), *inputs[1:]])[index]
        is_eagers = (other == have) | (other.isnan() & have.isnan())
        result = torch.where(differs & is_eagers, have, result)
    return result
