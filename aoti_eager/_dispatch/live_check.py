"""Compare a library's run with the original's on a call's own arguments, before it serves calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .._base.torch_compat.dispatcher import OpOverload
from .._keys.call_template import CallTemplate, fresh_results
from .._native.passthrough import passthrough
from .compare import differences
from .kernel import Kernel
from .original import OriginalKernel
from .reference import Reference
from .tensor_copies import copy_mutated, copy_tensor

Outputs = Sequence[Mapping[str, Any]]


class LiveCheck:
    """The comparison for one call.

    Args:
        op: The overload.
        template: The call.
        original: The kernel whose results count.
        keyset: The call's dispatch key set.
        inputs: The call's own tensors, in slot order; the original writes to the mutated ones.
    """

    def __init__(
        self,
        op: OpOverload,
        template: CallTemplate,
        original: OriginalKernel,
        keyset: Any,
        inputs: Sequence[Tensor],
    ) -> None:
        self._op = op
        self._template = template
        self._original = original
        self._keyset = keyset
        self._inputs = inputs

    def copies(self) -> list[Tensor]:
        """Return the inputs, with copies of those that the op writes to.

        Call this before the original runs.
        """
        with passthrough():
            return copy_mutated(self._template, self._inputs)

    def problems(
        self, kernel: Kernel, outputs: Outputs, result: Any, before: Sequence[Tensor]
    ) -> list[str]:
        """Return what differs between the library's run and the original's ``result``.

        Args:
            kernel: The loaded library.
            outputs: Where the op's results come from; see ``Entry.outputs``.
            result: What the original returned for this call.
            before: What ``copies`` returned before the original ran.
        """
        with passthrough():
            found = self._compare(kernel, outputs, result, self._inputs, before)
            if found:
                # Another thread may have written to the arguments meanwhile, so compare again, on
                # copies that no other thread has.
                found = self._compare_on_copies(kernel, outputs)
            return found

    def problems_on_copies(self, kernel: Kernel, outputs: Outputs) -> list[str]:
        """Return what differs on copies of the inputs, which no other thread writes to."""
        with passthrough():
            return self._compare_on_copies(kernel, outputs)

    def _compare(
        self,
        kernel: Kernel,
        outputs: Outputs,
        result: Any,
        after: Sequence[Tensor],
        before: Sequence[Tensor],
    ) -> list[str]:
        mine = copy_mutated(self._template, before)
        try:
            with kernel.lock:
                got = kernel.run(mine)
        except RuntimeError as error:
            return [f"the library raised: {error}"]
        expected = fresh_results(outputs, result, len(self._template.schema.returns))

        def copies() -> list[Tensor]:
            return [copy_tensor(tensor) for tensor in before]

        reference = Reference(self._template, copies, self._op, outputs)
        return differences(self._template, expected, got, after, mine, reference)

    def _compare_on_copies(self, kernel: Kernel, outputs: Outputs) -> list[str]:
        before = [copy_tensor(tensor) for tensor in self._inputs]
        theirs = [copy_tensor(tensor) for tensor in before]
        args, kwargs = self._template.arguments(theirs, as_number=lambda number: number.item())
        result = self._original(self._keyset, args, kwargs)
        return self._compare(kernel, outputs, result, theirs, before)
