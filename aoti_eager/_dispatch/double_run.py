"""Run a call in double precision, on demand with rounded steps or nudged inputs."""

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

# Beyond so many, errors are repeated: drawing them would take longer than the run. The count is a
# prime, so that no row's errors are like the next row's.
_MOST_DRAWN = 131_071

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


def is_exact(op: Any) -> bool:
    """Return whether an op rounds nothing."""
    return name_of(op) in _EXACT


def is_double(tensor: Tensor) -> bool:
    """Return whether ``tensor`` holds doubles and does not stand for a number."""
    return tensor.dtype in (torch.float64, torch.complex128) and tensor.dim() > 0


def to_single(tensor: Tensor) -> Tensor:
    """Return a tensor of doubles in single precision, and any other tensor unchanged."""
    if not is_double(tensor):
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)


def largest_error(single: Tensor, exact: Tensor) -> Tensor:
    """Return the error of a result in single precision, as the same number of units of a double."""
    if single.dtype not in (torch.float32, torch.complex64) or single.shape != exact.shape:
        return torch.zeros(exact.shape, dtype=torch.float64)
    off = (single.to(exact.dtype) - exact).abs().nan_to_num(0.0, 0.0, 0.0)
    return off * (torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps)


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
        op: The op or function that is called.
        outputs: Where its results come from.
        noise: The largest relative error that is added to each step's result.
        generator: Draws the errors.
    """
    wide = [widened(value) for value in inputs]
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
            return with_noise(one, noise, generator)

        if noise and name in _INNER:
            return _INNER[name](noisy, *args, **kwargs)
        result = _FORMULAS.get(name, op)(*args, **kwargs)
        return rounded_result(op, result, noisy) if noise and name not in _EXACT else result

    with dispatch_mode(handler):
        yield


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return gelu without the difference that loses all digits for negative numbers."""
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return x * torch.sigmoid(2 * inner)
    tail: Tensor = torch.special.erfc(-x / math.sqrt(2))
    return x * (0.5 * tail)


# Ops whose formula in torch loses as many digits in double as in single precision.
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


# Ops that subtract what an inner step has rounded: a result near zero is off by as much as that
# inner step.
_INNER: dict[str, Callable[..., Tensor]] = {
    "_log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
}


def name_of(op: Any) -> str:
    """Return an overload's base name: ``add_``."""
    return str(raw_schema(op).name.partition("::")[2])


def rounded_result(op: Any, result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return an op's result with errors; a tensor that the op has written to gets them in place."""
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


def with_noise(tensor: Any, eps: float, generator: torch.Generator | None) -> Any:
    """Return a tensor of doubles with relative errors up to ``eps``; other values unchanged."""
    if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    if tensor.dtype not in (torch.float64, torch.complex128) or not tensor.numel():
        return tensor
    if tensor.numel() > _MOST_DRAWN:
        factors = _factors((_MOST_DRAWN,), eps, generator)
        if tensor.is_contiguous() and not tensor.requires_grad:
            return _times_repeated(tensor, factors)
        count = -(-tensor.numel() // _MOST_DRAWN)
        return tensor * factors.repeat(count)[: tensor.numel()].view(tensor.shape)
    return tensor * _factors(tuple(tensor.shape), eps, generator)


def _times_repeated(tensor: Tensor, factors: Tensor) -> Tensor:
    """Return a contiguous tensor's numbers times factors that begin again at the last one's end."""
    result, count = torch.empty_like(tensor), len(factors)
    numbers, products = tensor.view(-1), result.view(-1)
    whole = len(numbers) // count * count
    torch.mul(numbers[:whole].view(-1, count), factors, out=products[:whole].view(-1, count))
    torch.mul(numbers[whole:], factors[: len(numbers) - whole], out=products[whole:])
    return result


def _factors(shape: tuple[int, ...], eps: float, generator: torch.Generator | None) -> Tensor:
    # Errors of both signs, none near zero. Not all of one size: equal errors would cancel.
    drawn = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    return 1 + eps * (drawn + drawn.sign()) / 2


def all_finite(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(all_finite, value))
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


def epsilon_of(value: Any) -> float:
    """Return how far off rounding may put a value of a tensor, as a share of the value."""
    if value.dim() == 0 and value.dtype in (torch.float64, torch.complex128):
        return 0.0  # The tensor stands for a number, or is like one.
    if value.is_floating_point() or value.is_complex():
        return torch.finfo(value.dtype).eps / 2
    return 0.0


def widened(value: Tensor) -> Tensor:
    if value.is_complex():
        return value if value.dtype is torch.complex128 else value.to(torch.complex128)
    if value.is_floating_point() and value.dtype is not torch.float64:
        return value.to(torch.float64)
    return value
