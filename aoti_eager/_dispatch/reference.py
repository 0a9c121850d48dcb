"""A call in double precision: the right result, and how far off rounding may put a result.

Values that the call's function casts to a lower precision stay in double: a norm that always
computes in float32 is judged by its exact meaning. Casts to integers are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.late_import import importing
from .._base.op_names import TAPE_NAMESPACE
from .._base.torch_compat.dispatcher import OpOverload
from .._base.torch_compat.tracing import dispatch_mode
from .._keys.call_template import CallTemplate, Output, fresh_results
from .double_run import (
    Found,
    Given,
    all_finite,
    double_run,
    epsilon_of,
    is_double,
    is_exact,
    largest_error,
    rounded_result,
    to_single,
    widened,
    with_noise,
)

# A power of two: large enough that sums of errors of doubles are not rounded away, and small enough
# that twice the error puts a result twice as far off.
_MAGNIFIED = 1024.0


# With fewer runs with errors, some element would have no error in any of them.
RUNS = 4
# Inputs with more elements than this are not kept in double precision from run to run.
_MOST_SHARED = 1 << 24
# Enough copies that elements at all places of a vector are among them.
_PLACES = 64


def _tape_behind(op: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the replay of a region's tape; ``None`` for any op that is no region's."""
    if not isinstance(op, OpOverload) or op.namespace != TAPE_NAMESPACE:
        return None
    with importing():  # Not above: a warm start without regions does not need it.
        from .._functions.op_functions import tape_behind

    return tape_behind(op)


