"""Checks that what a user's function returns is what an operator may return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .._base.torch_compat import tensors
from .._keys.schema import Kind, OpSchema
from ..errors import CustomOpResultError


def with_checked_results(
    name: str, schema: OpSchema, function: Callable[..., Any]
) -> Callable[..., Any]:
    """Return ``function`` with a check of PyTorch's rules for an operator's results.

    Args:
        name: The operator's name, for messages.
        schema: The operator's schema.
        function: The user's function.
    """
    aliases = any(one.argument is not None or one.is_view for one in schema.returns)
    kinds = [one.kind for one in schema.returns]

    def run_for_one(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) and not tensors.shares_memory((result,), args, kwargs):
            return result
        return checked(result, args, kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        return checked(function(*args, **kwargs), args, kwargs)

    def checked(result: Any, args: Any, kwargs: Any) -> Any:
        results = (
            () if not kinds else (result,) if len(kinds) == 1 else tuple(_several(name, result))
        )
        if len(results) != len(kinds):
            raise CustomOpResultError(
                f"{name}: returned {len(results)} results; its schema has {len(kinds)}"
            )
        for index, (kind, one) in enumerate(zip(kinds, results, strict=True)):
            if kind is Kind.TENSOR and not isinstance(one, Tensor):
                raise CustomOpResultError(
                    f"{name}: result {index} is {type(one).__name__}; its schema says Tensor"
                )
        if not kinds and result is not None:
            raise CustomOpResultError(
                f"{name}: returned {type(result).__name__}; its schema says that it returns nothing"
            )
        if not aliases and tensors.shares_memory(results, args, kwargs):
            raise CustomOpResultError(
                f"{name}: a result is an argument, a view of one or of another result; an "
                "operator returns new tensors: return a clone"
            )
        return result

    return run_for_one if kinds == [Kind.TENSOR] else run


def _several(name: str, result: Any) -> Sequence[Any]:
    if not isinstance(result, tuple | list):
        raise CustomOpResultError(
            f"{name}: returned {type(result).__name__}; its schema has several results"
        )
    return result
