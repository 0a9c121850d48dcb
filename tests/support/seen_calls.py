"""What a TorchDispatchMode sees, and what a recording has, spelled alike; a recording's replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aoti_eager._base.op_names import find_overload
from aoti_eager._base.torch_compat.tensors import wrapped_number
from aoti_eager._keys.schema import op_schema
from aoti_eager._native.recorder import RecordedCall, RecordedTensor, Recording


class SeenCalls(TorchDispatchMode):
    """Collects calls as ``spelled_calls`` spells them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.is_inference_mode_enabled() and _is_composite(op):
            with self:
                return op.decompose(*args, **(kwargs or {}))
        arguments = [_spelled(one) for one in op_schema(op).bind(args, kwargs or {})]
        result = op(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple) else (result,)
        given = [_spelled(one) for one in results[: len(op_schema(op).returns)]]
        self.calls.append((op.name(), arguments, given))
        return result


def _is_composite(op: Any) -> bool:
    """Return whether an op consists of others: outside of inference mode, a mode sees these."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    pooled = op.name() == "aten::max_pool1d"  # See csrc/recorder.h.
    return has(op.name(), "CompositeImplicitAutograd") and not has(op.name(), "CPU") and not pooled


def seen_by_mode(function: Callable[[], object]) -> list[Any]:
    """Return the calls that a mode sees, without what torch does for the mode's sake."""
    with SeenCalls() as seen:
        function()
    # Autograd saves results by a function that is no op; a mode is called for it all the same.
    return [call for call in seen.calls if call[0] != "aten::detach"]


def spelled_calls(recording: Recording) -> list[Any]:
    """Return a recording's calls with the metadata of tensors in place of them."""
    return [
        (
            qualified(call),
            [_spelled(one) for one in call.arguments],
            [_spelled(one) for one in call.results],
        )
        for call in recording.calls
    ]


def ops(recording: Recording) -> list[str]:
    """Return the qualified names of a recording's calls."""
    return [qualified(call) for call in recording.calls]


def qualified(call: RecordedCall) -> str:
    return f"{call.op}.{call.overload}" if call.overload else call.op


def replay(recording: Recording, given: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Run a recording's calls again, and return the tensor of each address.

    Args:
        recording: The calls.
        given: The tensors that the calls took from outside of the recording.
    """
    by_address = {tensor._cdata: tensor for tensor in given}
    values: dict[int, torch.Tensor] = {}

    def value(spelled: Any) -> Any:
        if isinstance(spelled, list):
            return [value(one) for one in spelled]
        if not isinstance(spelled, RecordedTensor):
            return spelled
        if spelled.index not in values:
            values[spelled.index] = _from_outside(spelled, by_address)
        return values[spelled.index]

    for call in recording.calls:
        op = find_overload(qualified(call))
        names = [argument.name for argument in op_schema(op).arguments]
        positional = sum(not argument.kwarg_only for argument in op_schema(op).arguments)
        bound = [value(one) for one in call.arguments]
        result = op(
            *bound[:positional], **dict(zip(names[positional:], bound[positional:], strict=True))
        )
        results = result if isinstance(result, tuple) else (result,)
        for recorded, made in _pairs(call.results, list(results)):
            values[recorded.index] = made
    return {recording.tensors[index].impl: tensor for index, tensor in values.items()}


def _from_outside(tensor: RecordedTensor, given: dict[int, torch.Tensor]) -> torch.Tensor:
    if tensor.number is not None:
        return wrapped_number(tensor.number)
    if tensor.data is not None:
        assert tensor.sizes is not None
        return torch.tensor(tensor.data, dtype=tensor.dtype).reshape(tensor.sizes)
    return given[tensor.impl]


def _pairs(recorded: Any, made: Any) -> Iterator[tuple[RecordedTensor, torch.Tensor]]:
    if isinstance(recorded, RecordedTensor):
        yield recorded, made
    elif isinstance(recorded, list):
        for one, other in zip(recorded, made, strict=True):
            yield from _pairs(one, other)


def _spelled(value: Any) -> Any:
    if isinstance(value, RecordedTensor):
        if value.number is not None:
            return value.number
        return "tensor", value.dtype, value.sizes, value.strides, value.offset
    if isinstance(value, torch.Tensor):
        return "tensor", value.dtype, tuple(value.shape), value.stride(), value.storage_offset()
    if isinstance(value, (list, tuple)):
        return [_spelled(one) for one in value]
    return value
