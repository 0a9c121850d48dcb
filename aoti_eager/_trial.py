"""The first run of every new library, in a process that may die of it.

A child of a fork server (``_fork_server.py``) makes up arguments from the key's metadata, runs the
library, and compares with the original kernel.
Generated code can write past its buffers or abort, and then it is the child that ends. The compile
worker starts the server with glibc's checking allocator where there is one, so that a write past a
buffer ends the child at once and not some later, innocent process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _fork_server
from ._base.sealed_library import sealed_file
from ._call_target import call_target
from ._check import copy_tensor, differences, float64_reference, fresh_results
from ._compat import set_deterministic_algorithms
from ._determinism import is_deterministic
from ._key import KernelKey
from ._library_runner import LibraryRunner
from ._template import CallTemplate, TensorSlot, call_template, slot_dtype


def serve() -> None:
    """Try libraries until standard input ends; see ``_fork_server``."""
    _fork_server.serve(_try_library)


def _try_library(request: Mapping[str, Any]) -> dict[str, Any]:
    key = KernelKey.from_json(request["key"])
    op, schema = call_target(key.op, request.get("function"), request.get("schema", ""))
    template = call_template(schema, key, request.get("numbers") or ())
    outputs = request["outputs"]
    context = dict(key.context)
    torch.set_default_dtype(getattr(torch, context["default_dtype"]))
    set_deterministic_algorithms(context["deterministic"])
    if isinstance(context["threads"], int):
        torch.set_num_threads(context["threads"])
    try:
        with sealed_file(Path(request["library"]), request["sha256"]) as library:
            runner = LibraryRunner(library, calls_aten=False)
    except Exception as error:  # noqa: BLE001 - the answer is the reason
        # Not remembered: a mount option, a system library that is not there yet.
        return {"reason": "library_unloadable", "message": str(error), "remember": False}
    compared, differs = 0, False
    for data in ("normal", "positive", "special"):
        torch.manual_seed(0)
        inputs = [made_up_input(slot, data, i) for i, slot in enumerate(template.slots)]
        mine = [copy_tensor(tensor) for tensor in inputs]
        try:
            with torch.no_grad():
                got = runner.run(mine)
        except Exception as error:  # noqa: BLE001 - the answer is the reason
            remember = is_deterministic(error)
            return {"reason": "raised", "message": str(error), "remember": remember}
        found = _compared(template, op, outputs, inputs, mine, got, data)
        compared += found is not None
        differs = differs or bool(found)
        if found and request["check"]:
            message = f"on {data} data: {'; '.join(found)}"
            return {"reason": "mismatch", "message": message, "remember": True}
    # A verdict outlives the setting: who checks again must not take this for a comparison.
    return {"compared": 0 if differs else compared}


def _compared(
    template: CallTemplate,
    op: Any,
    outputs: list[dict[str, Any]],
    inputs: list[Tensor],
    mine: list[Tensor],
    got: list[Tensor],
    data: str,
) -> list[str] | None:
    """Return what differs between the library's run and the original's, on made-up ``data``.

    ``None`` where such data is invalid for the op, so that there is nothing to compare.

    The caller's own arguments are one sample, and what differs elsewhere would go unseen for good.
    "normal" data finds wrong code; it is larger than what most scripts compute with, and sums in
    another order differ by more than assert_close allows, so they may be further from float64 than
    the original is. "positive" finds sums that lose digits, which normal data cancels. "special"
    finds functions that differ at NaN, at infinity and where they overflow; a reduction gives NaN
    there and passes.
    """
    theirs = [copy_tensor(tensor) for tensor in inputs]
    try:
        with torch.no_grad():
            result = template.call(op, theirs, as_number=lambda number: number.item())
    except Exception:  # noqa: BLE001 - the original refuses the data
        return None
    expected = fresh_results(outputs, result, len(template.schema.returns))

    def reference() -> Any:
        return float64_reference(template, [copy_tensor(t) for t in inputs], op, outputs)

    # Among special values the largest error says nothing about the small ones.
    return differences(
        template,
        expected,
        got,
        theirs,
        mine,
        None if data == "special" else reference,
        allowed_error=8.0 if data == "normal" else 1.0,
    )


_NAN, _INF = float("nan"), float("inf")
# 89.2: exp overflows in float32, and cosh does not yet. Nothing larger: in a row without a NaN,
# what a sum of terms that cancel comes to depends on their order.
_SPECIAL = (0.0, _NAN, 1e-8, -1e-8, _INF, -_INF, 20.0, -20.0, 89.2, -89.2, 0.5, -0.0, 3.0)


def made_up_input(slot: TensorSlot, data: str, seed: int) -> Tensor:
    """Return a tensor with the slot's sizes, strides and dtype.

    Args:
        slot: What the tensor must look like.
        data: ``"normal"``, ``"positive"`` (around 0.1) or ``"special"`` values for floating-point
            slots. Others get zeros and ones, which is what an integer most often may be: an index,
            a flag.
        seed: Slots with different seeds get their special values in different order.
    """
    dtype = slot_dtype(slot)
    if "value" in slot.component:
        return torch.tensor(float.fromhex(slot.component["value"]), dtype=dtype)
    if slot.number_kind:
        value: Any = {"bool": True, "int": 2, "float": 1.5, "complex": 1.5 + 0.5j}[slot.number_kind]
        return torch.tensor(value, dtype=dtype)
    sizes, strides = slot.component["sizes"], slot.component["strides"]
    if 0 in sizes:
        return torch.empty_strided(sizes, strides, dtype=dtype)
    extent = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1
    if not (dtype.is_floating_point or dtype.is_complex):
        flat = torch.randint(0, 2, (extent,)).to(dtype)
    elif data == "special":
        # Steps that have no factor in common with the length pair every value with many others.
        step = (1, 3, 5, 7, 9, 11)[seed % 6]
        order = (torch.arange(extent) * step + seed) % len(_SPECIAL)
        flat = torch.tensor(_SPECIAL, dtype=torch.float64)[order].to(dtype)
    elif data == "positive":
        flat = (0.1 + 0.01 * torch.rand(extent)).to(dtype)
    else:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        flat = torch.randn(extent, dtype=wide).to(dtype)
    return flat.as_strided(sizes, strides)
