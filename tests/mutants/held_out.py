"""Calls that the trial's constants were not chosen by: what serves of them must pass.

Other ops than those of ``calls``, other sizes, which no vector divides, and other functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from .calls import Case, leaf

aten = torch.ops.aten


def _ops(x: Tensor, y: Tensor) -> Iterator[tuple[str, str, Callable[[], object]]]:
    yield "hardshrink", "aten::hardshrink", lambda: functional.hardshrink(x)
    yield "softshrink", "aten::softshrink", lambda: functional.softshrink(x)
    yield "erfc", "aten::erfc", lambda: x.erfc()
    yield "sinc", "aten::sinc", lambda: x.sinc()
    yield "rsub", "aten::rsub.Scalar", lambda: torch.rsub(x, 0.7)
    yield "pow 3", "aten::pow.Tensor_Scalar", lambda: x.pow(3)
    yield "glu", "aten::glu", lambda: functional.glu(x, 0)
    yield "dist", "aten::dist", lambda: torch.dist(x, y)
    yield "std_mean", "aten::std_mean.correction", lambda: torch.std_mean(x, 0)
    yield "var all", "aten::var.correction", lambda: x.var()
    yield "mean 0", "aten::mean.dim", lambda: x.mean(0)
    yield "sum all", "aten::sum", lambda: x.sum()
    yield "softmax 0", "aten::_softmax", lambda: x.softmax(0)
    yield "log_softmax 0", "aten::_log_softmax", lambda: x.log_softmax(0)
    yield "norm 1", "aten::linalg_vector_norm", lambda: torch.linalg.vector_norm(x, 1, 0)
    yield "norm 3", "aten::linalg_vector_norm", lambda: torch.linalg.vector_norm(x, 3)
    yield "aminmax", "aten::aminmax", lambda: torch.aminmax(x, dim=1)
    yield "logsumexp all", "aten::logsumexp", lambda: torch.logsumexp(x, (0, 1))
    yield "soft margin", "aten::soft_margin_loss", lambda: functional.soft_margin_loss(x, y.sign())
    yield "huber", "aten::huber_loss", lambda: functional.huber_loss(x, y)
    yield "layer_norm", "aten::native_layer_norm", lambda: functional.layer_norm(x, x.shape[1:])
    yield (
        "group_norm",
        "aten::native_group_norm",
        lambda: functional.group_norm(x[None].transpose(1, 2), 1),
    )
    yield "silu backward", "aten::silu_backward", lambda: aten.silu_backward(x, y)
    yield "gelu backward", "aten::gelu_backward", lambda: aten.gelu_backward(x, y)
    yield "tanh backward", "aten::tanh_backward", lambda: aten.tanh_backward(x, y)
    yield (
        "softmax backward",
        "aten::_softmax_backward_data",
        lambda: aten._softmax_backward_data(x, y.softmax(1), 1, x.dtype),
    )
    yield (
        "log_softmax backward",
        "aten::_log_softmax_backward_data",
        lambda: aten._log_softmax_backward_data(x, y.log_softmax(1), 1, x.dtype),
    )


def gated(x: Tensor, y: Tensor) -> Tensor:
    return functional.gelu(x - x.mean(-1, keepdim=True)) * torch.sigmoid(y) + 0.5 * x


def scores(x: Tensor, y: Tensor) -> Tensor:
    return torch.softmax((x * y) / 8.0 - y.abs(), -1) * torch.tanh(y)


def standardised(x: Tensor, y: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.std(0) + 1e-5) + functional.softplus(y)


def blended(x: Tensor, y: Tensor) -> Tensor:
    normed = functional.layer_norm(x + y, x.shape[-1:])
    return torch.where(normed > 0, normed, 0.1 * y) / (1 + x.abs())


def divergence(x: Tensor, y: Tensor) -> Tensor:
    p, q = torch.log_softmax(x, -1), torch.log_softmax(y, -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def energy(x: Tensor, y: Tensor) -> Tensor:
    return torch.logsumexp(x * y, -1) - torch.logaddexp(x, y).mean(-1)


def held_out_cases() -> Iterator[Case]:
    """Give the calls, in three precisions, each of a size that no vector divides."""
    sizes = {torch.float32: (7, 33), torch.float64: (3, 129), torch.bfloat16: (5, 65)}
    for dtype, size in sizes.items():
        kind = str(dtype).removeprefix("torch.")
        x, y = (torch.randn(*size, dtype=dtype) for _ in range(2))
        x, y = (one[: one.shape[0] - one.shape[0] % 2] for one in (x, y))
        for name, op, call in _ops(x, y):
            yield Case(f"held out {name} {kind}", op, call)
        for function in (gated, scores, standardised, blended, divergence, energy):
            arguments = [leaf(*size, dtype=dtype), leaf(*size, dtype=dtype)]
            yield Case(f"held out {function.__name__} {kind}", None, function, arguments)
