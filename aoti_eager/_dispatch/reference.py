"""A call in double precision: what its result ought to be, and how far off rounding may put it.

Values that a call's function casts to a lower precision stay in double: a norm that computes in
float32, whatever it is given, is judged by what it means. Casts to integers stay.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .._base.torch_compat.dispatcher import raw_schema
from .._base.torch_compat.tracing import dispatch_mode
from .._keys.call_template import CallTemplate, Output, fresh_results

Found = tuple[list[Tensor], list[Tensor]]
Given = tuple[Sequence[Tensor], Sequence[Tensor]]

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
# Ops that round nothing: they pass values on, or make whole numbers of them.
_EXACT = frozenset(
    """
    _to_copy abs amax amin argmax argmin cat ceil clamp clamp_max clamp_min clone constant_pad_nd
    copy copysign detach empty empty_like expand flip floor fmax fmin full full_like gather index
    index_select lift_fresh max maximum min minimum neg new_empty new_full new_zeros ones ones_like
    relu repeat roll round scalar_tensor sign sgn sort stack topk trunc where zeros zeros_like
    """.split()  # noqa: SIM905 - names to read, not to parse
)


# A power of two, so large that sums of errors of doubles are not rounded to none, and so small that
# twice the error is twice as far off.
_MAGNIFIED = 1024.0


# Of fewer runs with errors, one element or another has none in any of them.
RUNS = 4
# So many that elements at all places of a vector are among them.
_PLACES = 64


class Reference:
    """The references of one run, made when they are asked for; each is made once.

    Args:
        template: The call.
        inputs: Gives copies of its inputs, which the op may write to.
        op: What is called.
        outputs: Where its results come from; see ``Entry.outputs``.
        default_dtype: The default dtype of these runs, which is a quotient's of integers. It is the
            process's, so none is set in a user's.
    """

    def __init__(
        self,
        template: CallTemplate,
        inputs: Callable[[], Sequence[Tensor]],
        op: Callable[..., Any],
        outputs: Sequence[Output],
        *,
        default_dtype: torch.dtype | None = None,
    ) -> None:
        self._default_dtype = default_dtype
        self._template = template
        self._inputs = inputs
        self._op = op
        self._outputs = outputs
        self._exact: list[Found | None] = []
        self._doubles: list[Found | None] = []
        self._by: float | None = None
        self._rounded: list[Found | None] = []
        self._nudged: list[Found | None] = []

    def exact(self) -> Found | None:
        """Return results and inputs after a run in double; ``None`` if that says nothing."""
        if not self._exact:
            self._exact.append(self._run())
        return self._exact[0]

    def spread(self, runs: int = RUNS) -> tuple[list[Found], list[Found]]:
        """Return runs of which each step's result was rounded, and runs on rounded inputs.

        They are off by ``magnified`` times as much as steps or inputs in the call's own precision
        may put them, at random.
        """
        while len(self._rounded) < runs:
            seed = len(self._rounded) + 1
            self._rounded.append(self._kept(self._run(rounded=seed)))
            self._nudged.append(self._kept(self._run(nudged=seed + 100)))
        return [one for one in self._rounded if one], [one for one in self._nudged if one]

    def _kept(self, found: Found | None) -> Found | None:
        """Return a run without the inputs that nothing was written to: nobody asks for these."""
        if found is None:
            return None
        empty = torch.empty(0, dtype=torch.float64)
        slots = self._template.slots
        return found[0], [
            one if slot.mutated else empty for one, slot in zip(found[1], slots, strict=True)
        ]

    def magnified(self) -> float:
        """Return by how much errors are magnified: a double's own would be rounded themselves."""
        if self._by is None:
            self._by = _MAGNIFIED if any(map(is_double, self._inputs())) else 1.0
        return self._by

    def errors_of_doubles(self) -> Found | None:
        """Return how far the original is off in double precision, element by element.

        Nothing is wider than double. But the same steps are off in single precision by as many
        units, and these are seen there. ``None`` where nothing is in double, or the op takes no
        single precision; zeros where a result's precision is not that of the inputs.
        """
        if not self._doubles:
            self._doubles.append(self._errors_in_single())
        return self._doubles[0]

    def _errors_in_single(self) -> Found | None:
        inputs = list(self._inputs())
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
            [_error(one, other) for one, other in zip(both, exact, strict=True)]
            for both, exact in zip((results, mine), wide, strict=True)
        )  # type: ignore[return-value]

    def elsewhere(self) -> Found | None:
        """Return what the original gives for the same elements at other places, one row a place.

        Its vector code and the code of a row's end may disagree. ``None`` where it does not take
        the inputs, repeated along a new first dimension.
        """
        inputs = list(self._inputs())
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

    def overflowed(self) -> bool:
        """Return whether a step of the original makes infinities, or no numbers, of finite ones."""
        found = []

        def handler(op: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
            finite = _all_finite([*args, *kwargs.values()])
            result = op(*args, **kwargs)
            found.append(finite and not _all_finite(result))
            return result

        with contextlib.suppress(Exception), dispatch_mode(handler):
            self._template.call(self._op, self._inputs(), as_number=lambda number: number.item())
        return any(found)

    def _run(self, *, rounded: int | None = None, nudged: int | None = None) -> Found | None:
        inputs = list(self._inputs())
        by = self.magnified()
        eps = by * max((_eps(tensor) for tensor in inputs), default=0.0)
        generator = torch.Generator().manual_seed(rounded or nudged or 0)
        if nudged is not None:
            inputs = [_noisy(_widened(one), by * _eps(one), generator) for one in inputs]
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
    """The reference of which only the exact values are known: of rounding it says nothing.

    Args:
        exact: Gives results and inputs after a run in double; ``None`` if that says nothing.
    """

    def __init__(self, exact: Callable[[], Given | None]) -> None:
        self._make = exact
        self._exact = []

    def exact(self) -> Found | None:
        """Return what the given function gives, which is called once."""
        if not self._exact:
            given = self._make()
            self._exact.append(None if given is None else (list(given[0]), list(given[1])))
        return self._exact[0]

    def spread(self, runs: int = RUNS) -> tuple[list[Found], list[Found]]:
        """Return none."""
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

    def overflowed(self) -> bool:
        """Return ``False``."""
        return False


def is_double(tensor: Tensor) -> bool:
    """Return whether it holds doubles, and is no number."""
    return tensor.dtype in (torch.float64, torch.complex128) and tensor.dim() > 0


def to_single(tensor: Tensor) -> Tensor:
    """Return doubles in single precision, and others as they are."""
    if not is_double(tensor):
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)


