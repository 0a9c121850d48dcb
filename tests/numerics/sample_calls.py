"""Calls of our own for overloads that no sample of the operator database reaches."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Call = tuple[Sequence[Any], dict[str, Any]]


def _numbers(*sizes: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(sizes))
    return torch.randn(sizes, generator=generator)


@functools.cache
def calls() -> Mapping[str, list[Call]]:
    """Return calls in float32 by overload, the name without ``aten::``."""
    line, plane, solid = _numbers(2, 3, 17), _numbers(2, 3, 9, 11), _numbers(1, 2, 5, 6, 7)
    matrix, vector = _numbers(5, 7), _numbers(7)
    return {
        **_upsampling(line, plane, solid),
        **_padding(plane, solid),
        **_pooling(line, plane, solid),
        **_made(),
        **_moved(matrix, vector, plane),
        "native_channel_shuffle": [([_numbers(2, 6, 4, 5), 3], {})],
        "affine_grid_generator": [
            ([_numbers(2, 2, 3), [2, 3, 5, 7], False], {}),
            ([_numbers(2, 2, 3), [2, 3, 5, 7], True], {}),
        ],
        "affine_grid_generator_backward": [([_numbers(2, 5, 7, 2), [2, 3, 5, 7], False], {})],
        "grid_sampler": [([plane, _numbers(2, 4, 6, 2).tanh(), 0, 0, False], {})],
        "bucketize.Scalar": [([0.3, vector.sort().values], {})],
        "searchsorted.Scalar": [([vector.sort().values, 0.3], {})],
        "isin.Scalar_Tensor": [([3, torch.arange(7)], {})],
        "isin.Tensor_Scalar": [([torch.arange(7), 3], {})],
        "sum_to_size": [([matrix, [1, 7]], {})],
        "trace_backward": [([_numbers(1)[0], [5, 7]], {})],
        "tensordot": [([matrix, _numbers(7, 3), [1], [0]], {})],
        "conv1d": [([line, _numbers(4, 3, 3)], {})],
        "cdist": [([matrix, _numbers(3, 7)], {})],
        "vander": [([vector], {})],
        "ger": [([vector, _numbers(5)], {})],
        "rnn_tanh_cell": [_cell(1)],
        "rnn_relu_cell": [_cell(1)],
        "gru_cell": [_cell(3)],
    }


def _cell(gates: int) -> Call:
    sizes = ((gates * 6, 5), (gates * 6, 6), (gates * 6,), (gates * 6,))
    return [_numbers(3, 5), _numbers(3, 6), *(_numbers(*one) for one in sizes)], {}


def _upsampling(line: Tensor, plane: Tensor, solid: Tensor) -> dict[str, list[Call]]:
    by_rank = {1: (line, [29], [1.7]), 2: (plane, [13, 5], [1.7, 0.6])}
    by_rank[3] = (solid, [7, 4, 9], [1.7, 0.6, 1.3])
    made: dict[str, list[Call]] = {}
    for rank, (x, sizes, scales) in by_rank.items():
        for name in ("upsample_nearest", "_upsample_nearest_exact"):
            made[f"{name}{rank}d"] = [([x, sizes], {})]
            if f"{name}{rank}d" != "upsample_nearest2d":  # Its .vec is taken apart by nobody.
                made[f"{name}{rank}d.vec"] = [([x, sizes, None], {}), ([x, None, scales], {})]
    for name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"):
        x, sizes, scales = by_rank[int(name[-2])]
        made[name] = [([x, sizes, corners], {}) for corners in (False, True)]
        made[f"{name}.vec"] = [([x, None, corners, scales], {}) for corners in (False, True)]
    for name in ("upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"):
        made[f"{name}.vec"] = [([plane, [13, 5], corners, None], {}) for corners in (False, True)]
    made["upsample_nearest2d_backward"] = [([_numbers(2, 3, 18, 22), [18, 22], [2, 3, 9, 11]], {})]
    return made


def _padding(plane: Tensor, solid: Tensor) -> dict[str, list[Call]]:
    made: dict[str, list[Call]] = {}
    for mode in ("reflection", "replication"):
        made[f"{mode}_pad2d"] = [([plane, [1, 2, 3, 4]], {})]
        made[f"{mode}_pad3d"] = [([solid, [1, 2, 3, 4, 2, 1]], {})]
    made["reflection_pad2d_backward"] = [([_numbers(2, 3, 16, 14), plane, [1, 2, 3, 4]], {})]
    made["reflection_pad3d_backward"] = [
        ([_numbers(1, 2, 8, 13, 10), solid, [1, 2, 3, 4, 2, 1]], {})
    ]
    made["pad"] = [
        ([plane, [1, 2, -1, 4]], {}),
        ([plane, [1, 2, 3, 4], "reflect"], {}),
        ([plane, [1, 2, 3, 4], "circular"], {}),
    ]
    made["_pad_circular"] = [([plane, [1, 2, 3, 4]], {})]
    made["_pad_enum"] = [([plane, [1, 2, 3, 4], 1], {})]
    return made


def _pooling(line: Tensor, plane: Tensor, solid: Tensor) -> dict[str, list[Call]]:
    return {
        "adaptive_avg_pool2d": [([plane, [4, 3]], {})],
        "adaptive_avg_pool3d": [([solid, [2, 3, 2]], {})],
        "adaptive_max_pool1d": [([line, [5]], {})],
        "max_pool1d": [([line, [3]], {})],
        "max_pool1d_with_indices": [([line, [3]], {})],
        "max_pool2d": [([plane, [3, 2]], {}), ([plane, [3, 3], [2, 2], [1, 1]], {})],
        "max_pool3d": [([solid, [2, 2, 2]], {})],
    }


def _made() -> dict[str, list[Call]]:
    cpu = {"device": torch.device("cpu")}
    return {
        "tril_indices": [([5, 7, 1], cpu)],
        "triu_indices": [([5, 7, -1], cpu)],
        "hann_window": [([17], cpu)],
        "hann_window.periodic": [([17, False], cpu)],
        "_dim_arange": [([_numbers(5, 7), 1], {})],
    }


def _moved(matrix: Tensor, vector: Tensor, plane: Tensor) -> dict[str, list[Call]]:
    return {
        "clone": [
            ([matrix.t()], {}),
            ([plane], {"memory_format": torch.channels_last}),
            ([matrix[:, ::2]], {"memory_format": torch.contiguous_format}),
        ],
        "copy": [([matrix, vector], {}), ([matrix, _numbers(5, 7).double()], {})],
        "data": [([matrix], {})],
        "fill.Tensor": [([matrix, _numbers(1)[0]], {})],
        "lift": [([matrix], {})],
        "lift_fresh_copy": [([matrix], {})],
        "resize_as": [([matrix, _numbers(7, 5)], {})],
        "squeeze_copy.dims": [([_numbers(1, 5, 1, 7), [0, 2]], {})],
        "tile": [([matrix, [2, 3]], {})],
        "type_as": [([matrix, torch.zeros(1, dtype=torch.float64)], {})],
        "unsafe_split_with_sizes": [([matrix, [2, 5], 1], {})],
        "view_copy.dtype": [([matrix, torch.int32], {})],
        "zero": [([matrix], {})],
        "masked_select_backward": [([_numbers(3), _numbers(5), torch.arange(5) % 2 == 0], {})],
    }
