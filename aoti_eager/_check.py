"""Compare what a kernel library did with what the original did.

Runs in the user's process on live arguments and in the trial process on made-up ones. The caller
has the thread's pass-through flag set: every torch op in here must reach its original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._aliasing import storage_key
from ._compat import tensor_difference
from ._template import CallTemplate

# The value that a slot's number has in a call, and the other values that an op returned.
Output = Mapping[str, Any]


def copy_tensor(tensor: Tensor) -> Tensor:
    """Return a copy with the same sizes and strides on a storage of its own.

    The whole range of memory is copied, so an expanded or overlapping tensor stays one.
    """
    extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    if tensor.numel() == 0:
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
    plain = tensor.detach()
    flat = plain.as_strided((extent,), (1,), plain.storage_offset()).clone()
    return flat.as_strided(tensor.shape, tensor.stride())


def copy_mutated(template: CallTemplate, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return ``inputs`` with a copy in place of each one that the op writes to."""
    return [
        copy_tensor(tensor) if slot.mutated else tensor
        for slot, tensor in zip(template.slots, inputs, strict=True)
    ]


def fresh_results(outputs: Sequence[Output], result: Any, returns: int) -> list[Tensor]:
    """Return the tensors of an original's ``result`` that a library returns, in its order."""
    results = [result] if returns == 1 else list(result or ())
    fresh: list[Tensor] = []
    for output, value in zip(outputs, results, strict=True):
        if "output" in output:
            fresh.append(value)
        elif "outputs" in output:
            fresh += value
    return fresh


def differences(
    template: CallTemplate,
    expected: Sequence[Tensor],
    got: Sequence[Tensor],
    expected_inputs: Sequence[Tensor],
    got_inputs: Sequence[Tensor],
    reference: Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]] | None = None,
    *,
    allowed_error: float = 1.0,
    with_values: bool = False,
) -> list[str]:
    """Return one line for each way in which a library's run differs from the original's.

    Args:
        template: The call.
        expected: The original's fresh results.
        got: The library's outputs.
        expected_inputs: The inputs after the original ran, in slot order.
        got_inputs: The inputs after the library ran.
        reference: Gives results and inputs after a run in float64. Where values differ by more
            than ``torch.testing.assert_close`` allows, the library still passes if it is no
            further from this reference than the original is.
        allowed_error: How many times the original's error counts as no further.
        with_values: Whether a line names both values where they differ most.
    """
    if len(expected) != len(got):
        return [f"results: {len(got)} instead of {len(expected)}"]
    found = _aliasing(expected, got, expected_inputs, got_inputs)
    exact: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None
    pairs = [
        (f"result {i}", 0, i, a, b) for i, (a, b) in enumerate(zip(expected, got, strict=True))
    ]
    for i, slot in enumerate(template.slots):
        if slot.mutated:
            pairs.append((f"argument {slot.name!r}", 1, i, expected_inputs[i], got_inputs[i]))
    for where, side, index, want, have in pairs:
        problem = _metadata(want, have)
        if problem is None and not _is_close(want, have):
            if exact is None and reference is not None:
                exact = reference()
            if exact is None or not _is_no_worse(want, have, exact[side][index], allowed_error):
                problem = _values(want, have)
                if with_values:
                    problem += f" ({_both_values(want, have)})"
        if problem is not None:
            found.append(f"{where}: {problem}")
    return found


def float64_reference(
    template: CallTemplate, inputs: Sequence[Any], op: Callable[..., Any], outputs: Sequence[Output]
) -> tuple[list[Tensor], list[Tensor]] | None:
    """Return results and inputs of ``op`` run with its inputs in double precision.

    ``None`` where that says nothing: no input is floating point, or the op does not take it.
    """
    wide = [_widened(value) for value in inputs]
    if all(a is b for a, b in zip(wide, inputs, strict=True)):
        return None
    try:
        result = template.call(op, wide, as_number=lambda number: number.item())
        fresh = fresh_results(outputs, result, len(template.schema.returns))
    except Exception:  # noqa: BLE001 - an op that takes no float64 has no reference, that is all
        return None
    return fresh, wide


