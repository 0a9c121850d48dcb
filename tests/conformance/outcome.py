"""Everything that a caller can see of one call, and how two such outcomes differ."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import aoti_eager

from .samples import Arguments

# What TensorIterator takes; error inputs have more.
MOST_DIMS = 64

Warned = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that a caller can see of one call.

    Attributes:
        values: The leaves of the result.
        structure: How the result is built of them.
        inputs: Every tensor among the arguments, after the call.
        sharing: Which results are an argument or another result, or share its storage.
        random_state: Where torch's random stream is after the call.
        exception: Type and text of what was raised.
        warned: Category and text of each warning that is not ours.
        ours: Texts of the package's own warnings.
    """

    values: list[Any]
    structure: Any
    inputs: list[Tensor]
    sharing: frozenset[tuple[str, str]]
    random_state: Tensor
    exception: Warned | None
    warned: tuple[Warned, ...] = ()
    ours: tuple[str, ...] = ()


@dataclass
class Difference:
    """How an outcome differs from the original's.

    Attributes:
        problems: One line for each difference that must not be.
        notes: What differs and is allowed, counted by its name.
    """

    problems: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def outcome(call: Callable[[Arguments], Any], arguments: Arguments) -> Outcome:
    """Return what a call with these arguments does."""
    inputs = arguments.tensors
    torch.manual_seed(1)
    exception = result = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(arguments)
        except Exception as error:  # noqa: BLE001 - whatever the original raises is what is wanted
            exception = (f"{type(error).__module__}.{type(error).__qualname__}", str(error))
    values, structure = pytree.tree_flatten(result)
    ours = [w for w in caught if issubclass(w.category, aoti_eager.errors.AotiEagerWarning)]
    return Outcome(
        values,
        structure,
        inputs,
        _sharing(values, inputs),
        torch.get_rng_state(),
        exception,
        tuple((w.category.__name__, str(w.message)) for w in caught if w not in ours),
        tuple(str(w.message) for w in ours),
    )


def _sharing(values: list[Any], inputs: list[Tensor]) -> frozenset[tuple[str, str]]:
    pairs = set()
    named: list[tuple[str, Any]] = [(f"input {i}", t) for i, t in enumerate(inputs)]
    for index, value in enumerate(values):
        for name, other in named:
            if value is other and isinstance(value, Tensor):
                pairs.add((f"result {index}", f"is {name}"))
            elif _storage(value) is not None and _storage(value) == _storage(other):
                pairs.add((f"result {index}", f"shares storage with {name}"))
        named.append((f"result {index}", value))
    return frozenset(pairs)


def _storage(value: Any) -> int | None:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested:
        return None
    return value.untyped_storage().data_ptr() or None


# --- comparison ----------------------------------------------------------------------------------


def differences(
    want: Outcome,
    have: Outcome,
    *,
    compare_values: bool = True,
    hit: bool = False,
    reference: Callable[[], Outcome | None] | None = None,
) -> Difference:
    """Return how an outcome differs from the original's.

    Args:
        want: The original's.
        have: That of the call which is judged.
        compare_values: Whether values count; not where they are uninitialised memory.
        hit: Whether a kernel had a part in the call: it gives none of the original's warnings.
        reference: Gives the outcome of the original on arguments of double precision.
    """
    found = Difference([f"warning of ours: {text}" for text in have.ours])
    _compare_warnings(want, have, hit, found)
    if want.exception != have.exception:
        found.problems.append(f"exception: {have.exception} instead of {want.exception}")
        return found
    if want.structure != have.structure:
        found.problems.append(f"structure: {have.structure} instead of {want.structure}")
        return found
    if want.sharing != have.sharing:
        found.problems.append(f"aliasing: {sorted(have.sharing)} instead of {sorted(want.sharing)}")
    if not torch.equal(want.random_state, have.random_state):
        found.problems.append("the random stream is elsewhere")
    exact: list[Outcome | None] = []

    def exact_value(what: str, index: int) -> Any:
        if not exact:
            exact.append(None if reference is None else reference())
        known = exact[0]
        values = None if known is None else (known.values if what == "result" else known.inputs)
        return values[index] if values is not None and index < len(values) else None

    # A result of its own that nobody has seen yet: what its counter starts at says nothing.
    fresh = {f"result {i}" for i in range(len(want.values))} - {
        name for name, other in want.sharing if " input " in other
    }
    for what, mine, theirs in (
        ("result", have.values, want.values),
        ("input", have.inputs, want.inputs),
    ):
        for i, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            problem = _difference(
                other,
                one,
                compare_values or what == "input",
                f"{what} {i}" in fresh,
                lambda what=what, i=i: exact_value(what, i),
                found.notes,
            )
            if problem is not None:
                found.problems.append(f"{what} {i}: {problem}")
    return found


