"""Decline rules: which ops and calls keep their original kernel, and for which reason. Pure.

docs/declines.md explains every reason to a user; a test checks that both lists are the same.
"""

from __future__ import annotations

import re

import torch

from .._base.torch_compat.dispatcher import OpOverload
from .aliasing import overlaps_itself
from .call_template import CallTemplate, slot_dtype
from .index_ops import reads_by_index
from .kernel_key import KernelKey
from .schema import Kind, OpSchema

REASONS: dict[str, str] = {
    "no_key": "torch refuses to tell a setting that is in the key",
    "random": "the op draws random numbers, and compiled streams are not eager's",
    "uninitialised": "the op returns uninitialised memory",
    "returns_view": "the op returns a view of an argument",
    "result_shares_storage": "a result shares storage with an argument or with another result",
    "changes_metadata": "the op changes the sizes, strides or storage of an argument",
    "out_resized": "the out= argument had to be resized",
    "data_dependent_output": "the result's sizes, or a number, depend on the data",
    "error_depends_on_data": "the op raises depending on data, and compiled code cannot do that",
    "reads_storage_offset": "the op reads an argument's storage offset, which no key holds",
    "non_tensor_result": "the op returns something else than tensors",
    "unsupported_argument_type": "an argument has a type that no key can hold",
    "unsupported_tensor": "a tensor is conjugated, negated, undefined, not strided or a rare dtype",
    "uncertified": "its code was not found to be as exact as eager's for these dtypes",
    "mutated_argument_overlaps": "an argument that is written to overlaps itself or another",
    "float_mode": "the thread flushes denormals to zero, or rounds in another way than usual",
    "undeclared_write": "the call writes to an argument although the op's schema does not say so",
    "unsupported_device": "no kernel library can be compiled for the device yet",
    "untested_torch": "this torch was not checked, and no self-test has passed with it",
    "does_not_trace": "torch.export cannot trace the call from metadata",
    "no_kernel_of_its_own": "Inductor has no kernel for it and would only call ATen",
    "needs_proxy_executor": "a part of the graph calls an op that has no C shim",
    "compile_failed": "Inductor or the C++ compiler failed",
    "compile_timeout": "the compile took longer than compile_timeout_s",
    "worker_died": "the compile worker died, twice",
    "no_compiler": "there is no C++ compiler",
    "crashed": "the library's first run, in another process, ended that process",
    "raised": "the library's first run raised",
    "mismatch": "the library's results differ from the original's",
    "run_failed": "the library raised while it served a call",
    "library_unloadable": "the library cannot be loaded on this machine",
    "op_not_in_worker": "the op is defined by code that the compile worker does not have",
    "unsupported_function": "the op's function uses something that the compile worker cannot have",
    "mutates_constant": "the op's function writes to what its op does not declare as written to",
    "setting_not_portable": "an Inductor setting has a value that cannot be sent to the worker",
    "not_dynamic": "no kernel for several sizes can be made: its assumptions cannot be checked",
    "specialisation_cap": "the op has static_cap specialisations already",
    "slower": "its kernel was measured not to beat the original here, or only within noise",
    "unmeasured": "its kernel could not be timed against the original",
    "unchecked": "its kernel could be compared neither in the worker nor, in time, in the call",
    "queue_full": "too many keys wait for the compile workers",
    "not_in_cache": "mode is cache_only and the key is not in the cache",
    "store_unwritable": "the store cannot be written",
    "locked": "another process has held the key's lock for longer than lock_timeout_s",
    "forked": "the process was forked: threads and compile workers stayed with the parent",
    "reentrant": "a signal handler or finalizer called while this thread was compiling",
    "internal_error": "an error in aoti_eager itself",
    "tracing": "the call is part of a trace (Dynamo, export, a dispatch mode)",
}

