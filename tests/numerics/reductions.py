"""Reductions and scans: every overload with the calls that the laboratory makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import exact_rows as exact
from .hard_calls import (
    EQUAL,
    RULE,
    Draw,
    HardCall,
)
from .shapes import (
    Shape,
    shapes,
    threads_for,
    vectors,
)

Share = str
Calls = Callable[[Share], Iterator[HardCall]]
# The op's arguments after its tensor, given the dimensions.
Rest = Callable[[Any], tuple[Sequence[Any], dict[str, Any]]]
_ALL_NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def calls(op: str, share: Share) -> Iterator[HardCall]:
    """Return the calls of one overload of ``OPS``."""
    return OPS[op](share)


def dtypes(op: str) -> tuple[torch.dtype, ...]:
    """Return the dtypes that the laboratory has data for, whether or not eager takes them."""
    return _FLOATS if op in _ONLY_FLOATS else _ALL_NUMBERS


def _over(
    op: str,
    rest: Rest,
    *,
    several: bool = False,
    how: str | tuple[str, ...] = RULE,
    exact_of: Callable[[exact.Array], Any] | None = None,
    label: str = "",
) -> Calls:
    """Return the calls of an op that reduces dimensions; ``several`` whether it takes a list."""

    def of(share: Share) -> Iterator[HardCall]:
        for shape in shapes(share, several=several):
            dims: Any = list(shape.dims) if several else shape.dim
            yield _call(op, shape, rest(dims), how, _along(exact_of, shape), label)

    return of


def _call(
    op: str,
    shape: Shape,
    rest: tuple[Sequence[Any], dict[str, Any]],
    how: str | tuple[str, ...],
    exact_of: Any,
    label: str,
) -> HardCall:
    args, kwargs = rest
    return HardCall(
        op,
        f"{shape.label}{label}",
        lambda draw: ([shape.tensor(draw, 0), *args], kwargs),
        how,
        exact_of,
        threads=shape.threads,
        eager_overflows=_cancels(op, exact_of),
    )


def _cancels(op: str, exact_of: Any) -> bool:
    """Return whether eager in float64 is no reference: a mean that cancels is all rounding."""
    return exact_of is not None and "_mean" in op


def _along(function: Callable[[exact.Array], Any] | None, shape: Shape) -> Any:
    """Return the function of rows as one of a tensor whose ``dims`` are reduced."""
    if function is None:
        return None

    def of(x: exact.Array) -> Any:
        kept = [i for i in range(x.ndim) if i not in shape.dims]
        moved = x.transpose([*kept, *shape.dims])
        return function(moved.reshape([x.shape[i] for i in kept] + [-1]) if x.size else moved)

    return of


def _whole(
    op: str,
    *rests: tuple[Any, ...],
    how: str | tuple[str, ...] = RULE,
    exact_of: Any = None,
    **kwargs: Any,
) -> Calls:
    """Return the calls of an op that reduces a tensor to one number, with each of ``rests``."""

    def vector(n: int) -> Callable[[Draw], Tensor]:
        return lambda draw: draw.rows(n, count=1)[0]

    def rectangle(draw: Draw) -> Tensor:
        return draw.rows(129, count=24).t()

    def of(share: Share) -> Iterator[HardCall]:
        tensors = [(f"{n} numbers", vector(n), threads_for(n)) for n in vectors(share)]
        if share in ("default", "full"):
            tensors.append(("129 by 24, transposed", rectangle, 1))
        for rest in rests or ((),):
            for name, tensor, threads in tensors:
                yield HardCall(
                    op,
                    f"{name} {rest or ''}".rstrip(),
                    lambda draw, tensor=tensor, rest=rest: ([tensor(draw), *rest], kwargs),
                    how,
                    (lambda x: exact_of(x.reshape(-1))) if exact_of else None,
                    draws=8,
                    threads=threads,
                    eager_overflows=_cancels(op, exact_of),
                )

    return of


def _each(*several: Calls) -> Calls:
    def of(share: Share) -> Iterator[HardCall]:
        # A share for tests has the first kind only.
        for one in several if share in ("default", "full") else several[:1]:
            yield from one(share)

    return of


def _few(calls_: Calls) -> Calls:
    """Return the calls on a few shapes only: an argument is tried that has little to do with them.

    The whole share has them all.
    """

    def of(share: Share) -> Iterator[HardCall]:
        made = list(calls_(share))
        yield from made if share == "full" else made[4::6]

    return of


def _spread(name: str) -> dict[str, Calls]:
    """Return the overloads of ``var``, ``std``, ``var_mean`` and ``std_mean``."""
    one = exact.deviation if name.startswith("std") else exact.variance
    both = name.endswith("_mean")

    def exact_of(correction: float) -> Any:
        return (lambda x: (one(correction)(x), exact.mean(x))) if both else one(correction)

    op = f"aten::{name}"
    return {
        f"{op}.correction": _each(
            _over(
                f"{op}.correction", lambda dims: ([dims], {}), several=True, exact_of=exact_of(1)
            ),
            *(
                _few(
                    _over(
                        f"{op}.correction",
                        lambda dims, c=correction: ([dims], {"correction": c}),
                        several=True,
                        exact_of=exact_of(correction),
                        label=f", correction {correction}",
                    )
                )
                for correction in (0, 2, 33, 0.5)
            ),
            _few(_whole(f"{op}.correction", (None,), exact_of=exact_of(1))),
        ),
        op: _whole(op, (True,), (False,), exact_of=exact_of(1)),
        f"{op}.dim": _each(
            _over(f"{op}.dim", lambda dims: ([dims], {}), several=True, exact_of=exact_of(1)),
            _few(
                _over(
                    f"{op}.dim",
                    lambda dims: ([dims, False, True], {}),
                    several=True,
                    label=", biased, keepdim",
                    exact_of=exact_of(0),
                )
            ),
        ),
    }


def _norms() -> dict[str, Calls]:
    orders = (2.0, 1.0, 0.0, math.inf, -math.inf, 3.0, 0.5, -1.0)
    made: dict[str, Calls] = {
        "aten::linalg_vector_norm": _each(
            *(
                (lambda calls_: calls_ if order == 2.0 else _few(calls_))(
                    _over(
                        "aten::linalg_vector_norm",
                        lambda dims, p=order: ([p, dims], {}),
                        several=True,
                        label=f", order {order}",
                        exact_of=exact.norm(order),
                    )
                )
                for order in orders
            ),
            _few(_whole("aten::linalg_vector_norm", (2.0,), (1.0,), exact_of=exact.norm(2.0))),
        ),
        "aten::norm.Scalar": _whole("aten::norm.Scalar", (2.0,), (1.0,)),
        "aten::norm.ScalarOpt_dim": _each(
            _over("aten::norm.ScalarOpt_dim", lambda dims: ([2.0, dims], {}), several=True),
            _few(
                _over(
                    "aten::norm.ScalarOpt_dim",
                    lambda dims: ([1.0, dims, True], {}),
                    several=True,
                    label=", order 1, keepdim",
                )
            ),
        ),
        "aten::norm.ScalarOpt_dim_dtype": _over(
            "aten::norm.ScalarOpt_dim_dtype",
            lambda dims: ([2.0, dims, False], {"dtype": torch.float32}),
            several=True,
        ),
        "aten::norm.ScalarOpt_dtype": _whole(
            "aten::norm.ScalarOpt_dtype", (2.0,), dtype=torch.float32
        ),
        "aten::frobenius_norm.dim": _over(
            "aten::frobenius_norm.dim", lambda dims: ([dims], {}), several=True
        ),
        "aten::linalg_norm": _over(
            "aten::linalg_norm", lambda dims: ([None, dims], {}), several=True
        ),
    }
    return made


def _plain(name: str, how: str | tuple[str, ...], several: bool, exact_of: Any = None) -> Calls:
    """Return the calls of ``name(x, dims, keepdim)``."""
    op = f"aten::{name}"
    keep = _few(
        _over(
            op,
            lambda dims: ([dims, True], {}),
            several=several,
            how=how,
            label=", keepdim",
        )
    )
    return _each(
        _over(op, lambda dims: ([dims], {}), several=several, how=how, exact_of=exact_of), keep
    )


def _scan(name: str, how: str | tuple[str, ...] = RULE, *rest: Any) -> Calls:
    return _over(f"aten::{name}", lambda dim: ([dim, *rest], {}), how=how)


OPS: dict[str, Calls] = {
    "aten::sum.dim_IntList": _each(
        _plain("sum.dim_IntList", RULE, True, exact.total),
        _few(
            _over(
                "aten::sum.dim_IntList",
                lambda dims: ([dims], {"dtype": torch.float32}),
                several=True,
                label=", to float32",
            )
        ),
    ),
    "aten::sum": _whole("aten::sum", exact_of=exact.total),
    "aten::mean.dim": _plain("mean.dim", RULE, True, exact.mean),
    "aten::mean": _whole("aten::mean", exact_of=exact.mean),
    "aten::nansum": _each(_plain("nansum", RULE, True), _few(_whole("aten::nansum", (None,)))),
    "aten::nanmean": _plain("nanmean", RULE, True),
    "aten::prod.dim_int": _plain("prod.dim_int", RULE, False, exact.product),
    "aten::prod": _whole("aten::prod", exact_of=exact.product),
    "aten::logsumexp": _plain("logsumexp", RULE, True, exact.log_sum_exp),
    "aten::special_logsumexp": _few(_plain("special_logsumexp", RULE, True, exact.log_sum_exp)),
    **_spread("var"),
    **_spread("std"),
    **_spread("var_mean"),
    **_spread("std_mean"),
    **_norms(),
    "aten::amax": _plain("amax", EQUAL, True),
    "aten::amin": _plain("amin", EQUAL, True),
    "aten::aminmax": _each(
        _over("aten::aminmax", lambda dim: ([], {"dim": dim}), how=(EQUAL, EQUAL)),
        _few(_whole("aten::aminmax", how=(EQUAL, EQUAL))),
    ),
    "aten::max": _whole("aten::max", how=EQUAL),
    "aten::min": _whole("aten::min", how=EQUAL),
    "aten::max.dim": _plain("max.dim", (EQUAL, EQUAL), False),
    "aten::min.dim": _plain("min.dim", (EQUAL, EQUAL), False),
    "aten::argmax": _each(_plain("argmax", EQUAL, False), _few(_whole("aten::argmax", how=EQUAL))),
    "aten::argmin": _each(_plain("argmin", EQUAL, False), _few(_whole("aten::argmin", how=EQUAL))),
    "aten::any": _whole("aten::any", how=EQUAL),
    "aten::any.dim": _plain("any.dim", EQUAL, False),
    "aten::any.dims": _plain("any.dims", EQUAL, True),
    "aten::all": _whole("aten::all", how=EQUAL),
    "aten::all.dim": _plain("all.dim", EQUAL, False),
    "aten::all.dims": _plain("all.dims", EQUAL, True),
    "aten::count_nonzero": _whole("aten::count_nonzero", how=EQUAL),
    "aten::count_nonzero.dim_IntList": _over(
        "aten::count_nonzero.dim_IntList", lambda dims: ([dims], {}), several=True, how=EQUAL
    ),
    "aten::cumsum": _scan("cumsum"),
    "aten::cumprod": _scan("cumprod"),
    "aten::logcumsumexp": _scan("logcumsumexp"),
    "aten::cummax": _scan("cummax", (EQUAL, EQUAL)),
    "aten::cummin": _scan("cummin", (EQUAL, EQUAL)),
    "aten::median": _whole("aten::median", how=EQUAL),
    "aten::median.dim": _scan("median.dim", (EQUAL, EQUAL)),
    "aten::mode": _scan("mode", (EQUAL, EQUAL)),
    "aten::sort": _scan("sort", (EQUAL, EQUAL)),
    "aten::sort.stable": _over(
        "aten::sort.stable",
        lambda dim: ([], {"stable": True, "dim": dim}),
        how=(EQUAL, EQUAL),
    ),
    "aten::argsort": _scan("argsort", EQUAL),
    "aten::msort": _over("aten::msort", lambda dim: ([], {}), how=EQUAL),
    "aten::topk": _over("aten::topk", lambda dim: ([2, dim], {}), how=(EQUAL, EQUAL)),
    "aten::kthvalue": _over("aten::kthvalue", lambda dim: ([2, dim], {}), how=(EQUAL, EQUAL)),
    "aten::trapezoid.dx": _over("aten::trapezoid.dx", lambda dim: ([], {"dx": 0.1, "dim": dim})),
    "aten::trapz.dx": _over("aten::trapz.dx", lambda dim: ([], {"dx": 0.1, "dim": dim})),
    "aten::cumulative_trapezoid.dx": _over(
        "aten::cumulative_trapezoid.dx", lambda dim: ([], {"dx": 0.1, "dim": dim})
    ),
    "aten::diff": _over("aten::diff", lambda dim: ([1, dim], {})),
    "aten::trace": lambda share: iter(
        [HardCall("aten::trace", "33 by 33", lambda d: ([d.rows(33, count=33)], {}), draws=8)]
    ),
}

_ONLY_FLOATS = frozenset(
    name
    for name in OPS
    if any(
        part in name
        for part in ("mean", "var", "std", "norm", "logsumexp", "logcumsumexp", "trap", "median")
    )
)
