"""A tape as a Python function: its calls one after the other, each an op's C++ function.

Ops are looked up and arguments are decoded once. A result is dropped after its last use, so that a
replay holds no more memory than the eager call did.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.digest import Component
from .._base.generated_code import run_generated
from .._base.torch_compat.dispatcher import op_function
from .._keys.call_template import argument_value
from .._keys.schema import Kind
from .tape_call import TapeCall, overload_of, schema_of

# What a replay is: it takes the tape's inputs and returns the tape's results.
Replay = Callable[[Sequence[Tensor]], list[Tensor]]


def replay_function(
    inputs: int,
    calls: Sequence[TapeCall],
    outputs: Sequence[Component],
    instead: Mapping[str, Callable[..., Any]] | None = None,
) -> Replay:
    """Return the function that replays a tape of ``inputs`` inputs.

    Args:
        inputs: The number of inputs.
        calls: The calls.
        outputs: The sources of the results.
        instead: Functions to call instead of ops, by the ops' qualified names.

    Raises:
        TapeError: This process lacks one of the ops.
    """
    writer = _Writer(inputs, calls, outputs, instead or {})
    run_generated(writer.source(), "replay of a tape", writer.names)
    function: Replay = writer.names["replay"]
    return function


class _Writer:
    """Writes the source of a replay, and collects the values that the source names."""

    def __init__(
        self,
        inputs: int,
        calls: Sequence[TapeCall],
        outputs: Sequence[Component],
        instead: Mapping[str, Callable[..., Any]],
    ) -> None:
        self._inputs, self._calls, self._outputs = inputs, calls, outputs
        self._instead = instead
        self.names: dict[str, Any] = {}
        # The call after which each result is needed no more; the outputs are needed for good.
        self._last: dict[str, int] = {}
        for number, call in enumerate(calls):
            for _, source in call.sources():
                if "result" in source:
                    self._last[_variable(source)] = number
        for source in outputs:
            if "result" in source:
                self._last[_variable(source)] = len(calls)

    def source(self) -> str:
        """Return the source of the function ``replay``."""
        lines = ["def replay(inputs):"]
        if self._inputs:
            lines.append(f"  {', '.join(f'i{n}' for n in range(self._inputs))}, = inputs")
        for number, call in enumerate(self._calls):
            lines += self._call(number, call)
        results = ", ".join(self._tensor(one) for one in self._outputs)
        return "\n".join([*lines, f"  return [{results}]", ""])

    def _call(self, number: int, call: TapeCall) -> list[str]:
        schema = schema_of(call.op)
        function = f"f_{call.op.replace('::', '_').replace('.', '_')}"
        self.names[function] = self._instead.get(call.op) or op_function(overload_of(call.op))
        given = dict(call.arguments)
        values, by_name = [], False
        for argument in schema.arguments:
            if argument.name not in given:
                by_name = True  # What follows an argument that is left out is passed by name.
                continue
            component = given[argument.name]
            if argument.is_tensor and component is not None:
                text = self._tensors(component)
            else:
                text = self._constant(argument_value(argument.kind, component))
            named = by_name or argument.kwarg_only
            values.append(f"{argument.name}={text}" if named else text)
        lines = self._results(number, call, f"{function}({', '.join(values)})")
        used = {_variable(source) for _, source in call.sources() if "result" in source}
        gone = sorted(name for name in used if self._last[name] == number)
        return lines + ([f"  {' = '.join(gone)} = None"] if gone else [])

    def _results(self, number: int, call: TapeCall, text: str) -> list[str]:
        wanted = sorted(
            int(name.rpartition("_")[2]) for name in self._last if name.startswith(f"r{number}_")
        )
        if not wanted:
            return [f"  {text}"]
        returns = schema_of(call.op).returns
        if len(returns) == 1 and returns[0].kind is Kind.TENSOR:
            return [f"  r{number}_0 = {text}"]
        if any(one.kind is Kind.TENSORS for one in returns):
            self.names["flat"] = flat_results
            text = f"flat({text})"
        lines = [f"  found = {text}"]
        lines += [f"  r{number}_{place} = found[{place}]" for place in wanted]
        return [*lines, "  found = None"]

    def _tensors(self, component: Component) -> str:
        if isinstance(component, list):
            listed = ["None" if one is None else self._tensor(one) for one in component]
            return f"[{', '.join(listed)}]"
        return self._tensor(component)

    def _tensor(self, source: Component) -> str:
        ((kind, value),) = source.items()
        if kind == "input":
            return f"i{value}"
        if kind == "result":
            return _variable(source)
        if kind == "number":
            return self._constant(argument_value(Kind.SCALAR, value))
        # Made in each replay, as in the eager call, by ops that a trace sees.
        return f"{self._constant(functools.partial(_data, value))}()"

    def _constant(self, value: Any) -> str:
        if value is None or type(value) in (bool, int):
            return repr(value)
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name


def _variable(source: Component) -> str:
    call, place = source["result"]
    return f"r{call}_{place}"


def flat_results(results: Any) -> list[Any]:
    """Return an op's results, the tensors of lists one by one."""
    listed = results if isinstance(results, tuple | list) else [results]
    found: list[Any] = []
    for one in listed:
        found += one if isinstance(one, tuple | list) else [one]
    return found


def _data(values: Component) -> Tensor:
    """Return a small constant, made by ops that need no data."""
    dtype = getattr(torch, values["dtype"])
    flat = [argument_value(Kind.SCALAR, one) for one in values["values"]]
    if not values["sizes"]:
        return torch.full((), flat[0], dtype=dtype)
    if not flat:
        return torch.empty(values["sizes"], dtype=dtype)
    parts = [torch.full((1,), value, dtype=dtype) for value in flat]
    return torch.cat(parts).view(values["sizes"])