class Reference:
    """The references of one run; each is made once, when it is asked for.

    Args:
        template: The call.
        inputs: Gives copies of the call's inputs, which the op may write to.
        op: The op or function that is called.
        outputs: Where its results come from; see ``Entry.outputs``.
        default_dtype: The default dtype during these runs, which a quotient of integers has. It is
            a setting of the whole process, so none is set in a user's process.
        is_tape: Whether the function replays a tape; a tape's own op, or function, shows that.

    More than 12 methods, because each kind of run is made once, when it is asked for.
    """

    def __init__(
        self,
        template: CallTemplate,
        inputs: Callable[[], Sequence[Tensor]],
        op: Callable[..., Any],
        outputs: Sequence[Output],
        *,
        default_dtype: torch.dtype | None = None,
        is_tape: bool = False,
    ) -> None:
        self._default_dtype = default_dtype
        self._template = template
        self._inputs = inputs
        replay = _tape_behind(op)
        self._op = replay or op
        # A tape writes to none of its inputs: its runs share one copy, and one in double precision.
        self._shares = is_tape or replay is not None or getattr(op, "tape", None) is not None
        self._shared: list[Tensor] | None = None
        self._wide: list[Tensor] | None = None
        self._outputs = outputs
        self._exact: list[Found | None] = []
        self._doubles: list[Found | None] = []
        self._by: float | None = None
        self._rounded: list[Found | None] = []
        self._nudged: list[Found | None] = []
        self._moved: list[Found] | None = None

    def _given(self) -> list[Tensor]:
        """Return the inputs of a run; the run may write to them, unless runs share them."""
        if not self._shares:
            return list(self._inputs())
        if self._shared is None:
            self._shared = list(self._inputs())
        return self._shared

    def _widened(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return the inputs of a run in double precision."""
        if not self._shares or sum(one.numel() for one in inputs) > _MOST_SHARED:
            return inputs  # ``double_run`` widens them, and drops what it has made.
        if self._wide is None:
            self._wide = [widened(one) for one in inputs]
        return self._wide

    def exact(self) -> Found | None:
        """Return results and inputs after a run in double; ``None`` if that says nothing."""
        if not self._exact:
            self._exact.append(self._run())
        return self._exact[0]

    def spread(self, runs: int = RUNS) -> tuple[list[Found], list[Found]]:
        """Return runs in which each step's result was rounded, and runs on rounded inputs.

        Their errors are random, and up to ``magnified`` times as large as rounding of steps or
        inputs in the call's own precision may cause.
        """
        while len(self._rounded) < runs:
            seed = len(self._rounded) + 1
            self._rounded.append(self._kept(self._run(rounded=seed)))
            self._nudged.append(self._kept(self._run(nudged=seed + 100)))
        return [one for one in self._rounded if one], [one for one in self._nudged if one]

    def _kept(self, found: Found | None) -> Found | None:
        """Return a run without the inputs that nothing was written to: nothing asks for them."""
        if found is None:
            return None
        empty = torch.empty(0, dtype=torch.float64)
        slots = self._template.slots
        return found[0], [
            one if slot.mutated else empty for one, slot in zip(found[1], slots, strict=True)
        ]

    def magnified(self) -> float:
        """Return by how much errors are magnified: a double's own would themselves be rounded."""
        if self._by is None:
            self._by = _MAGNIFIED if any(map(is_double, self._given())) else 1.0
        return self._by

    def errors_of_doubles(self) -> Found | None:
        """Return how far the original is off in double precision, element by element.

        No type is wider than double. But in single precision the same steps are off by as many
        units, and there the errors can be seen. ``None`` if nothing is in double, or the op takes
        no single precision; zeros where a result's precision is not that of the inputs.
        """
        if not self._doubles:
            self._doubles.append(self._errors_in_single())
        return self._doubles[0]

    def _errors_in_single(self) -> Found | None:
        inputs = self._given()
        if not any(map(is_double, inputs)):
            return None
        narrow = [to_single(tensor) for tensor in inputs]
        wide = double_run(self._template, [one.clone() for one in narrow], self._op, self._outputs)
        mine = [one.clone() for one in narrow]
        try:
            result = self._template.call(self._op, mine, as_number=lambda number: number.item())
        except Exception:  # noqa: BLE001 - an op that takes no single precision
            return None
        if wide is None:
            return None
        results = fresh_results(self._outputs, result, len(self._template.schema.returns))
        return tuple(
            [largest_error(one, other) for one, other in zip(both, exact, strict=True)]
            for both, exact in zip((results, mine), wide, strict=True)
        )  # type: ignore[return-value]

    def elsewhere(self) -> Found | None:
        """Return what the original gives for the same elements at other places, one row a place.

        The original's vector code and its code for the end of a row may disagree. ``None`` if the
        original does not take the inputs repeated along a new first dimension.
        """
        inputs = self._given()
        dims = max((one.dim() for one in inputs), default=0)
        repeated = [
            one
            if slot.number_kind
            else one.reshape((1,) * (dims + 1 - one.dim()) + one.shape).repeat(_PLACES, *[1] * dims)
            for one, slot in zip(inputs, self._template.slots, strict=True)
        ]
        try:
            result = self._template.call(self._op, repeated, lambda number: number.item())
        except Exception:  # noqa: BLE001 - a function of its own sizes
            return None
        returns = len(self._template.schema.returns)
        return fresh_results(self._outputs, result, returns), repeated

    def moved_originals(self) -> list[Found]:
        """Return what the original gives in its own precision, with errors of about a unit.

        Each input has an error, and the result of each step.
        """
        if self._moved is None:
            found = (self._kept(self._moved_original(seed)) for seed in range(RUNS))
            self._moved = [one for one in found if one is not None]
        return self._moved

    def _moved_original(self, seed: int) -> Found | None:
        generator = torch.Generator().manual_seed(seed)

        def noisy(one: Tensor) -> Tensor:
            # Errors of up to a unit: of half a unit, rounding would leave few.
            noisy_one: Tensor = with_noise(widened(one), 2 * epsilon_of(one), generator)
            return noisy_one.to(one.dtype)

        def handler(op: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
            result = op(*args, **kwargs)
            return result if is_exact(op) else rounded_result(op, result, noisy)

        inputs = [noisy(one) for one in self._given()]
        try:
            with dispatch_mode(handler):
                result = self._template.call(self._op, inputs, lambda number: number.item())
        except Exception:  # noqa: BLE001 - the original refuses such data
            return None
        return fresh_results(self._outputs, result, len(self._template.schema.returns)), inputs

    def overflowed(self) -> bool:
        """Return whether a step of the original turns finite numbers into infinities or NaN."""
        found = []

        def handler(op: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
            finite = all_finite([*args, *kwargs.values()])
            result = op(*args, **kwargs)
            found.append(finite and not all_finite(result))
            return result

        with contextlib.suppress(Exception), dispatch_mode(handler):
            self._template.call(self._op, self._given(), as_number=lambda number: number.item())
        return any(found)

    def _run(self, *, rounded: int | None = None, nudged: int | None = None) -> Found | None:
        given = self._given()
        by = self.magnified()
        eps = by * max((epsilon_of(tensor) for tensor in given), default=0.0)
        inputs = self._widened(given)
        generator = torch.Generator().manual_seed(rounded or nudged or 0)
        if nudged is not None:
            pairs = zip(inputs, given, strict=True)
            inputs = [
                with_noise(widened(one), by * epsilon_of(narrow), generator)
                for one, narrow in pairs
            ]
        before = torch.get_default_dtype()
        steps = 0.0 if rounded is None else eps or torch.finfo(before).eps / 2
        if self._default_dtype is not None:
            torch.set_default_dtype(self._default_dtype)
        try:
            return double_run(
                self._template, inputs, self._op, self._outputs, noise=steps, generator=generator
            )
        finally:
            if self._default_dtype is not None:
                torch.set_default_dtype(before)


class ExactReference(Reference):
    """A reference with exact values only: it says nothing about rounding.

    Args:
        exact: Gives results and inputs after a run in double; ``None`` if that says nothing.
    """

    def __init__(self, exact: Callable[[], Given | None]) -> None:
        self._make = exact
        self._exact = []

    def exact(self) -> Found | None:
        """Return what the given function gives; it is called once."""
        if not self._exact:
            given = self._make()
            self._exact.append(None if given is None else (list(given[0]), list(given[1])))
        return self._exact[0]

    def spread(self, runs: int = RUNS) -> tuple[list[Found], list[Found]]:
        """Return no runs."""
        return [], []

    def magnified(self) -> float:
        """Return one."""
        return 1.0

    def errors_of_doubles(self) -> Found | None:
        """Return ``None``."""
        return None

    def elsewhere(self) -> Found | None:
        """Return ``None``."""
        return None

    def moved_originals(self) -> list[Found]:
        """Return no runs."""
        return []

    def overflowed(self) -> bool:
        """Return ``False``."""
        return False


def float64_reference(
    template: CallTemplate, inputs: Sequence[Any], op: Callable[..., Any], outputs: Sequence[Output]
) -> Found | None:
    """Return results and inputs of ``op`` run with its inputs in double precision.

    ``None`` if that says nothing: no input is floating point, or the op does not take doubles.
    """
    if all(widened(value) is value for value in inputs):
        return None
    return double_run(template, inputs, _tape_behind(op) or op, outputs)
