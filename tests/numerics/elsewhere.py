"""Overloads that the compiler has code for and that no family of element-by-element ops compares.

Each has a reason. A family that comes to compare one takes it from here: an overload that is in a
family and in a list fails the enumeration's test.
"""

from __future__ import annotations

_NOT_BY_ELEMENT = """
    _adaptive_avg_pool2d _add_batch_dim _batch_norm_impl_index_backward _batch_norm_no_update
    _batch_norm_with_update _batch_norm_with_update_functional _chunk_cat _convolution
    _convolution.deprecated _convolution_double_backward _convolution_mode _dim_arange
    _embedding_bag_sparse_backward _euclidean_dist _foobar _functional_assert_async.msg
    _fused_rms_norm _fused_rms_norm_backward _gather_sparse_backward _int_mm
    _jagged_to_padded_dense_forward _log_softmax _log_softmax_backward_data _lu_with_info
    _native_batch_norm_legit _native_batch_norm_legit.no_stats
    _native_batch_norm_legit_functional _native_batch_norm_legit_no_training
    _pack_padded_sequence_backward _pad_circular _pad_enum _pad_packed_sequence
    _padded_dense_to_jagged_forward _remove_batch_dim _reshape_from_tensor _rowwise_prune
    _safe_softmax _scaled_grouped_mm _scaled_mm _scaled_mm_v2 _shape_as_tensor
    _sobol_engine_draw _softmax _softmax_backward_data _sparse_bsc_tensor_unsafe
    _sparse_bsr_tensor_unsafe _sparse_compressed_tensor_unsafe _sparse_coo_tensor_unsafe
    _sparse_csc_tensor_unsafe _sparse_csr_tensor_unsafe _sparse_log_softmax.int _sparse_mm
    _sparse_mm.reduce _sparse_semi_structured_mm _sparse_softmax.int _sparse_sum
    _sparse_sum.dim_dtype _sparse_sum.dtype _test_ambiguous_defaults.a
    _test_ambiguous_defaults.b _test_autograd_multiple_dispatch.ntonly _test_check_tensor
    _test_serialization_subcmul _test_string_default _thnn_differentiable_gru_cell_backward
    _thnn_differentiable_lstm_cell_backward _thnn_fused_lstm_cell_backward _to_cpu _unsafe_view
    _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec _upsample_lanczos2d_aa.vec
    _upsample_nearest_exact1d _upsample_nearest_exact1d.vec _upsample_nearest_exact2d
    _upsample_nearest_exact2d.vec _upsample_nearest_exact3d _upsample_nearest_exact3d.vec
    _weight_int4pack_mm_for_cpu _weight_int8pack_mm _weight_norm
    _weight_norm_differentiable_backward _weight_norm_interface _wrapped_linear_prepack
    _wrapped_quantized_linear_prepacked adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d addmm
    addmm.dtype addmv addr affine_grid_generator affine_grid_generator_backward alias_copy all
    all.dim all.dims amax amin aminmax any any.dim any.dims arange arange.start
    arange.start_step argmax argmin argsort argsort.stable atleast_1d.Sequence
    atleast_2d.Sequence atleast_3d.Sequence avg_pool1d avg_pool2d avg_pool2d_backward avg_pool3d
    avg_pool3d_backward baddbmm baddbmm.dtype batch_norm_backward bilinear
    binary_cross_entropy_with_logits block_diag bmm bmm.dtype broadcast_tensors bucketize.Scalar
    bucketize.Tensor cat cdist chain_matmul channel_shuffle choose_qparams_optimized clone
    col2im column_stack combinations concat concatenate constant_pad_nd conv1d conv1d.padding
    conv2d conv2d.padding conv3d conv3d.padding conv_tbc_backward conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution convolution_backward copy corrcoef
    cosine_embedding_loss cosine_similarity count_nonzero count_nonzero.dim_IntList cov cross
    cross_entropy_loss cudnn_batch_norm cudnn_batch_norm_backward cummax cummaxmin_backward
    cummin cumprod cumprod_backward cumsum cumulative_trapezoid.dx cumulative_trapezoid.x data
    det diag diag_embed diagflat diagonal_backward diagonal_copy diagonal_scatter diff dist dot
    dstack einsum embedding_sparse_backward expand_copy eye eye.m
    fake_quantize_per_channel_affine fake_quantize_per_channel_affine_cachemask_backward
    fake_quantize_per_tensor_affine.tensor_qparams fbgemm_linear_fp16_weight
    fbgemm_linear_fp16_weight_fp32_activation fbgemm_linear_int8_weight
    fbgemm_linear_int8_weight_fp32_activation fbgemm_pack_gemm_matrix_fp16
    fbgemm_pack_quantized_matrix fbgemm_pack_quantized_matrix.KN fft_fft fft_fft2 fft_fftn
    fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ifftshift
    fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn
    fill.Scalar fill.Tensor flatten_dense_tensors flip fliplr flipud fractional_max_pool2d
    fractional_max_pool3d frobenius_norm.dim full full_like ger glu glu_backward gradient.array
    gradient.scalararray gradient.scalarint gradient.scalarrayarray gradient.scalarrayint
    gradient.tensorarray gradient.tensorarrayint grid_sampler grid_sampler_2d group_norm
    gru_cell hann_window hann_window.periodic hinge_embedding_loss hstack huber_loss
    huber_loss_backward im2col inner instance_norm inverse isin.Scalar_Tensor isin.Tensor_Scalar
    isin.Tensor_Tensor istft kl_div kron kthvalue l1_loss layer_norm lift lift_fresh_copy
    linalg_cond linalg_cond.p_str linalg_cross linalg_det linalg_eigh linalg_eigvals
    linalg_eigvalsh linalg_ldl_factor linalg_lu_factor linalg_matmul linalg_matrix_norm
    linalg_matrix_norm.str_ord linalg_matrix_power linalg_matrix_rank
    linalg_matrix_rank.atol_rtol_float linalg_matrix_rank.atol_rtol_tensor
    linalg_matrix_rank.tol_tensor linalg_multi_dot linalg_norm linalg_norm.ord_str linalg_pinv
    linalg_pinv.atol_rtol_float linalg_pinv.rcond_tensor linalg_slogdet linalg_solve_ex
    linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot
    linalg_vector_norm linear linspace linspace.Scalar_Tensor linspace.Tensor_Scalar
    linspace.Tensor_Tensor log_softmax.int logcumsumexp logdet logspace logspace.Scalar_Tensor
    logspace.Tensor_Scalar logspace.Tensor_Tensor logsumexp lstm_cell lu_solve
    margin_ranking_loss masked_select_backward matmul matrix_exp matrix_exp_backward
    matrix_power max max.dim max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices mean mean.dim median median.dim
    meshgrid meshgrid.indexing min min.dim miopen_batch_norm miopen_batch_norm_backward
    mkldnn_rnn_layer mm mm.dtype mode mse_loss mse_loss_backward msort mv nanmean nanquantile
    nanquantile.scalar nansum narrow_copy native_batch_norm native_batch_norm_backward
    native_channel_shuffle native_group_norm native_group_norm_backward native_layer_norm
    native_layer_norm_backward nested_to_padded_tensor new_full new_ones new_zeros nonzero_numpy
    norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype norm_except_dim
    nuclear_norm nuclear_norm.dim ones ones_like orgqr outer pad pad_sequence pairwise_distance
    pdist permute_copy pinverse pixel_shuffle pixel_unshuffle poisson_nll_loss prod prod.dim_int
    qr quantile quantile.scalar quantized_gru_cell quantized_lstm_cell quantized_rnn_relu_cell
    quantized_rnn_tanh_cell reflection_pad1d reflection_pad1d_backward reflection_pad2d
    reflection_pad2d_backward reflection_pad3d reflection_pad3d_backward renorm repeat
    replication_pad1d replication_pad2d replication_pad3d resize_as rms_norm rnn_relu_cell
    rnn_tanh_cell roll rot90 row_stack scalar_tensor searchsorted.Scalar searchsorted.Tensor
    select_backward select_scatter slice_backward slice_scatter slogdet slow_conv3d smm
    smooth_l1_loss smooth_l1_loss_backward soft_margin_loss soft_margin_loss_backward
    softmax.int sort sort.stable sparse_bsc_tensor.ccol_row_value
    sparse_bsc_tensor.ccol_row_value_size sparse_bsr_tensor.crow_col_value
    sparse_bsr_tensor.crow_col_value_size sparse_coo_tensor.indices
    sparse_coo_tensor.indices_size sparse_csc_tensor.ccol_row_value
    sparse_csc_tensor.ccol_row_value_size sparse_csr_tensor.crow_col_value
    sparse_csr_tensor.crow_col_value_size special_log_softmax special_logsumexp special_softmax
    split_with_sizes_copy squeeze_copy squeeze_copy.dim squeeze_copy.dims sspaddmm stack std
    std.correction std.dim std_mean std_mean.correction std_mean.dim stft stft.center sum
    sum.dim_IntList sum_to_size svd t_copy tensordot thnn_conv2d tile to_dense to_dense_backward
    to_mkldnn_backward to_sparse to_sparse.sparse_dim to_sparse_bsc to_sparse_bsr to_sparse_csc
    to_sparse_csr topk trace trace_backward transpose_copy.int trapezoid.dx trapezoid.x trapz.dx
    trapz.x tril tril_indices triplet_margin_loss triu triu_indices type_as unbind_copy.int
    unflatten_dense_tensors unfold_backward unfold_copy unsafe_split.Tensor
    unsafe_split_with_sizes unsqueeze_copy upsample_bicubic2d.vec upsample_bilinear2d
    upsample_bilinear2d.vec upsample_linear1d upsample_linear1d.vec upsample_nearest1d
    upsample_nearest1d.vec upsample_nearest2d upsample_nearest2d_backward upsample_nearest3d
    upsample_nearest3d.vec upsample_trilinear3d upsample_trilinear3d.vec vander var
    var.correction var.dim var_mean var_mean.correction var_mean.dim vdot view_copy
    view_copy.dtype vstack where zero zeros zeros_like
""".split()  # noqa: SIM905 - a list of names to read, not to parse

_REASONS = {
    "prelu": "takes itself apart into _prelu_kernel, which is compared",
}

# By qualified name, why it is in no family.
ELSEWHERE: dict[str, str] = {
    **{f"aten::{name}": "not element by element" for name in _NOT_BY_ELEMENT},
    **{f"aten::{name}": reason for name, reason in _REASONS.items()},
}