def _compare_warnings(want: Outcome, have: Outcome, hit: bool, found: Difference) -> None:
    missing = Counter(want.warned) - Counter(have.warned)
    added = Counter(have.warned) - Counter(want.warned)
    if added:
        found.problems.append(f"warnings: {sorted(added)} more than the original")
    if missing and not hit:
        found.problems.append(f"warnings: without {sorted(missing)}")
    elif missing:
        found.notes["a hit gives none of the original's warnings"] += 1


def _difference(
    want: Any,
    have: Any,
    compare_values: bool,
    fresh: bool,
    exact: Callable[[], Any],
    notes: Counter[str],
) -> str | None:
    if type(want) is not type(have):
        return f"{type(have)} instead of {type(want)}"
    if isinstance(want, Tensor):
        mine, theirs = _metadata(have), _metadata(want)
        if mine != theirs:
            return f"{mine} instead of {theirs}"
        if want._version != have._version:
            if not fresh:
                return f"version {have._version} instead of {want._version}"
            notes["the version counter of a new result starts elsewhere"] += 1
    elif not isinstance(want, int | float | complex):
        return None if want == have else f"{have!r} instead of {want!r}"
    if not compare_values:
        return None
    if isinstance(want, Tensor) and want.dim() > MOST_DIMS:
        have, want = have.reshape(-1), want.reshape(-1)
    try:
        torch.testing.assert_close(have, want, equal_nan=True)
    except AssertionError as error:
        if not _is_no_worse(want, have, exact()):
            return "values: " + " ".join(str(error).split())
        notes["beyond the tolerance, but no further from float64 than the original"] += 1
        return None
    if _zero_signs_differ(want, have):
        notes["the sign of a zero differs"] += 1
    return None


def _zero_signs_differ(want: Any, have: Any) -> bool:
    if not isinstance(want, Tensor) or not want.is_floating_point():
        return False
    if want.layout is not torch.strided or want.is_nested or want.is_quantized:
        return False
    try:
        zero = (want == 0) & (have == 0)
        return bool((zero & (torch.signbit(want) != torch.signbit(have))).any())
    except (RuntimeError, NotImplementedError):  # A dtype without comparison, float8 or float4.
        return False


def _is_no_worse(want: Any, have: Any, exact: Any) -> bool:
    """Return whether finite values are no further from ``exact`` than 1.5 times the original's.

    The largest errors of each are compared; NaN and infinities must be the same. An original that
    is off by a tenth of the largest value does something else than round: ``exact`` says nothing.
    """
    if not isinstance(want, Tensor) or not isinstance(exact, Tensor):
        return False
    if exact.shape != want.shape or not (want.is_floating_point() or want.is_complex()):
        return False
    mine, theirs, truth = (t.to(exact.dtype) for t in (have, want, exact))
    finite = torch.isfinite(mine) & torch.isfinite(theirs) & torch.isfinite(truth)
    odd = ~finite
    same = (mine == theirs) | (torch.isnan(mine) & torch.isnan(theirs))
    if not bool(same[odd].all()):
        return False
    if not bool(finite.any()):
        return True
    error = (mine - truth).abs()[finite].max()
    allowed = (theirs - truth).abs()[finite].max()
    return bool(error <= 1.5 * allowed) and bool(allowed <= truth[finite].abs().max() / 10)


def _metadata(tensor: Tensor) -> tuple[Any, ...]:
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return (
        tensor.dtype,
        tensor.device,
        tensor.layout,
        None if tensor.is_nested else tuple(tensor.shape),
        (tensor.stride(), tensor.storage_offset()) if strided else None,
        tensor.is_conj(),
        tensor.is_neg(),
        tensor.requires_grad,
    )
