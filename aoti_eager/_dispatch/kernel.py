"""What the in-memory table holds: a loaded kernel library that takes a call's arguments."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .._keys.call_template import NUMBER_DTYPES, CallTemplate
from .._keys.schema import Kind, OpSchema
from .._native import table as native_table
from .._native.table import NativeRun
from .._runner.kernel_runner import Run

if TYPE_CHECKING:
    from .._keys.pattern_program import NativePattern


class Runner(Protocol):
    """What a kernel runs; see ``_runner.kernel_runner.LibraryRunner``."""

    @property
    def run(self) -> Run:
        """Return the function that takes inputs and returns fresh outputs."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Return the lock to hold around ``run``."""

    def native(self) -> NativeRun | None:
        """Return what the C++ hit path calls, if it can run this library now."""


class Look(Protocol):
    """Serves a call, and compares it with the original; see ``recheck``."""

    def __call__(
        self, kernel: Kernel, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the result of the call."""


class Kernel:
    """One key's library, ready to run.

    Attributes:
        run: The library; takes inputs in slot order, returns fresh outputs.
        lock: Held around ``run``; see ``_runner.kernel_runner.LibraryRunner``.
        parallel: Whether its code may have parallel regions.
        plain: Whether every tensor argument of the key is a single tensor and present: then the
            inputs are these arguments themselves.
        single: Whether the result of the op is the library's first output and nothing else.
        results: Makes the op's result from the outputs and the call's arguments.
        native: Gives what the C++ hit path calls, if it can run this library now.
        native_results: ``results`` in the form that C++ takes; ``None`` if C++ cannot make them.
        words: The key in C++; ``None`` if it has none.
        is_dynamic: Whether the library is a dynamic specialisation's, which several keys share.
        numbers: For C++, a byte for each argument: whether it is a number that is an input.
        pattern: How C++ recognises calls that share the library; ``None`` if the key has its own.
        certified: Whether it may serve while the setting ``certified`` is on.
        quiet: For Python: one item for each call that the kernel serves before ``look`` takes a
            call.
        look: Serves a call and compares it with the original once more; ``None`` for never.
        is_looked_at: Whether the hit paths count the calls, and have ``look`` take some of them.
        gated: Whether it may serve while the setting ``gate`` is on; set by the code that knows its
            times.
        saves_us: Measured microseconds that a call saves with the kernel; 0 if it was not measured.
    """

    __slots__ = (
        "certified",
        "gated",
        "is_dynamic",
        "is_looked_at",
        "lock",
        "look",
        "native",
        "native_results",
        "numbers",
        "parallel",
        "pattern",
        "plain",
        "quiet",
        "results",
        "run",
        "saves_us",
        "single",
        "words",
    )

    def __init__(
        self,
        schema: OpSchema,
        runner: Runner,
        outputs: Sequence[Mapping[str, Any]],
        *,
        plain: bool,
        parallel: bool,
        words: bytes | None = None,
    ) -> None:
        self.run = runner.run
        self.lock = runner.lock
        self.native = runner.native
        self.native_results = native_results(schema, outputs)
        self.words = words
        self.certified = False
        self.gated = False
        self.saves_us = 0.0
        self.quiet: Iterator[None] = itertools.repeat(None)
        self.look: Look | None = None
        self.is_looked_at = False
        self.is_dynamic = False
        self.numbers = b""
        self.pattern: NativePattern | None = None
        self.plain = plain
        self.parallel = parallel
        self.single = len(outputs) == 1 and outputs[0].get("output") == 0
        self.results = result_function(schema, outputs)

    def look_after(self, calls: int | None) -> None:
        """Have ``look`` called after ``calls`` calls; ``None`` for never."""
        # An iterator counts in C: a number that Python lowers by one costs twice as much.
        self.quiet = itertools.repeat(None) if calls is None else itertools.repeat(None, calls)

    def take_numbers(self, template: CallTemplate) -> None:
        """Hand the numbers of a call to the library, which takes them as inputs."""
        if not template.numbers:
            return
        places = [
            (place, torch.tensor(float.fromhex(slot.component["value"]), dtype=torch.float64))
            for place, slot in enumerate(template.slots)
            if "value" in slot.component
        ]
        run = self.run

        def run_with_numbers(inputs: list[Tensor]) -> list[Tensor]:
            inputs = list(inputs)
            for place, number in places:
                inputs.insert(place, number)
            return run(inputs)

        self.run = run_with_numbers
        self.numbers = bytes(a.name in template.numbers for a in template.schema.arguments)


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


def native_results(
    schema: OpSchema, outputs: Sequence[Mapping[str, Any]]
) -> list[tuple[int, int, int]] | None:
    """Return kind, index and count of each result, as the C++ hit path takes them.

    ``None`` if an output of the library would be returned twice, or the outputs of a list are not
    consecutive: C++ moves each output to one place.
    """
    positions = {argument.name: i for i, argument in enumerate(schema.arguments)}
    results: list[tuple[int, int, int]] = []
    used: list[int] = []
    for output in outputs:
        if "argument" in output:
            results.append((native_table.ARGUMENT, positions[output["argument"]], 0))
        elif "none" in output:
            results.append((native_table.NONE, 0, 0))
        elif "output" in output:
            used.append(output["output"])
            results.append((native_table.OUTPUT, output["output"], 1))
        else:
            indices = list(output["outputs"])
            first = indices[0] if indices else 0
            if indices != list(range(first, first + len(indices))):
                return None
            used += indices
            results.append((native_table.OUTPUTS, first, len(indices)))
    return results if len(set(used)) == len(used) else None


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
    # 0.0 == -0.0, also within a complex number, but they are different numbers; a lookup of NaN
    # would never find it.
    keep = type(value) is not complex and value and value == value
    found = _number_tensors.get((type(value), value)) if keep else None
    if found is not None:
        return found
    tensor = torch.tensor(value, dtype=NUMBER_DTYPES[type(value).__name__], device="cpu")
    if keep and len(_number_tensors) < _NUMBER_TENSORS_LIMIT:
        _number_tensors[type(value), value] = tensor
    return tensor
