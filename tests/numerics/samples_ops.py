"""Reviewed lists of the overloads that samples of the operator database are for."""

from __future__ import annotations

# What is compared, without ``aten::``: reviewed, and held to the enumeration by its test.
OPS = frozenset(
    """
    _adaptive_avg_pool2d _chunk_cat _dim_arange _pad_circular _pad_enum _unsafe_view
    _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec _upsample_nearest_exact1d
    _upsample_nearest_exact1d.vec _upsample_nearest_exact2d _upsample_nearest_exact2d.vec
    _upsample_nearest_exact3d _upsample_nearest_exact3d.vec adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d addmm addr affine_grid_generator affine_grid_generator_backward
    alias_copy arange arange.start arange.start_step argsort.stable avg_pool1d avg_pool2d
    avg_pool2d_backward avg_pool3d avg_pool3d_backward baddbmm batch_norm_backward bilinear
    block_diag bmm bucketize.Scalar bucketize.Tensor cat cdist channel_shuffle clone col2im
    combinations constant_pad_nd conv1d conv2d conv3d conv3d.padding conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution convolution_backward copy cross
    data diag diag_embed diagflat diagonal_backward diagonal_copy diagonal_scatter expand_copy
    eye eye.m fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft
    fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2
    fft_irfftn fft_rfft fft_rfft2 fft_rfftn fill.Scalar fill.Tensor flip fliplr flipud
    fractional_max_pool2d fractional_max_pool3d full full_like ger grid_sampler grid_sampler_2d
    gru_cell hann_window hann_window.periodic im2col isin.Scalar_Tensor isin.Tensor_Scalar
    isin.Tensor_Tensor kron lift lift_fresh_copy linalg_cond linalg_cross linalg_det linalg_eigh
    linalg_eigvals linalg_eigvalsh linalg_ldl_factor linalg_lu_factor linalg_matrix_norm.str_ord
    linalg_matrix_power linalg_matrix_rank.atol_rtol_float linalg_matrix_rank.atol_rtol_tensor
    linalg_pinv.atol_rtol_float linalg_pinv.rcond_tensor linalg_slogdet linalg_solve_ex
    linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linear linspace
    linspace.Scalar_Tensor linspace.Tensor_Scalar linspace.Tensor_Tensor logdet logspace
    logspace.Scalar_Tensor logspace.Tensor_Scalar logspace.Tensor_Tensor lu_solve
    masked_select_backward matmul matrix_exp max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices mm nanquantile.scalar narrow_copy
    native_channel_shuffle new_full new_ones new_zeros ones ones_like outer pad pdist
    permute_copy pinverse pixel_shuffle pixel_unshuffle prelu qr quantile.scalar
    reflection_pad1d reflection_pad1d_backward reflection_pad2d reflection_pad2d_backward
    reflection_pad3d reflection_pad3d_backward repeat replication_pad1d replication_pad2d
    replication_pad3d resize_as rnn_relu_cell rnn_tanh_cell roll rot90 scalar_tensor
    searchsorted.Scalar searchsorted.Tensor select_backward select_scatter slice_backward
    slice_scatter split_with_sizes_copy squeeze_copy squeeze_copy.dim squeeze_copy.dims stack
    stft stft.center sum_to_size svd t_copy tensordot tile to_sparse to_sparse.sparse_dim
    trace_backward transpose_copy.int tril tril_indices triu triu_indices type_as
    unbind_copy.int unfold_backward unfold_copy unsafe_split.Tensor unsafe_split_with_sizes
    unsqueeze_copy upsample_bicubic2d.vec upsample_bilinear2d upsample_bilinear2d.vec
    upsample_linear1d upsample_linear1d.vec upsample_nearest1d upsample_nearest1d.vec
    upsample_nearest2d upsample_nearest2d_backward upsample_nearest3d upsample_nearest3d.vec
    upsample_trilinear3d upsample_trilinear3d.vec vander view_copy view_copy.dtype zero zeros
    zeros_like
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)

# These move values and compute none: bit for bit as eager.
MOVEMENT = frozenset(
    """
    _chunk_cat _pad_circular _pad_enum _unsafe_view _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d alias_copy block_diag cat
    channel_shuffle clone combinations constant_pad_nd copy data diag diag_embed diagflat
    diagonal_backward diagonal_copy diagonal_scatter expand_copy eye fft_fftshift fft_ifftshift
    fill flip fliplr flipud full full_like im2col lift lift_fresh_copy narrow_copy
    native_channel_shuffle new_full new_ones new_zeros ones ones_like pad permute_copy
    pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat
    replication_pad1d replication_pad2d replication_pad3d resize_as roll rot90 scalar_tensor
    select_backward select_scatter slice_backward slice_scatter split_with_sizes_copy
    squeeze_copy stack t_copy tile trace_backward transpose_copy tril tril_indices triu
    triu_indices type_as unbind_copy unfold_copy unsafe_split unsafe_split_with_sizes
    unsqueeze_copy upsample_nearest1d upsample_nearest2d upsample_nearest3d view_copy zero zeros
    zeros_like
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)

# These choose among values or compare them: equal to eager's, whatever a zero's sign.
SELECTION = frozenset(
    """
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d argsort bucketize
    fractional_max_pool2d fractional_max_pool3d isin max_pool1d max_pool1d_with_indices
    max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices searchsorted
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)

# These search in tensors that must be sorted.
ORDERED = frozenset({"bucketize", "searchsorted"})
