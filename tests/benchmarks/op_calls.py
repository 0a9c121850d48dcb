"""A call of each op that may be in the op set: its arguments, for a tensor of given sizes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aoti_eager._base.op_names import find_overload
from aoti_eager._base.torch_compat.dispatcher import OpOverload
from aoti_eager._dispatch.certificates import shipped
from aoti_eager._keys.schema import Argument, Kind, op_schema, qualified_name
from aoti_eager._registration.resolve import has_composite_kernel, resolve
from aoti_eager.errors import RegistrationError

Call = Callable[[], Any]
Arguments = tuple[Sequence[Any], dict[str, Any]]
aten = torch.ops.aten

# Ops that are called with positive numbers, because they are not defined for others.
_POSITIVE = re.compile(
    r"::(special_)?(log(it|[0-9]|1p|gamma|$)|x?log[a-z0-9]*y|lgamma|r?sqrt|digamma|psi|pow|float_pow"
    r"|gammal|gammainc|multigammaln|polygamma|entr|acosh|arccosh|var|std)|batch_norm"
)
# What an op is called with where a schema has no default, by the argument's name.
_NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("dim", "axis"), -1),
    **dict.fromkeys(("lambd", "negative_slope", "eps", "rtol", "atol", "p", "delta", "beta"), 0.5),
    **dict.fromkeys(("alpha", "min", "threshold", "value", "margin", "min_val"), 0.25),
    **dict.fromkeys(("max", "max_val"), 0.75),
    **dict.fromkeys(("scale", "input_scale", "poscoef", "negcoef"), 1.0),
    **dict.fromkeys(("exponent", "other", "n"), 2),
    **dict.fromkeys(("weight", "maxnorm", "scalar"), 0.5),
    **dict.fromkeys(("full", "log_input", "is_result"), False),
    "reduction": 1,
    "rounding_mode": "floor",
    "decimals": 2,
    "unbiased": True,
    "correction": 1,
    "keepdim": False,
    "ord": 2,
}


def candidates() -> list[OpOverload]:
    """Return the ops that may be in the set: certified for float32, and no other name of an op.

    A composite op is one of them if its call reaches two kernels or more: otherwise the kernel that
    it reaches is registered itself.
    """
    rows = shipped()._found.values()
    names = sorted({one.op for one in rows if one.is_certified and one.dtype == "float32"})
    found = []
    for name in names:
        op = find_overload(name if "." in name else f"{name}.default")
        try:
            resolve(op, "CPU")
        except RegistrationError:
            continue
        if not has_composite_kernel(op, "CPU") or _kernels_reached(op) > 1:
            found.append(op)
    return found


def call_of(op: OpOverload, sizes: Sequence[int], dtype: torch.dtype) -> Call | None:
    """Return a call of ``op`` that succeeds; ``None`` if it takes no tensors like that.

    Args:
        op: The op.
        sizes: The sizes of its main tensors.
        dtype: Their dtype.
    """
    generator = torch.Generator().manual_seed(0)
    # Of both signs: an op may skip what it need not compute for one of them.
    lowest = 0.1 if _POSITIVE.search(qualified_name(op)) else -0.9

    def tensor(shape: Sequence[int] = tuple(sizes)) -> Tensor:
        return (torch.rand(shape, generator=generator) * (0.9 - lowest) + lowest).to(dtype)

    try:
        made = _BY_NAME.get(qualified_name(op))
        args, kwargs = _generic(op, tensor) if made is None else made(tensor)
        with torch.no_grad():
            op(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
        return None
    return functools.partial(op, *args, **kwargs)


def _kernels_reached(op: OpOverload) -> int:
    """Return how many ops besides views a call of ``op`` reaches."""

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        reached = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.reached += not func.is_view
            return func(*args, **(kwargs or {}))

    call = call_of(op, (4, 8), torch.float32)
    if call is None:
        return 0
    with Count() as count, torch.no_grad():  # type: ignore[no-untyped-call]
        call()
    return count.reached


def _generic(op: OpOverload, tensor: Callable[[], Tensor]) -> Arguments:
    """Return arguments by the schema: tensors like the first, numbers by their names."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in op_schema(op).arguments:
        if argument.has_default and argument.kind is not Kind.TENSOR:
            if argument.kwarg_only:
                continue
            value = argument.default
        else:
            value = _value(argument, tensor)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return args, kwargs


