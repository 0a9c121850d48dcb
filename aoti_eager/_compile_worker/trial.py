"""The first run of every new library, in a process that may die of it.

A child of a fork server (``fork_server``) makes up arguments from the key's metadata, runs the
library, and compares with the original kernel. Generated code can write past its buffers or abort,
and then the child ends. The compile worker starts the server with glibc's checking allocator where
glibc has one, so that a write past a buffer ends the child at once and not another process later.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._base.determinism import is_deterministic
from .._base.sealed_library import sealed_file
from .._base.torch_compat.settings import set_deterministic_algorithms
from .._functions.call_target import call_target
from .._functions.tape import Tape
from .._keys.call_template import CallTemplate, call_template
from .._keys.index_ops import reads_by_index
from .._keys.kernel_key import KernelKey
from .._runner.kernel_runner import LibraryRunner
from . import fork_server
from .input_ranges import InputRanges, holds_integers, integer_ranges, matrix_scales
from .made_up_data import made_up_input
from .made_up_values import distinct_numbers, numbers_within
from .original_runs import Original
from .trial_runs import LibraryRaised, Trial


def serve() -> None:
    """Try libraries until standard input ends; see ``fork_server``."""
    fork_server.serve(_try_library)


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
        # Not remembered: the cause may be a mount option or a missing system library.
        return {"reason": "library_unloadable", "message": str(error), "remember": False}
    is_function = request.get("function") is not None
    tape = getattr(op, "tape", None)
    if is_function and not template.constants:
        op = op.with_constants_for_good([])  # Its source is compiled once.
    call = Original(template, op, outputs, is_function=is_function, is_tape=tape is not None)
    with torch.no_grad():
        own = _own_numbers(request, template, tape)
        trial = Trial(call, runner.run, own, _ranges(tape, call, own))
        try:
            problem = trial.problem()
        except LibraryRaised as raised:
            cause = raised.__cause__
            assert isinstance(cause, Exception)
            return {"reason": "raised", "message": str(cause), "remember": is_deterministic(cause)}
    if problem is not None and request["check"]:
        return {"reason": "mismatch", "message": problem, "remember": True}
    # A verdict outlives the setting ``check``: later checks must not count this as a comparison.
    answer = {"compared": 0 if problem is not None else trial.compared}
    return answer | ({"lost_signs": trial.lost_signs} if trial.lost_signs else {})


def _ranges(tape: Tape | None, call: Original, own: Sequence[float]) -> InputRanges | None:
    """Return the values that the inputs may have; ``None`` if they may have any."""
    slots = call.template.slots
    is_index_op = not call.is_function and reads_by_index(call.template.key.op, mutates=False)
    if tape is None and not is_index_op:
        return None

    def accepts(inputs: Sequence[Tensor]) -> bool:
        return call.results(inputs) is not None

    limits: dict[int, int] = {}
    further: dict[int, tuple[int, ...]] = {}
    if any(holds_integers(slot) for slot in slots):
        ordinary = [made_up_input(slot, "normal", place) for place, slot in enumerate(slots)]
        limits, further = integer_ranges(slots, ordinary, accepts, own)
    if tape is None:
        return InputRanges(most=limits, further=further)
    return InputRanges(matrix_scales(tape, slots), limits, further, is_region=True)


def _own_numbers(
    request: Mapping[str, Any], template: CallTemplate, tape: Tape | None
) -> tuple[float, ...]:
    """Return the numbers of the call and of the function that it calls."""
    function = request.get("function")
    args, kwargs = template.arguments([None] * len(template.slots))
    found = [*numbers_within([args, list(kwargs.values())])]
    if tape is not None:
        return distinct_numbers([*found, *numbers_within(list(tape.numbers()))])
    found += numbers_within(function)
    for source in _sources(function):
        literals = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)]
        found += numbers_within(literals)
    return distinct_numbers(found)


def _sources(document: Any) -> Iterator[str]:
    """Give the sources in a function's document."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            if name == "source":
                yield value
            else:
                yield from _sources(value)
    elif isinstance(document, list):
        for value in document:
            yield from _sources(value)