def _widened(value: Tensor) -> Tensor:
    if value.is_complex():
        return value if value.dtype is torch.complex128 else value.to(torch.complex128)
    if value.is_floating_point() and value.dtype is not torch.float64:
        return value.to(torch.float64)
    return value


def _metadata(want: Tensor, have: Tensor) -> str | None:
    for name, mine, theirs in (
        ("dtype", want.dtype, have.dtype),
        ("device", want.device, have.device),
        ("sizes", tuple(want.shape), tuple(have.shape)),
        ("strides", tuple(want.stride()), tuple(have.stride())),
        ("conjugate bit", want.is_conj(), have.is_conj()),
        ("negative bit", want.is_neg(), have.is_neg()),
        ("storage offset", want.storage_offset(), have.storage_offset()),
    ):
        if mine != theirs:
            return f"{name} {theirs} instead of {mine}"
    return None


def _is_close(want: Tensor, have: Tensor) -> bool:
    # First what is quick, and right as a rule.
    return bool(torch.equal(have, want)) or tensor_difference(have, want) is None


def _both_values(want: Tensor, have: Tensor) -> str:
    """Return the two values at the place where they differ most, NaN more than all."""
    if want.numel() == 0:
        return "no elements"
    wide = torch.complex128 if want.is_complex() else torch.float64
    mine, theirs = have.detach().to(wide).reshape(-1), want.detach().to(wide).reshape(-1)
    distance = (mine - theirs).abs()
    same = (mine == theirs) | (torch.isnan(mine) & torch.isnan(theirs))
    distance = torch.where(torch.isnan(distance), torch.inf, distance).masked_fill(same, -1.0)
    place = int(distance.argmax())
    return f"{mine[place].item()!r} instead of {theirs[place].item()!r}, element {place}"


def _values(want: Tensor, have: Tensor) -> str:
    return "values: " + " ".join((tensor_difference(have, want) or "differ").split())


def _is_no_worse(want: Tensor, have: Tensor, exact: Tensor, allowed_error: float) -> bool:
    """Return whether ``have`` is as near to ``exact`` as ``want``, element by element at worst."""
    if exact.shape != want.shape or not (want.is_floating_point() or want.is_complex()):
        return False
    mine, theirs, truth = (t.to(exact.dtype) for t in (have, want, exact))
    odd = ~(torch.isfinite(mine) & torch.isfinite(theirs) & torch.isfinite(truth))
    if not torch.equal(torch.isnan(mine), torch.isnan(theirs)):
        return False
    # Infinities have no error to compare; they must simply be the same.
    settled = odd & ((mine == theirs) | torch.isnan(mine))
    if not torch.equal(settled, odd):
        return False
    if bool(odd.all()):
        return True
    error = (mine - truth).abs()[~odd].max()
    allowed = (theirs - truth).abs()[~odd].max()
    return bool(error <= allowed * allowed_error)


def _aliasing(
    expected: Sequence[Tensor],
    got: Sequence[Tensor],
    expected_inputs: Sequence[Tensor],
    got_inputs: Sequence[Tensor],
) -> list[str]:
    found = []
    want = _sharing(expected, expected_inputs)
    have = _sharing(got, got_inputs)
    for pair in sorted(want ^ have):
        verb = "shares" if pair in have else "does not share"
        found.append(f"aliasing: {pair[0]} {verb} storage with {pair[1]}")
    return found


def _sharing(results: Sequence[Tensor], inputs: Sequence[Tensor]) -> set[tuple[str, str]]:
    pairs: set[tuple[str, str]] = set()
    named = [(f"input {i}", t) for i, t in enumerate(inputs)]
    for index, tensor in enumerate(results):
        mine = storage_key(tensor)
        pairs |= {
            (f"result {index}", name)
            for name, other in named
            if mine is not None and storage_key(other) == mine
        }
        named.append((f"result {index}", tensor))
    return pairs
