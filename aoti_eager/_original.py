"""Reaching the kernel that was registered before ours."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ._compat import OpOverload, is_torchs_own, only_dense_kernels
from ._passthrough import passthrough
from ._schema import Kind, OpSchema
from .errors import OriginalKernelError

_NUMBERS = frozenset({bool, int, float, complex})
_reentered = threading.local()


class OriginalKernel:
    """The kernel of one overload at one dispatch key, captured before ours goes in.

    Python kernels hold the GIL while they run, and so does every original that is reached from
    here (docs/limits.md).

    Attributes:
        overridden: Whether it is not torch's own kernel but somebody's override. What compiled code
            computes is torch's meaning of the op, so its results are compared in every process.

    Raises:
        RuntimeError: There is no kernel at that dispatch key.
    """

    def __init__(self, op: OpOverload, schema: OpSchema, dispatch_key: str) -> None:
        self._op = op
        self._name = schema.op
        self._kernel = torch.library.get_kernel(op, dispatch_key)
        self.overridden = not is_torchs_own(self._kernel)
        tensors = [i for i, a in enumerate(schema.arguments) if a.kind is Kind.TENSOR]
        # A call needs a tensor to get here, so one Tensor slot alone never holds a number.
        self._number_slots = tuple(tensors) if len(tensors) > 1 else ()

    def __call__(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the original kernel returns for this call, or raise what it raises.

        Raises:
            OriginalKernelError: The library that had registered it was destroyed.
        """
        for slot in self._number_slots:
            if slot < len(args) and args[slot].__class__ in _NUMBERS:
                return self._with_number(keyset, args, kwargs)
        try:
            return self._kernel.call_boxed(keyset, *args, **kwargs)
        except RuntimeError as error:
            raise self._explained(error) from error.__cause__

    def _with_number(self, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the original with a number in a Tensor slot.

        A boxed call takes no numbers there, and a Python program cannot make the wrapped tensor it
        would take. While an overload is called through torch.ops, numbers are allowed: so the
        overload is entered again, and our kernel, met a second time, makes the boxed call.
        """
        if getattr(_reentered, "kernel", None) is self:
            return self._kernel.call_boxed(keyset, *args, **kwargs)
        before = getattr(_reentered, "kernel", None)
        _reentered.kernel = self
        try:
            with passthrough(), only_dense_kernels():
                return self._op(*args, **kwargs)
        except RuntimeError as error:
            raise self._explained(error) from error.__cause__
        finally:
            _reentered.kernel = before

    def _explained(self, error: RuntimeError) -> Exception:
        if "SafeKernelFunction has been invalidated" not in str(error):
            return error
        return OriginalKernelError(
            f"{self._name}: the kernel that was registered before aoti_eager's is gone, because "
            "its torch.library.Library was destroyed; call unregister() before destroying it, and "
            "register again to fall back to what is registered now"
        )
