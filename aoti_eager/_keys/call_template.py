"""Turns a key back into a call: which tensors the call takes, and the arguments around them.

A key contains everything about a call except its tensors' data, so any process can rebuild the
call: the compile worker with fake tensors, the trial process with made-up data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.data_class import dataclass, field
from .._base.digest import Component
from .kernel_key import KernelKey
from .schema import Kind, OpSchema
from .size_arguments import product, resolved

# The dtype of the 0-dim tensor that stands for a number in a Tensor slot, by the number's kind.
NUMBER_DTYPES = {
    "bool": torch.bool,
    "int": torch.int64,
    "float": torch.float64,
    "complex": torch.complex128,
}


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """One input of a kernel: the key's component for a tensor, or for a number that is an input."""

    name: str
    component: dict[str, Component]
    mutated: bool

    @property
    def number_kind(self) -> str | None:
        """Return ``"float"``, ``"int"``, ``"bool"`` or ``"complex"``; ``None`` for a tensor."""
        return self.component.get("number")


@dataclass(frozen=True, slots=True)
class CallTemplate:
    """A call without its tensors.

    ``slots`` are the inputs in the order in which a runner takes them: the tensors in schema order,
    lists flattened and absent tensors left out, then the ``constants`` of a user's function.
    Arguments in ``numbers`` are inputs, too, each as a tensor without dimensions. Arguments in
    ``repeated`` are computed from the inputs' sizes, by expressions of symbols; ``places`` has the
    slot and the dimension of each symbol.
    """

    schema: OpSchema
    key: KernelKey
    slots: tuple[TensorSlot, ...]
    constants: int = 0
    numbers: frozenset[str] = frozenset()
    repeated: Mapping[str, Component] = field(default_factory=dict)
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def call(
        self,
        op: Callable[..., Any],
        inputs: Sequence[Any],
        as_number: Callable[[Any], Any] = lambda value: value,
    ) -> Any:
        """Return ``op`` called with ``inputs`` in the slots, numbers passed through ``as_number``.

        ``op`` is the overload or a captured kernel: anything that takes the schema's arguments. An
        ``op`` with a method ``with_constants`` is given the constants, too; any other ``op`` finds
        its constants itself.
        """
        args, kwargs = self.arguments(inputs, as_number)
        with_constants = getattr(op, "with_constants", None)
        if with_constants is not None:
            return with_constants(inputs[len(self.slots) - self.constants :], args, kwargs)
        return op(*args, **kwargs)

    def arguments(
        self, inputs: Sequence[Any], as_number: Callable[[Any], Any] = lambda value: value
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments of the call with ``inputs`` in the slots."""
        remaining = iter(
            [
                as_number(value) if slot.number_kind else value
                for slot, value in zip(self.slots, inputs, strict=True)
            ]
        )
        sizes = {name: inputs[slot].shape[dim] for name, (slot, dim) in self.places.items()}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument, (_, component) in zip(self.schema.arguments, self.key.arguments, strict=True):
            if argument.is_tensor and component is not None:
                if argument.kind is Kind.TENSOR:
                    value = next(remaining)
                else:
                    value = [None if one is None else next(remaining) for one in component]
            elif argument.name in self.numbers:
                value = next(remaining)
            elif argument.name in self.repeated:
                value = resolved(self.repeated[argument.name], lambda one: product(one, sizes))
            else:
                value = argument_value(argument.kind, component)
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        return args, kwargs


def call_template(schema: OpSchema, key: KernelKey, numbers: Iterable[str] = ()) -> CallTemplate:
    """Return the call that ``key`` was made from, without its tensors.

    ``numbers`` names arguments that are floats in the key and that the kernel takes as inputs.
    """
    inputs = frozenset(numbers)
    slots: list[TensorSlot] = []
    for argument, (name, component) in zip(schema.arguments, key.arguments, strict=True):
        if name in inputs:
            value = component if isinstance(component, str) else component["float"]
            slots.append(TensorSlot(name, {"number": "float", "value": value}, mutated=False))
        if not argument.is_tensor or component is None:
            continue
        listed = [component] if argument.kind is Kind.TENSOR else component
        slots += [TensorSlot(name, one, argument.mutated) for one in listed if one is not None]
    constants = dict(key.context).get("constants", ())
    slots += [TensorSlot(one["name"], one, mutated=False) for one in constants]
    return CallTemplate(schema, key, tuple(slots), len(constants), inputs)


def slot_dtype(slot: TensorSlot) -> torch.dtype:
    """Return the dtype of the tensor that a runner takes in ``slot``."""
    kind = slot.number_kind
    return NUMBER_DTYPES[kind] if kind else _dtype(slot.component["dtype"])


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _scalar(component: dict[str, Any]) -> Any:
    ((kind, value),) = component.items()
    if kind == "float":
        return float.fromhex(value)
    if kind == "complex":
        return complex(float.fromhex(value[0]), float.fromhex(value[1]))
    return value


_DECODERS: dict[Kind, Callable[[Any], Any]] = {
    Kind.SCALAR: _scalar,
    Kind.SCALARS: lambda values: [_scalar(value) for value in values],
    Kind.INT: int,
    Kind.INTS: list,
    Kind.FLOAT: float.fromhex,
    Kind.FLOATS: lambda values: [float.fromhex(value) for value in values],
    Kind.BOOL: bool,
    Kind.BOOLS: list,
    Kind.STR: str,
    Kind.DTYPE: _dtype,
    Kind.LAYOUT: lambda name: getattr(torch, name),
    Kind.DEVICE: torch.device,
    Kind.MEMORY_FORMAT: lambda name: getattr(torch, name),
}


def argument_value(kind: Kind, component: Component) -> Any:
    """Return the value that ``kernel_key.argument_component`` spelled, for a kind without tensors.

    A component of another form raises whatever its conversion raises.
    """
    return None if component is None else _DECODERS[kind](component)


# Where one result of an op comes from, as ``_functions.tracing.trace_outputs`` says it.
Output = Mapping[str, Any]


def fresh_results(outputs: Sequence[Output], result: Any, returns: int) -> list[Tensor]:
    """Return the tensors of an original's ``result`` that a library returns, in its order.

    Results that are arguments of the call, or None, are left out.
    """
    results = [result] if returns == 1 else list(result or ())
    fresh: list[Tensor] = []
    for output, value in zip(outputs, results, strict=True):
        if "output" in output:
            fresh.append(value)
        elif "outputs" in output:
            fresh += value
    return fresh
