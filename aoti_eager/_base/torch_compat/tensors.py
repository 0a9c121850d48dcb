"""Tensors as the dispatcher and users' subclasses see them, and how two of them differ."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch.testing._comparison import TensorLikePair, not_close_error_metas
from torch.utils._python_dispatch import _disable_current_modes

# A Tensor subclass's ``__torch_function__`` is for its user's calls and not for this package's.
DisableTorchFunctionSubclass = torch._C.DisableTorchFunctionSubclass


def tensor_difference(actual: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return how ``actual`` differs from ``expected`` by ``torch.testing.assert_close``'s defaults.

    NaNs are equal, and strides are compared. The public function imports torch.distributed first,
    which takes a second; the class that it uses for two tensors gives the same result.
    """
    errors = not_close_error_metas(
        actual, expected, pair_types=(TensorLikePair,), equal_nan=True, check_stride=True
    )
    return str(errors[0].to_error()) if errors else None


def shares_memory(results: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a result shares its storage with an argument or with another result."""
    return bool(torch._C._any_output_is_alias_to_input_or_output(args, kwargs, results))


@functools.cache
def wrapped_templates() -> dict[type, Any]:
    """Return a wrapped number of each type; see ``wrapped_number``.

    Call this before this package registers any op, because the templates are made by a
    multiplication. Modes of the caller's thread (fakes, default devices) do not see the
    multiplication.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        scalar = torch.zeros((), requires_grad=True, device="cpu")
        saved = [torch.mul(scalar, n).grad_fn for n in (True, 1, 1.0, 1j)]
        numbers = [one._saved_other for one in saved]  # type: ignore[union-attr]
        return {type(number.item()): number for number in numbers}


def wrapped_number(value: complex) -> torch.Tensor:
    """Return the tensor that C++ makes of a number in a Tensor slot: it promotes as a number.

    No function makes such a tensor in Python, but a multiplication by a number saves one for its
    gradient. A tensor that ``_make_subclass`` makes from the saved one is still a wrapped number
    after it was given another storage.
    """
    template = wrapped_templates()[type(value)]
    data = torch.tensor(value, dtype=template.dtype, device="cpu")
    wrapped: torch.Tensor = torch.Tensor._make_subclass(torch.Tensor, template).set_(
        data.untyped_storage(), 0, (), ()
    )
    return wrapped


# All layouts, by the numbers that stand for them in a call's values; one has no public name.
LAYOUTS: tuple[torch.layout, ...] = (
    torch.strided,
    torch.sparse_coo,
    torch.sparse_csr,
    torch._mkldnn,  # type: ignore[attr-defined]
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
    torch.jagged,
)

# All dtypes of this build. Collected once, because torch has more than a thousand names.
DTYPES = frozenset(one for one in vars(torch).values() if one.__class__ is torch.dtype)
