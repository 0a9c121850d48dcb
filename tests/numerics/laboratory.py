"""What every family uses: kernels, comparisons, and the loop over chunks of values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .compare import Comparison
from .kernels import (
    DeclinedError,
    Kernel,
    Kernels,
    eager_refuses,
)
from .positions import as_elsewhere

# Elements of a chunk: its results and the exact values stay in a core's cache. The last ones are no
# whole vector, so the code behind the vector loop runs, too.
TAIL = 13
CHUNK = (1 << 17) + TAIL

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Exact = Callable[[Kernel, Sequence[Any]], Any]


class RefusedError(Exception):
    """Eager takes no such call, so no kernel can serve it."""


@dataclass(frozen=True, slots=True)
class Laboratory:
    """Where a family finds what it needs.

    Attributes:
        directory: Of everything that is kept.
        kernels: Compiles and loads.
    """

    directory: Path
    kernels: Kernels

    def kernel(
        self,
        op: str,
        args: Sequence[Any],
        kwargs: dict[str, Any] | None = None,
        *,
        numbers: bool = False,
    ) -> Kernel:
        """Return the kernel of a call; see ``Kernels.kernel``.

        Raises:
            RefusedError: Eager does not take the call.
            DeclinedError: The package keeps the original.
        """
        from aoti_eager._base.op_names import find_overload

        try:
            find_overload(op)(*args, **(kwargs or {}))
        except Exception as error:
            raise RefusedError(eager_refuses(error)) from error
        return self.kernels.kernel(op, args, kwargs or {}, numbers=numbers)

    def comparison(self) -> Comparison:
        """Return an empty comparison."""
        return Comparison(self.directory)

    def compared(
        self,
        kernel: Kernel,
        chunks: Iterable[Sequence[Any]],
        exact: Exact | None,
        *,
        by_input: bool = False,
        sparse: bool = False,
        more: Iterable[Sequence[Any]] = (),
    ) -> dict[str, Any]:
        """Run a kernel over chunks and return the comparison's measures.

        Args:
            kernel: The kernel.
            chunks: Inputs of one run each, in slot order.
            exact: The exact results of a chunk; ``None`` where eager's stand for them.
            by_input: Whether a region is a binade of the (only) input, not of the exact result.
            sparse: Whether exact values are computed only where results differ, and for one chunk
                in 16. Errors of eager are underestimated then, which is stricter.
            more: Inputs that only eager runs on: where the chunks have few values in a region, the
                largest of eager's errors is small there by chance.
        """
        comparison = self.comparison()
        for number, inputs in enumerate(chunks):
            try:
                eager = kernel.eager(inputs)
            except Exception as error:  # noqa: BLE001 - whatever it is, a kernel does not raise it
                comparison.add_refused(eager_refuses(error))
                continue
            compiled = kernel.compiled(inputs)
            if len(eager) == 1:
                eager[0], count = as_elsewhere(kernel.eager, inputs, eager[0], compiled[0])
                comparison.elsewhere += count
            shown = [one for one in inputs if isinstance(one, Tensor)]
            if sparse and number % 16:
                where = _differing(eager, compiled)
                if where is not None:
                    comparison.add_equal(eager[0].numel() - len(where))
                    if not len(where):
                        continue
                    inputs = [
                        one[where] if isinstance(one, Tensor) and one.dim() else one
                        for one in inputs
                    ]
                    shown = [one for one in inputs if isinstance(one, Tensor)]
                    eager, compiled = ([one[0][where]] for one in (eager, compiled))
            truth = None if exact is None else exact(kernel, inputs)
            keys = shown[0].double() if by_input and not shown[0].is_complex() else None
            if len(eager) != len(compiled):
                comparison.metadata.append(f"{len(compiled)} results instead of {len(eager)}")
                break
            for i, (want, have) in enumerate(zip(eager, compiled, strict=True)):
                known = None if truth is None else truth[i]
                comparison.add(want, have, known, keys=keys, inputs=shown)
        for inputs in more if exact is not None else ():
            for want, known in zip(kernel.eager(inputs), exact(kernel, inputs), strict=True):
                keys = inputs[0].double() if by_input else None
                comparison.add(want, want, known, keys=keys)
        return comparison.measures()


def _differing(eager: Sequence[Tensor], compiled: Sequence[Tensor]) -> Tensor | None:
    """Return where two results differ in a bit; ``None`` where that is not to be used."""
    if len(eager) != 1 or len(compiled) != 1:
        return None
    one, other = eager[0], compiled[0]
    kind = _INTEGERS.get(one.element_size())
    plain = one.dtype == other.dtype and one.shape == other.shape and one.dim() == 1
    if kind is None or not plain or not (one.is_contiguous() and other.is_contiguous()):
        return None
    if torch.equal(one.view(kind), other.view(kind)):
        return torch.empty(0, dtype=torch.int64)
    return (one.view(kind) != other.view(kind)).nonzero().squeeze(1)


__all__ = ["CHUNK", "TAIL", "DeclinedError", "Laboratory", "RefusedError"]
