"""Traces a call of an op from metadata alone, and makes the call a module to be compiled.

The compile worker uses this, and the user's process does for devices with a compile backend of
their own. Nothing here imports Inductor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .._base.determinism import is_deterministic
from .._base.torch_compat.dispatcher import OpOverload
from .._base.torch_compat.tracing import data_dependent_errors
from .._keys.call_template import CallTemplate, fresh_results, slot_dtype
from .._keys.schema import Kind
from .._keys.unsaid_writes import UnsaidWrites
from ..errors import CompileError


def fake_inputs(template: CallTemplate) -> list[Tensor]:
    """Return a tensor without data for each slot; call this inside of ``fake_mode``."""
    fakes = []
    for slot in template.slots:
        if slot.number_kind:
            fakes.append(torch.empty((), dtype=slot_dtype(slot)))
        else:
            fakes.append(
                torch.empty_strided(
                    slot.component["sizes"],
                    slot.component["strides"],
                    dtype=slot_dtype(slot),
                    device=slot.component["device"],
                )
            )
    return fakes


def trace_outputs(
    op: OpOverload, template: CallTemplate, inputs: list[Tensor]
) -> list[dict[str, Any]]:
    """Return where each result of the op will come from, found by running the op on fakes.

    Numbers in Tensor slots get a made-up value. In no op with such a slot does a result's metadata
    depend on the number; if it did, the check on live arguments would fail.

    Raises:
        CompileError: The op cannot be traced, or returns what no library can return.
    """
    before = [(t.shape, t.stride(), t.dtype) for t in inputs]
    writes = UnsaidWrites(template, inputs, of_trace=True)
    try:
        result = template.call(op, inputs, as_number=_made_up_number)
    except data_dependent_errors() as error:
        raise _refusal("data_dependent_output", str(error)) from error
    except Exception as error:
        raise does_not_trace(error) from error
    if before != [(t.shape, t.stride(), t.dtype) for t in inputs]:
        raise _refusal("changes_metadata", "the op changes the sizes or strides of an argument")
    problem = writes.problem()
    if problem is not None:
        raise _refusal("mutates_constant", f"its function {problem}")
    schema = template.schema
    results = [result] if len(schema.returns) == 1 else list(result or ())
    outputs: list[dict[str, Any]] = []
    taken = {storage_identity(t) for t in inputs}
    count = 0
    for returned, value in zip(schema.returns, results, strict=True):
        if returned.argument is not None:
            outputs.append({"argument": returned.argument})
            continue
        if value is None:
            outputs.append({"none": True})
            continue
        if returned.kind not in (Kind.TENSOR, Kind.TENSORS):
            raise _refusal("non_tensor_result", f"the op returns {returned.type_name}")
        tensors = [value] if returned.kind is Kind.TENSOR else list(value)
        for tensor in tensors:
            if tensor.layout is not torch.strided:
                raise _refusal("unsupported_tensor", f"a result is {tensor.layout}")
            if storage_identity(tensor) in taken:
                raise _refusal(
                    "result_shares_storage", "a result shares storage with an argument or a result"
                )
            taken.add(storage_identity(tensor))
        numbers = list(range(count, count + len(tensors)))
        count += len(tensors)
        outputs.append(
            {"output": numbers[0]} if returned.kind is Kind.TENSOR else {"outputs": numbers}
        )
    return outputs


def does_not_trace(error: Exception) -> CompileError:
    """Return the compile error for a call whose trace raised ``error``."""
    remember = is_deterministic(error)
    return CompileError("does_not_trace", error_text(error), remember=remember)


def _refusal(reason: str, message: str) -> CompileError:
    return CompileError(reason, message, remember=True)  # Only metadata decides, in every process.


def storage_identity(tensor: Tensor) -> int:
    """Return a number that is equal for two tensors exactly if they share their storage."""
    # Fake tensors have no address, so the storage's identity is used.
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)  # type: ignore[no-untyped-call]


def _made_up_number(value: Tensor) -> Any:
    return {torch.bool: True, torch.int64: 2, torch.float64: 1.5, torch.complex128: 1.5 + 0.5j}[
        value.dtype
    ]


def call_module(
    op: OpOverload, template: CallTemplate, outputs: list[dict[str, Any]]
) -> torch.nn.Module:
    """Return the call as a module: it takes the slots' tensors and returns the new results."""
    returns = len(template.schema.returns)

    class Call(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            result = template.call(op, tensors, as_number=lambda number: number.item())
            return tuple(fresh_results(outputs, result, returns))

    return Call()


def error_text(error: BaseException) -> str:
    """Return an exception's type and message as text."""
    return f"{type(error).__name__}: {error}"
