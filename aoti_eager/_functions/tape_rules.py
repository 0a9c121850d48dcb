"""Which tapes no library may serve, and why: by the ops and their arguments alone, without a trace.

``tape_memory`` says which tensors share memory. What depends on dtypes and sizes of results is
found in the worker's trace (``_compile_worker.graph_checks``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from .._base.digest import Component
from .._keys.declines import (
    CHANGES_METADATA,
    DATA_DEPENDENT_ERRORS,
    UNINITIALISED,
    WRITES_STATISTICS,
)
from .._keys.index_ops import INDEX_OPS, TAPE_INDEX_OPS
from .._keys.schema import Kind
from .tape import Tape
from .tape_call import TapeCall, overload_of, schema_of
from .tape_memory import TapeMemory, base_name, call_arguments, draws, is_view

# The worker imports torch and nothing else.
_NAMESPACES = ("aten", "prims")
_SPARSE_OR_QUANTIZED = re.compile(r"sparse|quantize|mkldnn|nested|_coo|_csr|to_dense")

Refusal = tuple[str, str]


def refusal(tape: Tape) -> Refusal | None:
    """Return the decline reason and a message that names the op; ``None`` for a tape to compile."""
    memory = _Memory(tape)
    for number, call in enumerate(tape.calls):
        found = _call_refusal(call)
        if found is None:
            found = memory.add(number, call)
        if found is not None:
            reason, what = found
            return reason, f"call {number} of the region, {call.op}, {what}"
    return memory.results_refusal()


def _call_refusal(call: TapeCall) -> Refusal | None:
    namespace, _, rest = call.op.partition("::")
    name = rest.partition(".")[0]
    tags = overload_of(call.op).tags
    if namespace not in _NAMESPACES:
        return "op_not_in_worker", "is defined by code that the compile worker does not have"
    if draws(call):
        return "random", "draws random numbers"
    if torch.Tag.inplace_view in tags or name in CHANGES_METADATA:
        return "changes_metadata", "changes the sizes, strides or storage of a tensor"
    # The sizes of ``index`` depend on data for a mask alone; the trace finds masks.
    dynamic = torch.Tag.dynamic_output_shape in tags and name not in INDEX_OPS
    if torch.Tag.data_dependent_output in tags or dynamic:
        return "data_dependent_output", "gives sizes or a number that depend on the data"
    if name in DATA_DEPENDENT_ERRORS and name not in INDEX_OPS | TAPE_INDEX_OPS:
        return "error_depends_on_data", "raises depending on data"
    if "as_strided" in name:
        # Of a result, too: generated code may lay out a result in another way than eager.
        return "reads_storage_offset", "reads a storage offset"
    if _writes_statistics(name, call_arguments(call)):
        return "undeclared_write", "updates running statistics, which its schema does not declare"
    if _SPARSE_OR_QUANTIZED.search(name):
        return "unsupported_tensor", "is about tensors that are sparse, quantized or nested"
    if any(one.kind not in (Kind.TENSOR, Kind.TENSORS) for one in schema_of(call.op).returns):
        return "non_tensor_result", "returns something else than tensors"
    return None


def _writes_statistics(name: str, given: Mapping[str, Any]) -> bool:
    if not any(part in name for part in WRITES_STATISTICS):
        return False
    trains = any(given.get(one) is True for one in ("training", "train", "use_input_stats"))
    return trains and any(given.get(one) is not None for one in ("running_mean", "running_var"))


class _Memory:
    """Follows what the calls of a tape do to the memory of its inputs and results."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._memory = TapeMemory()
        self._unwritten: dict[str, str] = {}

    def add(self, number: int, call: TapeCall) -> Refusal | None:
        """Take in the next call; return why it must not be there."""
        written = {one.name for one in schema_of(call.op).arguments if one.mutated}
        for argument, source in call.sources():
            memory = self._memory.of(source)
            if argument in written:
                if any(one.startswith("input") for one in memory):
                    return "mutates_constant", f"writes to {_named(source)}"
                for one in memory:
                    self._unwritten.pop(one, None)
            elif not is_view(call):
                for one in memory & self._unwritten.keys():
                    return (
                        "uninitialised",
                        f"reads memory that {self._unwritten[one]} left",
                    )
        for fresh in self._memory.add(number, call):
            if re.match(UNINITIALISED, base_name(call.op)) and not _is_empty(call):
                self._unwritten[fresh] = call.op
        return None

    def results_refusal(self) -> Refusal | None:
        """Return why the tape's results cannot be those of a library."""
        taken: dict[str, int] = {}
        for place, source in enumerate(self._tape.outputs):
            if "input" in source:
                return "result_shares_storage", f"result {place} of the region is an argument"
            for one in self._memory.of(source):
                if one.startswith("input"):
                    return (
                        "result_shares_storage",
                        f"result {place} of the region shares memory with {one}",
                    )
                if one in taken:
                    return (
                        "result_shares_storage",
                        f"results {taken[one]} and {place} of the region share memory",
                    )
                if one in self._unwritten:
                    return (
                        "uninitialised",
                        f"result {place} of the region is what {self._unwritten[one]} left",
                    )
                taken[one] = place
        return None


def _is_empty(call: TapeCall) -> bool:
    """Return whether an op that leaves memory as it is makes a tensor without elements."""
    sizes = dict(call.arguments).get("size")
    return isinstance(sizes, list) and math.prod(sizes) == 0


def _named(source: Component) -> str:
    return f"input {source['input']}" if "input" in source else "a view of an input"
