"""What the in-memory table holds: a loaded kernel library that takes a call's arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from ._library_runner import Run
from ._schema import Kind, OpSchema
from ._template import NUMBER_DTYPES


class Runner(Protocol):
    """What a kernel runs; see ``LibraryRunner``."""

    @property
    def run(self) -> Run:
        """Return the function that takes inputs and returns fresh outputs."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Return what is to be held around ``run``."""


class Kernel:
    """One key's library, ready to run.

    Attributes:
        run: The library; takes inputs in slot order, returns fresh outputs.
        lock: To be held around ``run``; see ``LibraryRunner``.
        parallel: Whether its code may have parallel regions.
        plain: Whether every tensor argument of the key is one tensor that is there: then the inputs
            are these arguments as they are.
        single: Whether the result of the op is the library's first output and nothing else.
        results: Makes the op's result from the outputs and the call's arguments.
    """

    __slots__ = ("lock", "parallel", "plain", "results", "run", "single")

    def __init__(
        self,
        schema: OpSchema,
        runner: Runner,
        outputs: Sequence[Mapping[str, Any]],
        *,
        plain: bool,
        parallel: bool,
    ) -> None:
        self.run = runner.run
        self.lock = runner.lock
        self.plain = plain
        self.parallel = parallel
        self.single = len(outputs) == 1 and outputs[0].get("output") == 0
        self.results = result_function(schema, outputs)


def result_function(
    schema: OpSchema, outputs: Sequence[Mapping[str, Any]]
) -> Callable[[list[Tensor], Sequence[Any], Mapping[str, Any]], Any]:
    """Return a function of outputs, args and kwargs that gives what the op returns.

    A mutated argument is handed back as the caller's own tensor.
    """
    positions = {argument.name: i for i, argument in enumerate(schema.arguments)}

    def argument(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs[name] if name in kwargs else args[positions[name]]

    def result(values: list[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        results: list[Any] = []
        for output in outputs:
            if "argument" in output:
                results.append(argument(output["argument"], args, kwargs))
            elif "none" in output:
                results.append(None)
            elif "output" in output:
                results.append(values[output["output"]])
            else:
                results.append([values[i] for i in output["outputs"]])
        if not outputs:
            return None
        return results[0] if len(outputs) == 1 else tuple(results)

    return result


def call_inputs(schema: OpSchema, values: Sequence[Any]) -> list[Tensor]:
    """Return the inputs of a call in slot order: lists flattened, absent ones left out."""
    flat: list[Any] = []
    for argument, value in zip(schema.arguments, values, strict=True):
        if argument.kind is Kind.TENSOR:
            flat.append(value)
        elif argument.is_tensor:
            flat += value or ()
    return flat_inputs(flat)


def flat_inputs(values: Iterable[Any]) -> list[Tensor]:
    """Return ``values`` without ``None`` and with a tensor in place of each number."""
    return [
        value if isinstance(value, Tensor) else number_tensor(value)
        for value in values
        if value is not None
    ]


# Tensors of numbers that calls pass again and again (`x * 2`). Kernels never write to them.
_number_tensors: dict[tuple[type, Any], Tensor] = {}
_NUMBER_TENSORS_LIMIT = 1024


def number_tensor(value: Any) -> Tensor:
    """Return the 0-dim tensor that stands for a number in a Tensor slot."""
    # 0.0 == -0.0, also within a complex number, but they are two numbers; NaN is never found.
    keep = type(value) is not complex and value and value == value
    found = _number_tensors.get((type(value), value)) if keep else None
    if found is not None:
        return found
    tensor = torch.tensor(value, dtype=NUMBER_DTYPES[type(value).__name__], device="cpu")
    if keep and len(_number_tensors) < _NUMBER_TENSORS_LIMIT:
        _number_tensors[type(value), value] = tensor
    return tensor
