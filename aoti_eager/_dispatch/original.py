"""Call the kernel that was registered before ours."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.torch_compat.dispatcher import (
    OpOverload,
    custom_op_function,
    is_custom_op_kernel,
    is_from_python,
    is_ours,
    is_torchs_own,
)
from .._base.torch_compat.tensors import wrapped_number, wrapped_templates
from .._keys.schema import Kind, OpSchema
from .._native.passthrough import passthrough
from ..errors import OriginalKernelError

_INVALIDATED = "SafeKernelFunction has been invalidated"

_NUMBERS = frozenset({bool, int, float, complex})


@functools.lru_cache(maxsize=1024, typed=True)
def _wrapped_once(value: complex) -> Tensor:
    with passthrough():
        return wrapped_number(value)


def _wrapped(value: complex) -> Tensor:
    """Return the wrapped tensor of a number; cached, because scripts pass a number repeatedly."""
    # 0.0 equals -0.0, also within a complex number: both would share a cached tensor. NaN does not
    # equal itself: it would never find its own.
    if type(value) is not complex and value and value == value:
        return _wrapped_once(value)
    return _wrapped_once.__wrapped__(value)


def _wrapped_or_same(value: Any) -> Any:
    is_number = value.__class__ in _NUMBERS
    return _wrapped(value) if is_number else value


class OriginalKernel:
    """The kernel of one overload at one dispatch key, captured before ours goes in.

    Python kernels hold the GIL while they run, and so does every original that is reached from
    here (docs/limits.md).

    Attributes:
        overridden: Whether the kernel is somebody's override, and not torch's own. Compiled code
            computes torch's meaning of the op, so its results are compared in every process.
        is_python_function: Whether the kernel is the function of an op of
            ``torch.library.custom_op``.

    Raises:
        RuntimeError: There is no kernel at that dispatch key.
    """

    def __init__(
        self,
        op: OpOverload,
        schema: OpSchema,
        dispatch_key: str,
        above: OriginalKernel | None = None,
    ) -> None:
        if any(one.kind is Kind.TENSOR for one in schema.arguments):
            wrapped_templates()  # Made now, while no op that takes numbers is registered.
        self._op = op
        self._name = schema.op
        self._dispatch_key = dispatch_key
        self._kernel = torch.library.get_kernel(op, dispatch_key)
        if above is not None and is_ours(self._kernel):
            # Our other kernel is registered already: its original is the original of both, and
            # stays when the other kernel goes.
            self._kernel = above._kernel
        self.is_python_function = is_custom_op_kernel(self._kernel)
        self.overridden = not (
            is_torchs_own(self._kernel)
            or self.is_python_function
            # The maker of such a device says in C++ what its kernels are.
            or (dispatch_key == "PrivateUse1" and not is_from_python(self._kernel))
        )
        tensors = [i for i, a in enumerate(schema.arguments) if a.kind is Kind.TENSOR]
        # Also if the op has one tensor only: C++ casts a wrapped number with _to_copy, for example.
        self._number_slots = tuple(tensors)
        lists = [i for i, a in enumerate(schema.arguments) if a.kind is Kind.TENSORS]
        self._list_slots = tuple(lists)

    def __call__(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the original kernel returns for this call, or raise what it raises.

        Raises:
            OriginalKernelError: The library that had registered the original was destroyed.
        """
        for slot in self._number_slots:
            if slot < len(args) and args[slot].__class__ in _NUMBERS:
                # A boxed call takes no number in a Tensor slot; C++ had sent a wrapped tensor.
                number = _wrapped(args[slot])
                args = [*args[:slot], number, *args[slot + 1 :]]
        for slot in self._list_slots:
            values: Sequence[Any] = args[slot] if slot < len(args) else ()
            if any(one.__class__ in _NUMBERS for one in values):
                listed = [_wrapped_or_same(one) for one in values]
                args = [*args[:slot], listed, *args[slot + 1 :]]
        try:
            return self._kernel.call_boxed(keyset, *args, **kwargs)
        except RuntimeError as error:
            if self.is_python_function and _INVALIDATED in str(error):
                # The op was defined again, as in notebooks: the new op has our kernel, too.
                function = custom_op_function(self._name, self._dispatch_key)
                if function is not None:
                    return function(*args, **kwargs)
            raise self._explained(error) from error.__cause__

    def _explained(self, error: RuntimeError) -> Exception:
        if _INVALIDATED not in str(error):
            return error
        return OriginalKernelError(
            f"{self._name}: the kernel that was registered before aoti_eager's is gone, because "
            "its torch.library.Library was destroyed; call unregister() before destroying it, and "
            "register again to fall back to what is registered now"
        )
