"""Overloads that the compiler has code for and that no family compares, each with its reason.

They stay uncertified. A family that comes to compare one takes it from here: an overload that is in
a family and in a list fails the enumeration's test.
"""

from __future__ import annotations

_LISTS = {
    "a part of recurrent layers that no sample reaches": """
        _pack_padded_sequence_backward _pad_packed_sequence _thnn_differentiable_gru_cell_backward
        _thnn_differentiable_lstm_cell_backward _thnn_fused_lstm_cell_backward mkldnn_rnn_layer
    """,
    "an op for tests of PyTorch's own": """
        _foobar _test_ambiguous_defaults.a _test_ambiguous_defaults.b
        _test_autograd_multiple_dispatch.ntonly _test_check_tensor _test_serialization_subcmul
        _test_string_default
    """,
    "for functorch's batched tensors": """
        _add_batch_dim _remove_batch_dim _reshape_from_tensor
    """,
    "for nested tensors": """
        _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward nested_to_padded_tensor
    """,
    "for quantized numbers": """
        _int_mm _rowwise_prune _scaled_mm _scaled_mm_v2 _weight_int4pack_mm_for_cpu
        _weight_int8pack_mm _wrapped_linear_prepack _wrapped_quantized_linear_prepacked
        choose_qparams_optimized fake_quantize_per_channel_affine
        fake_quantize_per_channel_affine_cachemask_backward
        fake_quantize_per_tensor_affine.tensor_qparams fbgemm_linear_fp16_weight
        fbgemm_linear_fp16_weight_fp32_activation fbgemm_linear_int8_weight
        fbgemm_linear_int8_weight_fp32_activation fbgemm_pack_gemm_matrix_fp16
        fbgemm_pack_quantized_matrix fbgemm_pack_quantized_matrix.KN quantized_gru_cell
        quantized_rnn_relu_cell quantized_rnn_tanh_cell
    """,
    "no sample reaches it": """
        _batch_norm_impl_index_backward _batch_norm_with_update _convolution _convolution.deprecated
        _convolution_double_backward _convolution_mode _euclidean_dist _functional_assert_async.msg
        _lu_with_info _native_batch_norm_legit _shape_as_tensor _sobol_engine_draw
        _upsample_lanczos2d_aa.vec _weight_norm_differentiable_backward conv1d.padding
        conv2d.padding conv_tbc_backward cross_entropy_loss det inverse istft linalg_cond.p_str
        linalg_matmul linalg_matrix_rank linalg_matrix_rank.tol_tensor linalg_norm.ord_str
        linalg_pinv matrix_exp_backward matrix_power nanquantile nuclear_norm nuclear_norm.dim orgqr
        quantile slogdet slow_conv3d thnn_conv2d
    """,
    "register refuses it": """
        _fused_rms_norm_backward _scaled_grouped_mm _sparse_semi_structured_mm _to_cpu addmm.dtype
        atleast_1d.Sequence atleast_2d.Sequence atleast_3d.Sequence baddbmm.dtype bmm.dtype
        broadcast_tensors chain_matmul column_stack concat concatenate cudnn_batch_norm
        cudnn_batch_norm_backward dstack einsum flatten_dense_tensors gradient.array
        gradient.scalararray gradient.scalarint gradient.scalarrayarray gradient.scalarrayint
        gradient.tensorarray gradient.tensorarrayint hstack linalg_multi_dot lstm_cell meshgrid
        meshgrid.indexing miopen_batch_norm miopen_batch_norm_backward mm.dtype nonzero_numpy
        pad_sequence quantized_lstm_cell row_stack unflatten_dense_tensors vstack where
    """,
    "takes or gives tensors that are not strided": """
        _embedding_bag_sparse_backward _gather_sparse_backward _sparse_bsc_tensor_unsafe
        _sparse_bsr_tensor_unsafe _sparse_compressed_tensor_unsafe _sparse_coo_tensor_unsafe
        _sparse_csc_tensor_unsafe _sparse_csr_tensor_unsafe _sparse_log_softmax.int _sparse_mm
        _sparse_mm.reduce _sparse_softmax.int _sparse_sum _sparse_sum.dim_dtype _sparse_sum.dtype
        embedding_sparse_backward smm sparse_bsc_tensor.ccol_row_value
        sparse_bsc_tensor.ccol_row_value_size sparse_bsr_tensor.crow_col_value
        sparse_bsr_tensor.crow_col_value_size sparse_coo_tensor.indices
        sparse_coo_tensor.indices_size sparse_csc_tensor.ccol_row_value
        sparse_csc_tensor.ccol_row_value_size sparse_csr_tensor.crow_col_value
        sparse_csr_tensor.crow_col_value_size sspaddmm to_dense to_dense_backward to_mkldnn_backward
        to_sparse_bsc to_sparse_bsr to_sparse_csc to_sparse_csr
    """,
}

# By qualified name, why it is in no family.
ELSEWHERE: dict[str, str] = {
    f"aten::{name}": reason for reason, names in _LISTS.items() for name in names.split()
}
