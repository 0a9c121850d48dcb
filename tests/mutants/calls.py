"""The calls whose kernels are mutated, or only tried."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import aoti_eager

from ..benchmarks import gate
from ..support import gradient_ops
from . import functions

aten = torch.ops.aten
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Case:
    """A call of an op of PyTorch's, or of a function with its gradient.

    Attributes:
        name: What it is.
        op: What is registered; ``None`` where ``call`` is a function to make an op of.
        call: The call, or the function.
        arguments: The function's.
        mutates: Which arguments the function writes to.
    """

    name: str
    op: str | None
    call: Callable[..., Any]
    arguments: Sequence[Any] = ()
    mutates: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Return the name of its directory."""
        return re.sub(r"\W+", "-", self.name)

    def run(self) -> None:
        """Make the call once, with kernels."""
        if self.op is not None:
            with aoti_eager.register(self.op):
                self.call()
            return
        name = f"aetest::{self.call.__name__}_{next(_numbers)}"
        op = aoti_eager.custom_op(name, self.call, mutates_args=self.mutates)
        try:
            with torch.no_grad():
                op(*self.arguments)
            if not self.mutates and any(
                isinstance(one, Tensor) and one.requires_grad for one in self.arguments
            ):
                results = op(*self.arguments)
                results = results if isinstance(results, tuple) else (results,)
                torch.autograd.backward(results, [torch.ones_like(one) for one in results])
        finally:
            op.unregister()


UNARY = """
    abs exp exp2 expm1 log log1p log2 log10 sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh
    asinh acosh atanh erf erfc sigmoid floor ceil round trunc frac sign sgn reciprocal neg square
    relu hardtanh hardswish hardsigmoid softplus elu celu selu leaky_relu mish logit nan_to_num
    isfinite signbit deg2rad lgamma digamma i0 erfinv
"""