# Reasons that the store remembers, if every process would meet the cause. All other reasons say
# something about a moment, a machine or a setting.
REMEMBERED = frozenset(
    """
    random result_shares_storage changes_metadata data_dependent_output error_depends_on_data
    reads_storage_offset non_tensor_result unsupported_tensor does_not_trace no_kernel_of_its_own
    needs_proxy_executor compile_failed crashed raised mismatch mutates_constant not_dynamic
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)

# Reasons that apply to the code for one thread count; all other reasons hold for every count.
DEPENDS_ON_THREADS = frozenset({"crashed", "raised", "mismatch"})

# No tag marks these ops, so they are listed by name. A base name stands for all overloads.
UNINITIALISED = r"(new_)?empty(_like|_strided|_permuted|_quantized)?$|_empty_affine\w*$"
CHANGES_METADATA = frozenset(
    {"resize", "resize_", "resize_as_", "resize_as_sparse_", "set", "set_", "_resize_output_"}
)
_READS_STORAGE_OFFSET = frozenset({"as_strided_copy", "as_strided_scatter"})
DATA_DEPENDENT_ERRORS = frozenset(
    """
    _assert_async _assert_scalar _ctc_loss _ctc_loss_backward _embedding_bag
    _embedding_bag_backward _embedding_bag_dense_backward _embedding_bag_forward_only
    _embedding_bag_per_sample_weights_backward _index_put_impl _index_put_impl_
    _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate
    _linalg_check_errors binary_cross_entropy binary_cross_entropy_backward ctc_loss
    embedding embedding_backward embedding_bag embedding_dense_backward embedding_renorm
    embedding_renorm_ gather gather_backward histc histogram histogramdd index index_add
    index_add_ index_copy index_copy_ index_fill index_fill_ index_put index_put_
    index_reduce index_reduce_ index_select index_select_backward linalg_cholesky linalg_inv
    linalg_solve masked_scatter masked_scatter_ masked_scatter_backward max_unpool2d
    max_unpool3d max_pool2d_with_indices_backward max_pool3d_with_indices_backward
    fractional_max_pool2d_backward fractional_max_pool3d_backward
    adaptive_max_pool2d_backward adaptive_max_pool3d_backward multi_margin_loss
    multi_margin_loss_backward multilabel_margin_loss multilabel_margin_loss_backward
    multilabel_margin_loss_forward multinomial nll_loss nll_loss2d nll_loss2d_backward
    nll_loss2d_forward nll_loss_backward nll_loss_forward nll_loss_nd one_hot put put_
    repeat_interleave scatter scatter_ scatter_add scatter_add_ scatter_reduce
    scatter_reduce_ segment_reduce _segment_reduce_backward take take_along_dim
    value_selecting_reduction_backward
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)
# Dtypes that are quantized, without arithmetic, or with elements smaller than a byte.
_UNSUPPORTED_DTYPE = r"q|bits|float4|u?int[1-7]$"
# In training, these ops write to running statistics, which their schemas do not declare. Arguments
# that are not declared as written to are not copied before a kernel is compared with the original,
# so the statistics would be written twice.
WRITES_STATISTICS = ("batch_norm", "instance_norm")
_STATISTICS = frozenset({"running_mean", "running_var"})
INTEGER_DIVISION = frozenset(
    """
    div div_ divide divide_ floor_divide floor_divide_ fmod fmod_ remainder remainder_
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)


def op_decline(op: OpOverload, schema: OpSchema) -> str | None:
    """Return why no call of ``op`` can be served, or ``None``."""
    name = schema.op.partition("::")[2].partition(".")[0]
    tags = op.tags
    if torch.Tag.nondeterministic_seeded in tags:
        return "random"
    if re.match(UNINITIALISED, name):
        return "uninitialised"
    if torch.Tag.inplace_view in tags or name in CHANGES_METADATA:
        return "changes_metadata"
    # The tags of ``index`` are about masks, which ``call_decline`` knows by their dtypes.
    if not reads_by_index(schema.op, mutates=bool(schema.mutated)):
        if name in DATA_DEPENDENT_ERRORS:
            return "error_depends_on_data"
        if torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
            return "data_dependent_output"
    if any(result.is_view for result in schema.returns):
        return "returns_view"
    if name in _READS_STORAGE_OFFSET:
        return "reads_storage_offset"
    if any(r.kind not in (Kind.TENSOR, Kind.TENSORS) for r in schema.returns):
        return "non_tensor_result"
    if not schema.returns and not schema.mutated:
        return "non_tensor_result"
    if any(a.kind is Kind.UNSUPPORTED and not a.optional for a in schema.arguments):
        return "unsupported_argument_type"
    return None


def call_decline(template: CallTemplate) -> str | None:
    """Return the reason in the key itself why its calls cannot be served, or ``None``."""
    key = template.key
    if "float_mode" in dict(key.context):
        return "float_mode"
    for _, component in key.arguments:
        if isinstance(component, dict) and component.get("undefined"):
            return "unsupported_tensor"
    for slot in template.slots:
        component = slot.component
        if slot.number_kind:
            continue
        if component["layout"] != "strided" or component["conj"] or component["neg"]:
            return "unsupported_tensor"
        if re.match(_UNSUPPORTED_DTYPE, component["dtype"]):
            return "unsupported_tensor"
        if slot.mutated and overlaps_itself(component["sizes"], component["strides"]):
            return "mutated_argument_overlaps"
    if _writes_statistics(key, template):
        return "undeclared_write"
    if _divides_integers(key, template):
        return "error_depends_on_data"
    if _indexes_by_mask(key, template):
        return "data_dependent_output"
    if _makes_bytes_of_floats(key):
        return "uncertified"
    return None


def _makes_bytes_of_floats(key: KernelKey) -> bool:
    """Return whether the call converts floating-point numbers to int8.

    For values outside of int8's range, C++ defines no result: eager's code cuts bits off,
    Inductor's takes the nearest number.
    """
    arguments = dict(key.arguments)
    if key.op.startswith("aten::_to_copy"):
        made = arguments.get("dtype") or (arguments.get("out") or {}).get("dtype")
    else:
        made = "int8" if key.op.startswith("aten::_cast_Char") else None
    if made != "int8":
        return False
    return bool(getattr(torch, arguments["self"]["dtype"]).is_floating_point)


def _writes_statistics(key: KernelKey, template: CallTemplate) -> bool:
    """Return whether the call updates statistics that the schema does not declare as written to."""
    name = key.op.partition("::")[2].partition(".")[0]
    if not any(part in name for part in WRITES_STATISTICS):
        return False
    arguments = dict(key.arguments)
    if arguments.get("training") is False or arguments.get("use_input_stats") is False:
        return False
    return any(slot.name in _STATISTICS and not slot.mutated for slot in template.slots)


def _indexes_by_mask(key: KernelKey, template: CallTemplate) -> bool:
    """Return whether the call is ``x[mask]``: ``index`` counts the places that are true."""
    if not key.op.startswith("aten::index."):
        return False
    masks = (torch.bool, torch.uint8)
    return any(slot.name != "self" and slot_dtype(slot) in masks for slot in template.slots)


def _divides_integers(key: KernelKey, template: CallTemplate) -> bool:
    """Return whether a zero divisor would raise: a division whose operands are all integral."""
    name = key.op.partition("::")[2].partition(".")[0]
    if name not in INTEGER_DIVISION:
        return False
    arguments = dict(key.arguments)
    if name.startswith("div") and not arguments.get("rounding_mode"):
        return False  # True division of integers gives floats: infinity or NaN for a zero divisor.
    out = {a.name for a in template.schema.arguments if a.mutated and a.kwarg_only}
    kinds = [
        slot.number_kind or getattr(torch, slot.component["dtype"])
        for slot in template.slots
        if slot.name not in out
    ]
    kinds += [next(iter(c)) for n, c in key.arguments if n in ("self", "other") and _is_scalar(c)]
    return all(
        kind in ("int", "bool")
        if isinstance(kind, str)
        else not (kind.is_floating_point or kind.is_complex)
        for kind in kinds
    )


def _is_scalar(component: object) -> bool:
    return isinstance(component, dict) and len(component) == 1 and "number" not in component
