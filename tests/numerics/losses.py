"""Losses, distances and products of two tensors, and their gradients: the laboratory's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
from torch import Tensor

from .exact_rows import WIDE, Array
from .hard_calls import Draw, HardCall

Calls = Callable[[str], Iterator[HardCall]]
# ``reduction``, as schemas spell it.
NONE, MEAN, SUM = 0, 1, 2
_WORDS = {NONE: "each", MEAN: "mean", SUM: "sum"}


def _lengths(share: str) -> Sequence[int]:
    return {
        "test": (33,),
        "brief": (257,),
        "default": (1, 33, 1025),
        "full": (0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 65, 257, 1023, 1025, 4097),
    }[share]


def _target(draw: Draw, n: int, kind: str) -> Tensor:
    """Return a loss's target: of the input's family, probabilities, or signs."""
    if kind == "same":
        return draw.rows(n, nth=1)
    if kind == "probabilities":
        return draw.as_family("probabilities").rows(n, nth=1)
    ordinary = draw.ordinary(8, n)
    return ordinary.sign() + (ordinary == 0).to(ordinary.dtype)


def _loss(
    name: str, kind: str = "same", *middle: Any, options: Sequence[Any] = (), **kwargs: Any
) -> Calls:
    """Return calls of ``name(x, target, *middle, reduction, *one of options)``."""

    def calls(share: str) -> Iterator[HardCall]:
        for reduction in (MEAN, SUM, NONE):
            for n in _lengths(share) if reduction != NONE else _lengths(share)[-1:]:
                for option in options[: None if share in ("default", "full") else 1] or (None,):
                    rest = [*middle, reduction, *([] if option is None else [option])]
                    yield HardCall(
                        f"aten::{name}",
                        f"8 rows of {n}, {_WORDS[reduction]}"
                        + ("" if option is None else f", {option}")
                        + (f", {kwargs}" if kwargs else ""),
                        lambda d, n=n, rest=rest: (
                            [d.rows(n), _target(d, n, kind), *rest],
                            kwargs,
                        ),
                        draws=8 if reduction != NONE else 1,
                    )
            if share == "test":
                return

    return calls


def _loss_gradient(
    name: str,
    kind: str = "same",
    options: Sequence[Any] = (),
    exact_of: Callable[[int], Any] | None = None,
) -> Calls:
    """Return calls of ``name(gradient, x, target, reduction, *one of options)``.

    ``exact_of`` gives the exact results for a reduction where eager's formula overflows.
    """

    def calls(share: str) -> Iterator[HardCall]:
        for n in _lengths(share):
            for reduction in (MEAN, NONE):
                for option in options[: None if share in ("default", "full") else 1] or (None,):
                    rest = [reduction, *([] if option is None else [option])]

                    def arguments(draw: Draw, n: int = n, rest: Any = rest) -> Any:
                        sizes = (8, n) if rest[0] == NONE else ()
                        gradient = draw.ordinary(*sizes, nth=3)
                        return [gradient, draw.rows(n), _target(draw, n, kind), *rest], {}

                    label = f"8 rows of {n}, {_WORDS[reduction]}"
                    suffix = "" if option is None else f", {option}"
                    exact = None if exact_of is None else exact_of(reduction)
                    yield HardCall(
                        f"aten::{name}",
                        label + suffix,
                        arguments,
                        exact=exact,
                        eager_overflows=exact is not None,
                    )

    return calls


def _soft_margin_gradient(reduction: int) -> Callable[..., Array]:
    """Return the gradient of log(1 + exp(-xy)): eager divides one overflown power by another."""

    def of(gradient: Array, x: Array, target: Array) -> Array:
        each = -target / (1 + numpy.exp(x * target)) * gradient
        return each / WIDE(x.size) if reduction == MEAN else each

    return of


def _pair(name: str, *rest: Any, draws: int = 1, vector: bool = False) -> Calls:
    """Return calls of ``name(x, y, *rest)`` on rows of two draws of a family."""

    def calls(share: str) -> Iterator[HardCall]:
        for n in _lengths(share):

            def arguments(draw: Draw, n: int = n) -> Any:
                x, y = draw.rows(n), draw.rows(n, nth=1)
                return ([x[0], y[0], *rest] if vector else [x, y, *rest]), {}

            yield HardCall(f"aten::{name}", f"{n} {rest or ''}".rstrip(), arguments, draws=draws)

    return calls


def _each(*several: Calls) -> Calls:
    def calls(share: str) -> Iterator[HardCall]:
        for one in several if share in ("default", "full") else several[:1]:
            yield from one(share)

    return calls


def _three(name: str, make: Callable[[Draw, int], Sequence[Any]]) -> Calls:
    def calls(share: str) -> Iterator[HardCall]:
        for n in _lengths(share):
            yield HardCall(
                f"aten::{name}", f"rows of {n}", lambda d, n=n: (list(make(d, n)), {}), draws=4
            )

    return calls


OPS: dict[str, Calls] = {
    "aten::mse_loss": _loss("mse_loss"),
    "aten::l1_loss": _loss("l1_loss"),
    "aten::smooth_l1_loss": _loss("smooth_l1_loss", options=(1.0, 0.1)),
    "aten::huber_loss": _loss("huber_loss", options=(1.0, 0.1)),
    "aten::kl_div": _each(
        _loss("kl_div", "probabilities"), _loss("kl_div", "same", log_target=True)
    ),
    "aten::binary_cross_entropy_with_logits": _loss(
        "binary_cross_entropy_with_logits", "probabilities", None, None
    ),
    "aten::soft_margin_loss": _loss("soft_margin_loss", "signs"),
    "aten::hinge_embedding_loss": _loss("hinge_embedding_loss", "signs", 1.0),
    "aten::poisson_nll_loss": _loss("poisson_nll_loss", "probabilities", True, False, 1e-8),
    "aten::mse_loss_backward": _loss_gradient("mse_loss_backward"),
    "aten::smooth_l1_loss_backward": _loss_gradient("smooth_l1_loss_backward", options=(1.0, 0.1)),
    "aten::huber_loss_backward": _loss_gradient("huber_loss_backward", options=(1.0, 0.1)),
    "aten::soft_margin_loss_backward": _loss_gradient(
        "soft_margin_loss_backward", "signs", exact_of=_soft_margin_gradient
    ),
    "aten::cosine_similarity": _each(
        _pair("cosine_similarity"), _pair("cosine_similarity", 0, 1e-8)
    ),
    "aten::pairwise_distance": _each(_pair("pairwise_distance"), _pair("pairwise_distance", 1.0)),
    "aten::dist": _each(
        _pair("dist", draws=8),
        *(_pair("dist", p, draws=8) for p in (1.0, 0.0, 3.0, float("inf"))),
    ),
    "aten::trapezoid.x": _pair("trapezoid.x"),
    "aten::trapz.x": _pair("trapz.x"),
    "aten::cumulative_trapezoid.x": _pair("cumulative_trapezoid.x"),
    "aten::dot": _pair("dot", draws=8, vector=True),
    "aten::vdot": _pair("vdot", draws=8, vector=True),
    "aten::linalg_vecdot": _pair("linalg_vecdot"),
    "aten::inner": _pair("inner"),
    "aten::mv": _three("mv", lambda d, n: [d.rows(n), d.rows(n, nth=1)[0]]),
    "aten::addmv": _three("addmv", lambda d, n: [d.ordinary(8), d.rows(n), d.rows(n, nth=1)[0]]),
    "aten::margin_ranking_loss": _three(
        "margin_ranking_loss", lambda d, n: [d.rows(n), d.rows(n, nth=1), _target(d, n, "signs")]
    ),
    "aten::cosine_embedding_loss": _three(
        "cosine_embedding_loss",
        lambda d, n: [d.rows(n), d.rows(n, nth=1), _target(d, 1, "signs")[:, 0]],
    ),
    "aten::triplet_margin_loss": _three(
        "triplet_margin_loss", lambda d, n: [d.rows(n), d.rows(n, nth=1), d.rows(n, nth=2)]
    ),
    "aten::cov": _three("cov", lambda d, n: [d.rows(n)]),
    "aten::corrcoef": _three("corrcoef", lambda d, n: [d.rows(n)]),
    "aten::glu": _three("glu", lambda d, n: [d.rows(2 * n)]),
    "aten::glu_backward": _three("glu_backward", lambda d, n: [d.ordinary(8, n), d.rows(2 * n), 1]),
    "aten::linalg_matrix_norm": _three("linalg_matrix_norm", lambda d, n: [d.rows(n), 1.0]),
    "aten::cumprod_backward": _three(
        "cumprod_backward",
        lambda d, n: [d.ordinary(8, n), (x := d.rows(n)), 1, x.cumprod(1)],
    ),
    "aten::cummaxmin_backward": _three(
        "cummaxmin_backward",
        lambda d, n: [d.ordinary(8, n), (x := d.rows(n)), x.cummax(1).indices, 1],
    ),
}