def _value(argument: Argument, tensor: Callable[[], Tensor]) -> Any:
    if argument.kind is Kind.TENSOR:
        if argument.optional:
            return None
        made = tensor()
        return made > 0.5 if argument.name in ("condition", "mask") else made
    if argument.kind is Kind.INTS:
        return [-1]
    if argument.name in _NUMBERS and (not argument.optional or argument.name in ("dim", "min")):
        return _NUMBERS[argument.name]
    return None


def _norm(tensor: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return a tensor, and weight and bias for its last dimension."""
    x = tensor()
    return x, tensor(x.shape[-1:]), tensor(x.shape[-1:])


def _layer_norm(tensor: Callable[..., Tensor]) -> Arguments:
    x, weight, bias = _norm(tensor)
    return (x, x.shape[-1:], weight, bias, 1e-5), {}


def _layer_norm_backward(tensor: Callable[..., Tensor]) -> Arguments:
    x, weight, bias = _norm(tensor)
    _, mean, rstd = aten.native_layer_norm(x, x.shape[-1:], weight, bias, 1e-5)
    return (tensor(), x, x.shape[-1:], mean, rstd, weight, bias, [True, True, True]), {}


def _image(tensor: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (N, 8, rest) of the same data, and weight and bias for 8 channels."""
    x = tensor()
    return x.reshape(x.shape[0], 8, -1), tensor((8,)), tensor((8,))


def _group(x: Tensor) -> tuple[int, int, int, int]:
    return x.shape[0], 8, x[0, 0].numel(), 4


def _group_norm_backward(tensor: Callable[..., Tensor]) -> Arguments:
    x, weight, bias = _image(tensor)
    _, mean, rstd = aten.native_group_norm(x, weight, bias, *_group(x), 1e-5)
    gradient = tensor().reshape(x.shape)
    return (gradient, x, mean, rstd, weight, *_group(x), [True, True, True]), {}


def _batch_norm(tensor: Callable[..., Tensor]) -> Arguments:
    x, weight, bias = _image(tensor)
    return (x, weight, bias, tensor((8,)), tensor((8,)), False, 0.1, 1e-5), {}


def _batch_norm_backward(tensor: Callable[..., Tensor]) -> Arguments:
    x, weight, _ = _image(tensor)
    flags = False, 1e-5, [True, True, True]
    gradient = tensor().reshape(x.shape)
    return (gradient, x, weight, tensor((8,)), tensor((8,)), None, None, *flags), {}


def _rms(tensor: Callable[..., Tensor]) -> Arguments:
    x, weight, _ = _norm(tensor)
    return (x, list(x.shape[-1:]), weight, 1e-5), {}


def _vector(tensor: Callable[..., Tensor]) -> Arguments:
    return (tensor().flatten(), tensor().flatten()), {}


def _backward_of(
    forward: Callable[[Tensor], Tensor],
) -> Callable[[Callable[..., Tensor]], Arguments]:
    """Return what makes the arguments of a softmax's gradient."""

    def made(tensor: Callable[..., Tensor]) -> Arguments:
        x = tensor()
        return (tensor(), forward(x), -1, x.dtype), {}

    return made


def _args(*make: Any) -> Callable[[Callable[..., Tensor]], Arguments]:
    """Return what makes arguments: ``...`` stands for a tensor, anything else for itself."""

    def made(tensor: Callable[..., Tensor]) -> Arguments:
        return [tensor() if one is ... else one for one in make], {}

    return made


def _mean_variance(tensor: Callable[..., Tensor]) -> Arguments:
    return (tensor(), [-1]), {"correction": 1}


def _cross_entropy_like(tensor: Callable[..., Tensor]) -> Arguments:
    target = tensor()
    return (tensor(), (target > 0.5).to(target.dtype) * 2 - 1), {}


# Arguments that the schema does not tell.
_BY_NAME: dict[str, Callable[[Callable[..., Tensor]], Arguments]] = {
    "aten::_softmax": _args(..., -1, False),
    "aten::_log_softmax": _args(..., -1, False),
    "aten::_safe_softmax": _args(..., -1),
    "aten::_softmax_backward_data": _backward_of(lambda x: torch.softmax(x, -1)),
    "aten::_log_softmax_backward_data": _backward_of(lambda x: torch.log_softmax(x, -1)),
    "aten::native_layer_norm": _layer_norm,
    "aten::native_layer_norm_backward": _layer_norm_backward,
    "aten::native_group_norm": lambda t: ((*(x := _image(t)), *_group(x[0]), 1e-5), {}),
    "aten::native_group_norm_backward": _group_norm_backward,
    "aten::native_batch_norm": _batch_norm,
    "aten::native_batch_norm_backward": _batch_norm_backward,
    "aten::_native_batch_norm_legit.no_stats": lambda t: ((*_image(t), True, 0.1, 1e-5), {}),
    "aten::instance_norm": lambda t: (
        (*_image(t), None, None, True, 0.1, 1e-5, False),
        {},
    ),
    "aten::rms_norm": _rms,
    "aten::_fused_rms_norm": _rms,
    "aten::dot": _vector,
    "aten::vdot": _vector,
    "aten::inner": _vector,
    "aten::mv": lambda t: (((x := t().flatten(0, -2)), t()[..., 0, :].flatten()[: x.shape[1]]), {}),
    "aten::trace": lambda t: ((t().flatten(0, -2),), {}),
    "aten::glu_backward": lambda t: ((t().narrow(-1, 0, t().shape[-1] // 2).clone(), t(), -1), {}),
    "aten::log_sigmoid_backward": _args(..., ..., ...),
    "aten::elu_backward": _args(..., 1.0, 1.0, 1.0, False, ...),
    "aten::gelu_backward": _args(..., ...),
    "aten::leaky_relu_backward": _args(..., ..., 0.1, False),
    "aten::hardtanh_backward": _args(..., ..., 0.2, 0.8),
    "aten::softplus_backward": _args(..., ..., 1.0, 20.0),
    "aten::threshold": _args(..., 0.5, 0.0),
    "aten::threshold_backward": _args(..., ..., 0.5),
    "aten::logit_backward": _args(..., ..., 1e-3),
    "aten::mse_loss_backward": _args(..., ..., ..., 0),
    "aten::smooth_l1_loss_backward": _args(..., ..., ..., 0, 1.0),
    "aten::huber_loss_backward": _args(..., ..., ..., 0, 1.0),
    "aten::var.correction": _mean_variance,
    "aten::std.correction": _mean_variance,
    "aten::var_mean.correction": _mean_variance,
    "aten::std_mean.correction": _mean_variance,
    "aten::pow.Scalar": _args(2.0, ...),
    "aten::clamp": _args(..., 0.25, 0.75),
    "aten::clamp_max": _args(..., 0.75),
    "aten::logsumexp": _args(..., [-1]),
    "aten::norm.ScalarOpt_dim": _args(..., 2, [-1]),
    "aten::linalg_vector_norm": _args(..., 2, [-1]),
    "aten::renorm": _args(..., 2, 0, 1.0),
    "aten::lerp.Scalar": _args(..., ..., 0.25),
    "aten::rsub.Scalar": _args(..., 2.0),
    "aten::nan_to_num": _args(..., 0.0),
    "aten::hinge_embedding_loss": _cross_entropy_like,
    "aten::_to_copy": lambda t: ((t(),), {"dtype": torch.float64}),
    "aten::_prelu_kernel": lambda t: (((x := t()), t(x.shape[-1:])), {}),
    "aten::_prelu_kernel_backward": lambda t: ((t(), (x := t()), t(x.shape[-1:])), {}),
    "aten::native_dropout_backward": lambda t: ((t(), t() > 0.5, 2.0), {}),
}
