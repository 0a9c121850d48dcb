"""Softmax, normalisations and their gradients: every overload with the laboratory's calls of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import exact_rows as exact
from .hard_calls import RULE, Draw, HardCall
from .shapes import Shape, shapes

Calls = Callable[[str], Iterator[HardCall]]
_ATEN = torch.ops.aten
EPS = 1e-5


def _softmaxes(name: str, rest: Callable[[int, torch.dtype], Sequence[Any]], of_rows: Any) -> Calls:
    def calls(share: str) -> Iterator[HardCall]:
        for shape in shapes(share):
            yield HardCall(
                f"aten::{name}",
                shape.label,
                lambda d, s=shape: ([s.tensor(d, 0), *rest(s.dim, d.dtype)], {}),
                RULE,
                None if of_rows is None else lambda x, s=shape: _along(of_rows, x, s.dim),
                threads=shape.threads,
            )

    return calls


def _along(of_rows: Callable[[exact.Array], exact.Array], x: exact.Array, dim: int) -> exact.Array:
    return of_rows(x.swapaxes(dim, -1)).swapaxes(dim, -1)


def _softmax_gradients(name: str, forward: Callable[..., Tensor]) -> Calls:
    def calls(share: str) -> Iterator[HardCall]:
        for shape in shapes(share):

            def arguments(draw: Draw, shape: Shape = shape) -> tuple[list[Any], dict[str, Any]]:
                x = shape.tensor(draw, 0)
                gradient = draw.ordinary(*x.shape)
                return [gradient, forward(x, shape.dim), shape.dim, draw.dtype], {}

            yield HardCall(f"aten::{name}", shape.label, arguments, threads=shape.threads)

    return calls


# --- normalisations over rows --------------------------------------------------------------------


def _lengths(share: str) -> Sequence[int]:
    return {
        "test": (33,),
        "brief": (33, 1024),
        "default": (1, 2, 7, 33, 257, 1024, 4097),
        "full": (*range(1, 34), 63, 64, 65, 255, 256, 257, 511, 513, 1023, 1024, 1025, 4097),
    }[share]


def _row_norm(
    op: str,
    arguments: Callable[[Draw, int, bool], Sequence[Any]],
    any_order: tuple[int, ...] = (),
    of: Callable[..., exact.Array] | None = None,
) -> Calls:
    """Return calls of ``arguments(draw, n, with_weights)`` for rows of every length.

    Args:
        op: The overload.
        arguments: Gives what it takes.
        any_order: See ``HardCall``.
        of: Gives the exact results, where eager's own formula cancels in float64, too.
    """

    def calls(share: str) -> Iterator[HardCall]:
        for n in _lengths(share):
            for weights in (True, False) if n in (33, 257) and share != "test" else (True,):
                yield HardCall(
                    op,
                    f"8 rows of {n}{'' if weights else ', no weights'}",
                    lambda d, n=n, w=weights: (list(arguments(d, n, w)), {}),
                    any_order=any_order,
                    exact=of,
                    eager_overflows=of is not None,
                )

    return calls


def _weights(draw: Draw, n: int, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
    return (draw.ordinary(n), draw.ordinary(n, nth=1)) if wanted else (None, None)


def _layer_norm(draw: Draw, n: int, weights: bool) -> list[Any]:
    return [draw.rows(n), [n], *_weights(draw, n, weights), EPS]


def _layer_norm_backward(draw: Draw, n: int, weights: bool) -> list[Any]:
    x = draw.rows(n)
    scale, shift = _weights(draw, n, weights)
    _, mean, rstd = _ATEN.native_layer_norm(x, [n], scale, shift, EPS)
    gradient = draw.ordinary(8, n, nth=2)
    return [gradient, x, [n], mean, rstd, scale, shift, [True, weights, weights]]


def _rms_norm(draw: Draw, n: int, weights: bool) -> list[Any]:
    return [draw.rows(n), [n], _weights(draw, n, weights)[0], EPS]


# --- normalisations over channels ----------------------------------------------------------------
# 4 samples of 6 channels of n numbers; groups of 3 channels.


def _channels(draw: Draw, n: int) -> Tensor:
    return draw.rows(n, count=24).view(4, 6, n)


def _group_norm(draw: Draw, n: int, weights: bool) -> list[Any]:
    return [_channels(draw, n), *_weights(draw, 6, weights), 4, 6, n, 2, EPS]


def _group_norm_backward(draw: Draw, n: int, weights: bool) -> list[Any]:
    x = _channels(draw, n)
    scale, shift = _weights(draw, 6, weights)
    _, mean, rstd = _ATEN.native_group_norm(x, scale, shift, 4, 6, n, 2, EPS)
    gradient = draw.ordinary(4, 6, n, nth=2)
    return [gradient, x, mean, rstd, scale, 4, 6, n, 2, [True, weights, weights]]


def _statistics(draw: Draw) -> tuple[Tensor, Tensor]:
    return draw.ordinary(6, nth=3), draw.ordinary(6, nth=4).abs() + 0.5


def _batch_norm(*, statistics: bool, train: bool | None) -> Callable[..., list[Any]]:
    def arguments(draw: Draw, n: int, weights: bool) -> list[Any]:
        made: list[Any] = [_channels(draw, n), *_weights(draw, 6, weights)]
        made += _statistics(draw) if statistics else ()
        return [*made, *([] if train is None else [train]), 0.1, EPS]

    return arguments


def _plain_batch_norm(train: bool) -> Callable[..., list[Any]]:
    def arguments(draw: Draw, n: int, weights: bool) -> list[Any]:
        running = (None, None) if train else _statistics(draw)
        return [_channels(draw, n), *_weights(draw, 6, weights), *running, train, 0.1, EPS]

    return arguments


def _batch_norm_backward(train: bool) -> Callable[..., list[Any]]:
    def arguments(draw: Draw, n: int, weights: bool) -> list[Any]:
        x = _channels(draw, n)
        scale, shift = _weights(draw, 6, weights)
        running = (None, None) if train else _statistics(draw)
        _, mean, rstd = _ATEN.native_batch_norm(x, scale, shift, *running, train, 0.1, EPS)
        saved = (mean, rstd) if train else (None, None)
        mask = [True, weights, weights]
        return [draw.ordinary(4, 6, n, nth=2), x, scale, *running, *saved, train, EPS, mask]

    return arguments


def _instance_norm(draw: Draw, n: int, weights: bool) -> list[Any]:
    return [_channels(draw, n), *_weights(draw, 6, weights), None, None, True, 0.1, EPS, False]


def _exact_instance_norm(x: exact.Array, *weights: exact.Array) -> exact.Array:
    # Eager multiplies the mean by the weight before it takes it away.
    result = exact.normalized(EPS)(x)
    if not weights:
        return result
    scale, shift = (one[:, None] for one in weights)
    return result * scale + shift


def _both(op: str, make: Callable[[bool], Callable[..., list[Any]]]) -> Calls:
    def calls(share: str) -> Iterator[HardCall]:
        for train in (True, False):
            for one in _row_norm(op, make(train))(share):
                label = f"{one.label}, {'training' if train else 'inference'}"
                yield HardCall(one.op, label, one.arguments)

    return calls


def _weight_norm(draw: Draw, n: int, weights: bool) -> list[Any]:
    return [draw.rows(n), draw.ordinary(8, 1), 0]


OPS: dict[str, Calls] = {
    "aten::_softmax": _softmaxes("_softmax", lambda dim, dtype: [dim, False], exact.softmax),
    "aten::_log_softmax": _softmaxes(
        "_log_softmax", lambda dim, dtype: [dim, False], exact.log_softmax
    ),
    "aten::softmax.int": _softmaxes("softmax.int", lambda dim, dtype: [dim], exact.softmax),
    "aten::log_softmax.int": _softmaxes(
        "log_softmax.int", lambda dim, dtype: [dim], exact.log_softmax
    ),
    "aten::special_softmax": _softmaxes("special_softmax", lambda dim, dtype: [dim], exact.softmax),
    "aten::special_log_softmax": _softmaxes(
        "special_log_softmax", lambda dim, dtype: [dim], exact.log_softmax
    ),
    "aten::_safe_softmax": _softmaxes("_safe_softmax", lambda dim, dtype: [dim], None),
    "aten::_softmax_backward_data": _softmax_gradients("_softmax_backward_data", torch.softmax),
    "aten::_log_softmax_backward_data": _softmax_gradients(
        "_log_softmax_backward_data", torch.log_softmax
    ),
    "aten::native_layer_norm": _row_norm("aten::native_layer_norm", _layer_norm, any_order=(1, 2)),
    "aten::layer_norm": _row_norm("aten::layer_norm", _layer_norm),
    "aten::native_layer_norm_backward": _row_norm(
        "aten::native_layer_norm_backward", _layer_norm_backward
    ),
    "aten::rms_norm": _row_norm("aten::rms_norm", _rms_norm),
    "aten::_fused_rms_norm": _row_norm("aten::_fused_rms_norm", _rms_norm),
    "aten::native_group_norm": _row_norm("aten::native_group_norm", _group_norm),
    "aten::group_norm": _row_norm(
        "aten::group_norm",
        lambda d, n, w: [_channels(d, n), 2, *_weights(d, 6, w), EPS],
    ),
    "aten::native_group_norm_backward": _row_norm(
        "aten::native_group_norm_backward", _group_norm_backward
    ),
    "aten::native_batch_norm": _both("aten::native_batch_norm", _plain_batch_norm),
    "aten::_native_batch_norm_legit.no_stats": _row_norm(
        "aten::_native_batch_norm_legit.no_stats", _batch_norm(statistics=False, train=True)
    ),
    "aten::_native_batch_norm_legit_functional": _both(
        "aten::_native_batch_norm_legit_functional",
        lambda train: _batch_norm(statistics=True, train=train),
    ),
    "aten::_native_batch_norm_legit_no_training": _row_norm(
        "aten::_native_batch_norm_legit_no_training", _batch_norm(statistics=True, train=None)
    ),
    "aten::_batch_norm_with_update_functional": _row_norm(
        "aten::_batch_norm_with_update_functional", _batch_norm(statistics=True, train=None)
    ),
    "aten::_batch_norm_no_update": _row_norm(
        "aten::_batch_norm_no_update", _batch_norm(statistics=True, train=None)
    ),
    "aten::native_batch_norm_backward": _both(
        "aten::native_batch_norm_backward", _batch_norm_backward
    ),
    "aten::instance_norm": _row_norm(
        "aten::instance_norm", _instance_norm, of=_exact_instance_norm
    ),
    "aten::_weight_norm_interface": _row_norm("aten::_weight_norm_interface", _weight_norm),
    "aten::_weight_norm": _row_norm("aten::_weight_norm", _weight_norm),
    "aten::norm_except_dim": _row_norm("aten::norm_except_dim", lambda d, n, w: [d.rows(n), 2, 0]),
    "aten::renorm": _row_norm("aten::renorm", lambda d, n, w: [d.rows(n), 2.0, 0, 1.5]),
}
