"""The names that a user's function may use: those whose values the function's key determines.

A function is traced once, and its kernel serves every call with the same key. So the function may
only read what is in a key (sizes, dtypes), and may only call functions that do nothing but compute.
The lists here say what is allowed; everything else is refused, because a name of torch may stand
for anything.
"""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Callable
from typing import Any

import torch

from .._base.torch_compat.dispatcher import overload_names
from ..errors import UnsupportedFunctionError

# Allowed attributes and methods of a tensor, a list or a string.
_ATTRIBUTES = frozenset(
    """
    shape dtype device ndim size dim numel stride T mT H mH is_contiguous itemsize nelement
    element_size is_floating_point is_complex float double half bfloat16 int long short bool to
    type_as view reshape contiguous expand_as view_as new_zeros new_ones new_full new_tensor
    append extend items keys values get index insert pop copy format join startswith endswith split
    real imag
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)
# Refused names of aten ops: they read what no key has, or do something else than compute.
_REFUSED_OPS = frozenset(
    """
    data is_leaf output_nr requires_grad_ retain_grad retains_grad backward set_data as_strided
    as_strided_ as_strided_copy as_strided_scatter storage_offset sym_storage_offset resize_
    resize resize_as_ resize_as_sparse_ set_ set record_stream pin_memory is_pinned rename rename_
    align_to refine_names item tolist is_inference save unsafe_chunk lift lift_fresh detach_
    _version names data_ptr share_memory_ numpy manual_seed print warn grad sym_size
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)
_TORCH_FUNCTIONS = frozenset({"tensor", "finfo", "iinfo", "Size", "is_tensor", "broadcast_shapes"})
_TORCH_NUMBERS = frozenset({"pi", "e", "inf", "nan", "newaxis"})
_FUNCTIONALS = frozenset(
    """
    relu relu6 elu selu celu leaky_relu prelu gelu silu mish hardtanh hardswish hardsigmoid sigmoid
    tanh softplus softsign softmin softmax log_softmax logsigmoid tanhshrink softshrink hardshrink
    threshold glu linear bilinear layer_norm rms_norm group_norm normalize pad mse_loss l1_loss
    smooth_l1_loss huber_loss kl_div cosine_similarity pairwise_distance one_hot
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    conv1d conv2d conv3d interpolate pixel_shuffle pixel_unshuffle unfold fold
    scaled_dot_product_attention binary_cross_entropy_with_logits
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)
_PLAIN_MODULES = frozenset({"math"})
_TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format)

Lookup = Callable[[str], Any]
UNKNOWN = object()


def check_names(definition: ast.AST, lookup: Lookup) -> None:
    """Refuse attributes whose values the function's key does not determine.

    Args:
        definition: The function's syntax tree.
        lookup: Gives the value of a global or free name, or ``UNKNOWN`` for a local name.

    Raises:
        UnsupportedFunctionError: An attribute is not allowed; the message names the first.
    """
    for node in ast.walk(definition):
        if not isinstance(node, ast.Attribute):
            continue
        base = _value(node.value, lookup)
        if base is UNKNOWN:
            if not _is_allowed_of_tensor(node.attr):
                raise UnsupportedFunctionError(
                    f"uses .{node.attr}, which may do or ask for more than its key says"
                )
        elif isinstance(base, types.ModuleType):
            check_member(base, node.attr)
        elif isinstance(base, torch.nn.Module):
            if node.attr not in _parts_of(base):
                raise UnsupportedFunctionError(
                    f"uses {ast.unparse(node)}, of a {type(base).__name__}"
                )
        elif not (isinstance(base, torch.Tensor | list | tuple | dict | str)):
            raise UnsupportedFunctionError(f"uses {ast.unparse(node)}, of a {type(base).__name__}")
        elif not _is_allowed_of_tensor(node.attr):
            raise UnsupportedFunctionError(
                f"uses .{node.attr}, which may do or ask for more than its key says"
            )


def check_member(module: types.ModuleType, name: str) -> None:
    """Refuse a module's name that may do or read more than the function's key says."""
    value = getattr(module, name, None)
    allowed = (
        (module.__name__ == "torch" and _is_allowed_of_torch(name, value))
        or (module.__name__ == "torch.nn.functional" and name in _FUNCTIONALS)
        or (module.__name__ in ("torch.nn", "torch") and isinstance(value, types.ModuleType))
        or (module.__name__ == "torch.special" and _is_op(f"special_{name}"))
        or (module.__name__ == "torch.linalg" and _is_op(f"linalg_{name}"))
        or module.__name__ in _PLAIN_MODULES
    )
    if not allowed:
        raise UnsupportedFunctionError(
            f"uses {module.__name__}.{name}, which may do or ask for more than its key says"
        )


def is_allowed_function(value: Any) -> bool:
    """Return whether a function of torch or of the standard library only computes a result.

    No class of torch is allowed, because making an object of a class may do anything.
    """
    if isinstance(value, type):
        return False
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", "")
    if module == "torch.nn.functional":
        return name in _FUNCTIONALS
    return module in _PLAIN_MODULES


def _is_allowed_of_tensor(name: str) -> bool:
    return name in _ATTRIBUTES or _is_op(name)


def _is_allowed_of_torch(name: str, value: Any) -> bool:
    if isinstance(value, _TORCH_VALUES) or name in _TORCH_NUMBERS or name in _TORCH_FUNCTIONS:
        return True
    return callable(value) and not isinstance(value, type) and _is_op(name)


@functools.lru_cache(maxsize=4096)
def _is_op(name: str) -> bool:
    """Return whether the dispatcher has an aten op of that name that is allowed.

    Random ops are not refused here: they are found in the graph, by their tag.
    """
    if name in _REFUSED_OPS or name.startswith("_"):
        return False
    packet = getattr(torch.ops.aten, name, None)
    # Some ops exist only in TorchScript, and may read anything (is_grad_enabled).
    return packet is not None and bool(overload_names(packet))


def _parts_of(module: torch.nn.Module) -> set[str]:
    plain = {n for n, v in vars(module).items() if isinstance(v, bool | int | float | str | tuple)}
    return {*module._parameters, *module._buffers, *module._modules, *plain} - {"training"}


def _value(node: ast.AST, lookup: Lookup) -> Any:
    """Return the value of an expression made of names and attributes, or ``UNKNOWN``."""
    if isinstance(node, ast.Name):
        return lookup(node.id)
    if isinstance(node, ast.Attribute):
        base = _value(node.value, lookup)
        if isinstance(base, types.ModuleType):
            return getattr(base, node.attr, UNKNOWN)
        if isinstance(base, torch.nn.Module) and node.attr in _parts_of(base):
            return getattr(base, node.attr)
    return UNKNOWN