def leaf(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a parameter or an activation."""
    return torch.randn(*sizes, dtype=dtype).requires_grad_()


def function_cases() -> Iterator[Case]:
    """Give functions of users', forward and backward."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        x, weight = leaf(16, 64, dtype=dtype), leaf(64, dtype=dtype)
        yield Case(f"llama_rms_norm {kind}", None, functions.llama_rms_norm, [x, weight])
        yield Case(f"rms_norm {kind}", None, gradient_ops.rms_norm, [x, weight])
        yield Case(f"swiglu {kind}", None, gradient_ops.swiglu, [x, leaf(16, 64, dtype=dtype)])
        yield Case(f"gelu_tanh {kind}", None, gradient_ops.gelu_tanh, [x])
    x = leaf(16, 64)
    ln = [x, leaf(16, 64), leaf(64), leaf(64)]
    yield Case("layer_norm_residual", None, gradient_ops.layer_norm_residual, ln)
    rotary = [leaf(4, 16, 64), torch.randn(16, 32), torch.randn(16, 32)]
    yield Case("rotary", None, gradient_ops.rotary, rotary)
    logits = [x, torch.randint(64, (16,))]
    yield Case("cross_entropy", None, gradient_ops.cross_entropy, logits)
    yield Case("cosine", None, gradient_ops.cosine, [x, leaf(16, 64)])
    yield Case("huber", None, gradient_ops.huber, [x, leaf(16, 64)])
    yield Case("affine", None, gradient_ops.affine, [x, leaf(64), leaf(16, 1)])
    yield Case("variance", None, gradient_ops.variance, [leaf(4, 16, 32)])
    mask = torch.rand(16, 64) > 0.3
    yield Case("masked_softmax", None, gradient_ops.masked_softmax, [x, mask, 0.5])
    yield Case("bilinear", None, gradient_ops.bilinear, [leaf(8, 64), leaf(64, 16), leaf(16)])
    lists = [[torch.rand(16, 64) for _ in range(2)] for _ in range(4)]
    adamw = [*lists, 1e-3, 0.9, 0.999, 1e-8, 0.01, 0.1, 0.001]
    names = ("parameters", "averages", "squares")
    yield Case("adamw", None, gradient_ops.adamw, adamw, names)


def gate_cases() -> Iterator[Case]:
    """Give what the benchmark of the gate calls."""
    for name, op, call in gate.cases():
        yield Case(f"gate {name}", op, call)


def op_cases() -> Iterator[Case]:
    """Give ops of one kernel: pointwise, reductions, of integers."""
    x, y = torch.randn(16, 64), torch.randn(16, 64)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        z = x.to(dtype)
        for name in UNARY.split():
            function = getattr(torch, name, None) or getattr(functional, name)
            yield Case(f"{name} {kind}", f"aten::{name}", lambda f=function, z=z: f(z))
        yield Case(
            f"logsigmoid {kind}", "aten::log_sigmoid_forward", lambda z=z: functional.logsigmoid(z)
        )
        z, w = x.to(dtype), y.to(dtype)
        for name in [
            "add",
            "sub",
            "mul",
            "div",
            "atan2",
            "fmod",
            "remainder",
            "pow",
            "maximum",
            "minimum",
            "fmax",
            "fmin",
            "hypot",
            "copysign",
            "nextafter",
            "logaddexp",
            "logaddexp2",
            "heaviside",
            "xlogy",
            "eq",
            "lt",
            "where",
            "lerp",
            "addcmul",
            "addcdiv",
        ]:
            if name == "where":
                yield Case(
                    f"where {kind}", "aten::where.self", lambda z=z, w=w: torch.where(z > 0, z, w)
                )
            elif name == "lerp":
                yield Case(
                    f"lerp {kind}", "aten::lerp.Scalar", lambda z=z, w=w: torch.lerp(z, w, 0.3)
                )
            elif name in ("addcmul", "addcdiv"):
                f = getattr(torch, name)
                yield Case(
                    f"{name} {kind}", f"aten::{name}", lambda f=f, z=z, w=w: f(z, w, w, value=0.5)
                )
            else:
                f = getattr(torch, name)
                packet = getattr(aten, name)
                overload = "Tensor" if "Tensor" in packet.overloads() else "default"
                overload = "Tensor_Tensor" if name == "pow" else overload
                overload = "" if overload == "default" else f".{overload}"
                yield Case(
                    f"{name} {kind}", f"aten::{name}{overload}", lambda f=f, z=z, w=w: f(z, w)
                )
        yield Case(
            f"div trunc {kind}",
            "aten::div.Tensor_mode",
            lambda z=z, w=w: torch.div(z, w, rounding_mode="trunc"),
        )
        yield Case(
            f"div floor {kind}",
            "aten::div.Tensor_mode",
            lambda z=z, w=w: torch.div(z, w, rounding_mode="floor"),
        )
        yield Case(
            f"remainder scalar {kind}",
            "aten::remainder.Scalar",
            lambda z=z: torch.remainder(z, 6.283185307179586),
        )
        yield Case(f"mul number {kind}", "aten::mul.Tensor", lambda z=z: z * 0.3)
        yield Case(f"clamp {kind}", "aten::clamp", lambda z=z: torch.clamp(z, -0.5, 0.5))
        yield Case(f"mul one {kind}", "aten::mul.Tensor", lambda z=z, w=w: z[0, 0] * w[0, 0])
        for name, op, call in (
            ("sum", "aten::sum.dim_IntList", lambda z=z: z.sum(1)),
            ("sum all", "aten::sum", lambda z=z: z.sum()),
            ("sum 0", "aten::sum.dim_IntList", lambda z=z: z.sum(0)),
            ("mean", "aten::mean.dim", lambda z=z: z.mean(1)),
            ("var", "aten::var.correction", lambda z=z: z.var(1)),
            ("std", "aten::std.correction", lambda z=z: z.std(1)),
            ("var_mean", "aten::var_mean.correction", lambda z=z: torch.var_mean(z, 1)),
            ("amax", "aten::amax", lambda z=z: z.amax(1)),
            ("amin", "aten::amin", lambda z=z: z.amin(1)),
            ("prod", "aten::prod.dim_int", lambda z=z: z.prod(1)),
            ("argmax", "aten::argmax", lambda z=z: z.argmax(1)),
            ("norm", "aten::linalg_vector_norm", lambda z=z: torch.linalg.vector_norm(z, dim=1)),
            ("logsumexp", "aten::logsumexp", lambda z=z: z.logsumexp(1)),
            ("softmax", "aten::_softmax", lambda z=z: z.softmax(1)),
            ("log_softmax", "aten::_log_softmax", lambda z=z: z.log_softmax(1)),
            ("cumsum", "aten::cumsum", lambda z=z: z.cumsum(1)),
            ("cumprod", "aten::cumprod", lambda z=z: z.cumprod(1)),
            ("any", "aten::any.dim", lambda z=z: z.any(1)),
            ("mse_loss", "aten::mse_loss", lambda z=z, w=w: functional.mse_loss(z, w)),
            (
                "bce",
                "aten::binary_cross_entropy_with_logits",
                lambda z=z, w=w: functional.binary_cross_entropy_with_logits(z, w),
            ),
            ("smooth_l1", "aten::smooth_l1_loss", lambda z=z, w=w: functional.smooth_l1_loss(z, w)),
            (
                "sigmoid_backward",
                "aten::sigmoid_backward",
                lambda z=z, w=w: aten.sigmoid_backward(z, w),
            ),
            (
                "threshold_backward",
                "aten::threshold_backward",
                lambda z=z, w=w: aten.threshold_backward(z, w, 0),
            ),
            (
                "elu_backward",
                "aten::elu_backward",
                lambda z=z, w=w: aten.elu_backward(z, 1.0, 1.0, 1.0, False, w),
            ),
            ("cat", "aten::cat", lambda z=z, w=w: torch.cat([z, w], 1)),
            (
                "upsample",
                "aten::upsample_bilinear2d",
                lambda z=z: functional.interpolate(
                    z.reshape(1, 4, 16, 16), scale_factor=2, mode="bilinear"
                ),
            ),
            (
                "avg_pool",
                "aten::avg_pool2d",
                lambda z=z: functional.avg_pool2d(z.reshape(4, 16, 16), 2),
            ),
            ("add_", "aten::add_.Tensor", lambda z=z, w=w: z.clone().add_(w, alpha=0.5)),
        ):
            yield Case(f"{name} {kind}", op, call)
    a, b = torch.randint(-9, 9, (16, 64)), torch.randint(1, 9, (16, 64))
    for dtype in (torch.int64, torch.int32, torch.int8, torch.uint8):
        kind = str(dtype).removeprefix("torch.")
        i, j = a.to(dtype), b.to(dtype)
        for name, op, call in (
            ("add", "aten::add.Tensor", lambda i=i, j=j: i + j),
            ("mul", "aten::mul.Tensor", lambda i=i, j=j: i * j),
            ("sub number", "aten::sub.Tensor", lambda i=i: i - 3),
            ("div", "aten::div.Tensor", lambda i=i, j=j: i / j),
            ("maximum", "aten::maximum", lambda i=i, j=j: torch.maximum(i, j)),
            ("shift left", "aten::bitwise_left_shift.Tensor", lambda i=i, j=j: i << j),
            ("shift right", "aten::bitwise_right_shift.Tensor", lambda i=i, j=j: i >> j),
            ("and", "aten::bitwise_and.Tensor", lambda i=i, j=j: i & j),
            ("xor", "aten::bitwise_xor.Tensor", lambda i=i, j=j: i ^ j),
            ("abs", "aten::abs", lambda i=i: i.abs()),
            ("clamp", "aten::clamp", lambda i=i: i.clamp(-2, 3)),
            ("eq", "aten::eq.Tensor", lambda i=i, j=j: i == j),
            ("sum", "aten::sum.dim_IntList", lambda i=i: i.sum(1)),
            ("amax", "aten::amax", lambda i=i: i.amax(1)),
            ("sign", "aten::sign", lambda i=i: i.sign()),
            ("pow", "aten::pow.Tensor_Scalar", lambda i=i: i.pow(2)),
            ("to float", "aten::_to_copy", lambda i=i: aten._to_copy(i, dtype=torch.float32)),
        ):
            yield Case(f"{name} {kind}", op, call)
    yield Case("float to int", "aten::_to_copy", lambda: aten._to_copy(x, dtype=torch.int32))
    z = torch.randn(16, 64, dtype=torch.complex64)
    yield Case("mul complex64", "aten::mul.Tensor", lambda: z * z)
    yield Case("abs complex64", "aten::abs", lambda: z.abs())
    yield Case("bucketize", "aten::bucketize.Tensor", lambda: torch.bucketize(x, y[0]))


def all_cases() -> dict[str, Case]:
    """Return every case by its name."""
    return {c.name: c for c in itertools.chain(function_cases(), op_cases(), gate_cases())}


def mutated_cases() -> list[Case]:
    """Return the cases whose kernels are mutated."""
    cases = all_cases()
    return [cases[name] for name in MUTATED]


# Of each kind some: pointwise, reductions, norms, softmax, backward, integers, half precision.
MUTATED = (
    *("llama_rms_norm float32", "llama_rms_norm bfloat16", "swiglu float32", "gelu_tanh float32"),
    *("rotary", "cross_entropy", "cosine", "huber", "affine", "variance"),
    *("sigmoid float32", "hardswish float32", "softplus float32", "atan2 float32"),
    *("logaddexp float32", "where float32", "clamp float32", "mul number float32", "add_ float32"),
    "mul one float32",
    *("sum float32", "mean float32", "softmax float32", "log_softmax float32"),
    *("amax float32", "norm float32", "cumsum float32", "smooth_l1 float32", "bce float32"),
    *("avg_pool float32", "mish bfloat16"),
    *("add int32", "mul int64", "clamp int64", "shift right int32", "xor int64", "maximum int8"),
    *("sum int64", "div int64", "fmod bfloat16", "gate softmax, bfloat16 4x512"),
)