def _error(single: Tensor, exact: Tensor) -> Tensor:
    """Return by how much a result in single precision is off, in as many units of a double."""
    if single.dtype not in (torch.float32, torch.complex64) or single.shape != exact.shape:
        return torch.zeros(exact.shape, dtype=torch.float64)
    off = (single.to(exact.dtype) - exact).abs().nan_to_num(0.0, 0.0, 0.0)
    return off * (torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps)


def float64_reference(
    template: CallTemplate, inputs: Sequence[Any], op: Callable[..., Any], outputs: Sequence[Output]
) -> Found | None:
    """Return results and inputs of ``op`` run with its inputs in double precision.

    ``None`` where that says nothing: no input is floating point, or the op does not take it.
    """
    if all(_widened(value) is value for value in inputs):
        return None
    return double_run(template, inputs, op, outputs)


def double_run(
    template: CallTemplate,
    inputs: Sequence[Any],
    op: Callable[..., Any],
    outputs: Sequence[Output],
    *,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Found | None:
    """Return results and inputs of ``op`` run in double precision, casts within it included.

    Args:
        template: The call.
        inputs: Its inputs, in slot order.
        op: What is called.
        outputs: Where its results come from.
        noise: The largest relative error that each step's result is given.
        generator: Where the errors come from.
    """
    wide = [_widened(value) for value in inputs]
    try:
        with _in_double(noise, generator):
            result = template.call(op, wide, as_number=lambda number: number.item())
        fresh = fresh_results(outputs, result, len(template.schema.returns))
    except Exception:  # noqa: BLE001 - an op that takes no float64 has no reference, that is all
        return None
    return fresh, wide


@contextlib.contextmanager
def _in_double(noise: float, generator: torch.Generator | None) -> Iterator[None]:
    def handler(op: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        args = [_WIDE.get(one, one) if isinstance(one, torch.dtype) else one for one in args]
        kwargs = {
            name: _WIDE.get(one, one) if isinstance(one, torch.dtype) else one
            for name, one in kwargs.items()
        }
        name = name_of(op)

        def noisy(one: Any) -> Any:
            return _noisy(one, noise, generator)

        if noise and name in _INNER:
            return _INNER[name](noisy, *args, **kwargs)
        result = _FORMULAS.get(name, op)(*args, **kwargs)
        return _rounded(op, result, noisy) if noise and name not in _EXACT else result

    with dispatch_mode(handler):
        yield


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return gelu without the difference that loses all digits for negative numbers."""
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return x * torch.sigmoid(2 * inner)
    tail: Tensor = torch.special.erfc(-x / math.sqrt(2))
    return x * (0.5 * tail)


# Ops whose formula in torch loses in double what it loses in single precision.
_FORMULAS: dict[str, Callable[..., Tensor]] = {"gelu": _gelu}


def _log_sum(noisy: _Noisy, below: Tensor, dims: Any) -> Tensor:
    total: Tensor = noisy(noisy(below.exp()).sum(dims, keepdim=True))
    return cast("Tensor", noisy(total.log()))


def _log_softmax(noisy: _Noisy, x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    below = noisy(x - x.amax(dim, keepdim=True))
    return cast("Tensor", noisy(below - _log_sum(noisy, below, dim)))


def _logsumexp(noisy: _Noisy, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    top = x.amax(dim, keepdim=True)
    top = torch.where(top.isinf(), 0.0, top)
    found: Tensor = noisy(top + _log_sum(noisy, noisy(x - top), dim))
    return found if keepdim else found.sum(dim)


_Noisy = Callable[[Any], Any]
# Ops that cancel what a step within has rounded: a result near zero is off by as much as that step.
_INNER: dict[str, Callable[..., Tensor]] = {
    "_log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
}


def name_of(op: Any) -> str:
    """Return an overload's base name: ``add_``."""
    return str(raw_schema(op).name.partition("::")[2])


def _rounded(op: Any, result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return an op's result with errors; what it has written to gets them in place."""
    returned = [one.alias_info for one in raw_schema(op).returns]
    if all(one is None for one in returned):
        return _each(result, change)
    if len(returned) == 1 and returned[0].is_write and isinstance(result, Tensor):
        result.copy_(change(result))
    return result


def _each(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, Tensor):
        return change(result)
    if isinstance(result, (tuple, list)):
        return type(result)([_each(one, change) for one in result])
    return result


def _noisy(tensor: Any, eps: float, generator: torch.Generator | None) -> Any:
    """Return a tensor of doubles with relative errors up to ``eps``; others as they are."""
    if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    if tensor.dtype not in (torch.float64, torch.complex128) or not tensor.numel():
        return tensor
    # One way or the other, and not by next to nothing; not all by as much, so that they cancel.
    drawn = 2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1
    return tensor * (1 + eps * (drawn + drawn.sign()) / 2)


def _all_finite(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_all_finite, value))
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


def _eps(value: Any) -> float:
    """Return how far rounding may put a value of a tensor off, as a share of it."""
    if value.dim() == 0 and value.dtype in (torch.float64, torch.complex128):
        return 0.0  # A number, or as good as one.
    if value.is_floating_point() or value.is_complex():
        return torch.finfo(value.dtype).eps / 2
    return 0.0


def _widened(value: Tensor) -> Tensor:
    if value.is_complex():
        return value if value.dtype is torch.complex128 else value.to(torch.complex128)
    if value.is_floating_point() and value.dtype is not torch.float64:
        return value.to(torch.float64)
    return value
