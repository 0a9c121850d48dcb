"""Whether a tape's ops compute what the forward does: looked at in the second recorded call.

A new library is compared with what its tape's ops give in double precision, so a comparison cannot
find that the forward computes something else: by code that calls no op, for example.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._functions.tape import Tape
from .stop import Stop

# Of dtypes with a larger eps, as of float16, the root of eps is no bound.
_LOW = 1e-4


def check_replay(tape: Tape, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise if a forward's results are not what the tape's ops give.

    The same ops on the same inputs: what differs are sums that threads add up in any order.

    Args:
        tape: The tape.
        inputs: The tape's inputs in the call.
        expected: The new tensors among the forward's results.

    Raises:
        Stop: A result is another one.
    """
    with torch.no_grad():
        got = tape.replay(inputs)
        for number, (want, have) in enumerate(zip(expected, got, strict=True)):
            same = (want.dtype, want.shape) == (have.dtype, have.shape)
            if not same or not _is_close(want, have):
                raise Stop("not_by_ops", f"result {number} is not what its calls of ops give")


def _is_close(want: Tensor, have: Tensor) -> bool:
    if not (want.dtype.is_floating_point or want.dtype.is_complex):
        return torch.equal(want, have)
    eps = torch.finfo(want.dtype).eps
    near = eps**0.5 if eps < _LOW else 4 * eps
    if want.itemsize == 1:  # Of the eight-bit types torch compares nothing.
        want, have = want.float(), have.float()
    finite = want[want.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    return torch.allclose(have, want, rtol=near, atol=near * largest, equal_nan=True)
