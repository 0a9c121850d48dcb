"""Reviewed lists of the overloads that samples of the operator database are for."""

from __future__ import annotations

import functools
from typing import Any

from aoti_eager import _library
from aoti_eager._ops import find_overload

# These move values and compute none: bit for bit as eager.
MOVEMENT = frozenset(
    """
    _adaptive_max_pool _chunk_cat _reshape_from_tensor _to_cpu _unsafe_view alias_copy
    atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors cat channel_shuffle clone
    column_stack combinations concat concatenate constant_pad_nd copy data diag diag_embed diagflat
    diagonal_backward diagonal_copy diagonal_scatter dstack expand_copy eye fft_fftshift
    fft_ifftshift fill flatten_dense_tensors flip fliplr flipud full full_like hstack im2col lift
    lift_fresh_copy masked_fill meshgrid narrow_copy native_channel_shuffle new_full new_ones
    new_zeros ones ones_like pad pad_sequence permute_copy pixel_shuffle pixel_unshuffle
    reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d replication_pad2d
    replication_pad3d resize_as roll rot90 row_stack scalar_tensor select_backward select_scatter
    slice_backward slice_scatter split_with_sizes_copy squeeze_copy stack t_copy tile to_dense
    trace_backward transpose_copy tril tril_indices triu triu_indices type_as unbind_copy
    unflatten_dense_tensors unfold_copy unsafe_split unsafe_split_with_sizes unsqueeze_copy
    view_copy vstack where zero zeros zeros_like upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d _pad_circular _pad_enum
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)

# These choose among values or compare them: equal to eager's, whatever a zero's sign.
SELECTION = frozenset(
    """
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d argsort bucketize eq fmax
    fmin fractional_max_pool2d fractional_max_pool3d isclose isin max max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
    maximum min minimum nextafter searchsorted
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)

# These search in tensors that must be sorted.
ORDERED = frozenset({"bucketize", "searchsorted"})

# Calls that no sample makes.
CALLS: dict[str, list[tuple[list[Any], dict[str, Any]]]] = {}

# Why an overload has no data here, by its name or the beginning of it: it stays uncertified.
_REASONS = {
    "_foobar": "an op for tests of PyTorch's own",
    "_test_": "an op for tests of PyTorch's own",
}


@functools.cache
def left_out(op: str) -> str | None:
    """Return why the laboratory has nothing for an overload; ``None`` if it has."""
    name = op.removeprefix("aten::")
    for beginning, reason in _REASONS.items():
        if name == beginning or (beginning.endswith("_") and name.startswith(beginning)):
            return reason
    problem = _library._problem(find_overload(op), "CPU")
    return None if problem is None else f"register refuses it: {type(problem).__name__}"
