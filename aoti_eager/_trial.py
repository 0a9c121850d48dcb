"""The first run of every new library, in a process that may die of it.

A server that has imported torch and run nothing forks a child for each library; the child makes up
arguments from the key's metadata, runs the library, and compares with the original kernel.
Generated code can write past its buffers or abort, and then it is the child that ends. The compile
worker starts the server with glibc's checking allocator where there is one, so that a write past a
buffer ends the child at once and not some later, innocent process.

Fork, not spawn: importing torch takes a second, and a process that has not yet run an op has no
threads that a fork could lose.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._check import copy_tensor, differences, float64_reference, fresh_results
from ._key import KernelKey
from ._ops import find_overload
from ._runner import LibraryRunner
from ._schema import op_schema
from ._template import CallTemplate, TensorSlot, call_template, slot_dtype

# Made-up data is larger than what most scripts compute with, so that sums in another order differ
# by more than assert_close allows. The trial is for wrong code; the strict comparison is the one
# with the caller's own arguments.
_ALLOWED_ERROR = 8.0


def serve() -> None:
    """Answer requests on standard input until it ends; one JSON document a line each way."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a library prints must not be taken for an answer.
    for line in sys.stdin:
        answers.write(json.dumps(_in_child(json.loads(line))) + "\n")
        answers.flush()


def _in_child(request: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            document = json.dumps(_try_library(request)).encode()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(document)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    answer = _read_until(read, time.monotonic() + request["timeout_s"])
    os.close(read)
    if answer is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answer is None:
        return {"reason": "crashed", "message": f"no end after {request['timeout_s']:g} s"}
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return {"reason": "crashed", "message": f"the process ended with {name}"}
    if not answer:
        return {"reason": "crashed", "message": f"the process ended with status {status}"}
    result: dict[str, Any] = json.loads(answer)
    return result


def _read_until(pipe: int, deadline: float) -> bytes | None:
    chunks: list[bytes] = []
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def _try_library(request: dict[str, Any]) -> dict[str, Any]:
    key = KernelKey.from_json(request["key"])
    op = find_overload(key.op)
    template = call_template(op_schema(op), key)
    outputs = request["outputs"]
    context = dict(key.context)
    torch.set_default_dtype(getattr(torch, context["default_dtype"]))
    torch.use_deterministic_algorithms(context["deterministic"], warn_only=True)
    if isinstance(context["threads"], int):
        torch.set_num_threads(context["threads"])
    try:
        runner = LibraryRunner(Path(request["library"]), calls_aten=False)
    except Exception as error:  # noqa: BLE001 - the answer is the reason
        return {"reason": "library_unloadable", "message": str(error)}
    torch.manual_seed(0)
    inputs = [made_up_input(slot) for slot in template.slots]
    mine = [copy_tensor(tensor) for tensor in inputs]
    try:
        with torch.no_grad():
            got = runner.run(mine)
    except Exception as error:  # noqa: BLE001 - the answer is the reason
        return {"reason": "raised", "message": str(error)}
    if not request["check"]:
        return {}
    return _compared(template, op, outputs, inputs, mine, got)


def _compared(
    template: CallTemplate,
    op: Any,
    outputs: list[dict[str, Any]],
    inputs: list[Tensor],
    mine: list[Tensor],
    got: list[Tensor],
) -> dict[str, Any]:
    theirs = [copy_tensor(tensor) for tensor in inputs]
    try:
        with torch.no_grad():
            result = template.call(op, theirs, as_number=lambda number: number.item())
    except Exception:  # noqa: BLE001 - made-up data may be invalid for the op: nothing to compare
        return {}
    expected = fresh_results(outputs, result, len(template.schema.returns))

    def reference() -> Any:
        return float64_reference(template, [copy_tensor(t) for t in inputs], op, outputs)

    found = differences(
        template, expected, got, theirs, mine, reference, allowed_error=_ALLOWED_ERROR
    )
    return {"reason": "mismatch", "message": "; ".join(found)} if found else {}


def made_up_input(slot: TensorSlot) -> Tensor:
    """Return a tensor with the slot's sizes, strides and dtype: normal values, or zeros and ones.

    Zeros and ones are what an integer most often may be: an index, a flag, a divisor's neighbour.
    """
    dtype = slot_dtype(slot)
    if slot.number_kind:
        value: Any = {"bool": True, "int": 2, "float": 1.5, "complex": 1.5 + 0.5j}[slot.number_kind]
        return torch.tensor(value, dtype=dtype)
    sizes, strides = slot.component["sizes"], slot.component["strides"]
    if 0 in sizes:
        return torch.empty_strided(sizes, strides, dtype=dtype)
    extent = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        flat = torch.randn(extent, dtype=wide).to(dtype)
    else:
        flat = torch.randint(0, 2, (extent,)).to(dtype)
    return flat.as_strided(sizes, strides)
