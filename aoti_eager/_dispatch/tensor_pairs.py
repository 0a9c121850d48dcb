"""Pair the tensors of the original's run and of a library's, and compare all but their values."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._base.data_class import dataclass
from .._keys.aliasing import storage_key
from .._keys.call_template import CallTemplate


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the original's run and of the library's: a result, or an argument written to.

    Attributes:
        where: What the tensor is, in words.
        of_inputs: Whether the tensor is one of the inputs.
        index: Its index among the results, or the inputs.
        want: The original's tensor.
        have: The library's tensor, of the same dtype, sizes and strides.
    """

    where: str
    of_inputs: bool
    index: int
    want: Tensor
    have: Tensor


def compared_pairs(
    template: CallTemplate,
    expected: Sequence[Tensor],
    got: Sequence[Tensor],
    expected_inputs: Sequence[Tensor],
    got_inputs: Sequence[Tensor],
    *,
    aliasing: bool = True,
) -> tuple[list[str], list[Pair]]:
    """Return what differs apart from values, and the pairs whose values are to be compared.

    Arguments are as for ``differences``; without ``aliasing``, storages are not compared.
    """
    if len(expected) != len(got):
        return [f"results: {len(got)} instead of {len(expected)}"], []
    found = _aliasing(expected, got, expected_inputs, got_inputs) if aliasing else []
    pairs = [
        Pair(f"result {i}", False, i, a, b)
        for i, (a, b) in enumerate(zip(expected, got, strict=True))
    ]
    for i, slot in enumerate(template.slots):
        if slot.mutated:
            where = f"argument {slot.name!r}"
            pairs.append(Pair(where, True, i, expected_inputs[i], got_inputs[i]))
    problems = [(pair, _metadata(pair.want, pair.have)) for pair in pairs]
    found += [f"{pair.where}: {problem}" for pair, problem in problems if problem is not None]
    return found, [pair for pair, problem in problems if problem is None]


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
