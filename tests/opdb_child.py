"""The process in which entries of ``op_db`` are run; see ``tests/opdb.py``, which starts it.

It reads one entry's name a line from standard input and answers one JSON document a line.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import aoti_eager
from aoti_eager import _library

from .opdb import UNINITIALISED

SAMPLES = 2
Arguments = tuple[Any, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that a caller can see of one call."""

    values: list[Any]
    structure: Any
    inputs: list[Any]
    sharing: frozenset[tuple[str, str]]
    random_state: Tensor
    exception: tuple[str, str] | None


def main() -> None:
    """Answer until standard input ends; ``argv`` is the phase and the cache directory.

    With ``names`` for a phase, print the full names of the entries that take float32, sorted.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What an op prints must not be taken for an answer.
    # Here: the import changes global flags of torch, and pytest imports this module too.
    from torch.testing._internal.common_methods_invocations import op_db

    entries = {op.full_name: op for op in op_db}
    phase, *rest = sys.argv[1:]
    if phase == "names":
        names = sorted(
            n for n, op in entries.items() if torch.float32 in op.supported_dtypes("cpu")
        )
        answers.write(json.dumps(names))
        answers.flush()
        return
    imported = "torch._inductor" in sys.modules  # by op_db itself, in some versions of torch
    mode = "sync" if phase == "cold" else "cache_only"
    with aoti_eager.config.scope(mode=mode, gate=False, cache_dir=Path(*rest), workers=1):
        for line in sys.stdin:
            answer = run_entry(entries[line.strip()])
            if not imported and "torch._inductor" in sys.modules:
                answer["problems"].append("torch._inductor was imported")
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def run_entry(entry: Any) -> dict[str, Any]:
    """Return the fields of ``opdb.Run`` for the entry's samples, under the mode that is set.

    Each sample is called three times: a miss, a hit, and a call with the same metadata on other
    data (each storage rolled by one element), which may be invalid for the op: then it is the
    exception that must be the original's.
    """
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    samples = list(
        itertools.islice(entry.sample_inputs("cpu", torch.float32, requires_grad=False), SAMPLES)
    )
    calls = [
        (f"sample {i} {what}", copies(sample, rolled), copies(sample, rolled))
        for i, sample in enumerate(samples)
        for what, rolled in (("miss", False), ("hit", False), ("other data", True))
    ]
    expected = [outcome(entry, theirs) for _, theirs, _ in calls]
    overloads = reached(entry, [copies(sample, rolled=False) for sample in samples])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", aoti_eager.errors.AotiEagerWarning)
        with aoti_eager.register(overloads):
            got = [outcome(entry, mine) for _, _, mine in calls]
            answer = _state()
    problems = []
    for (where, _, _), want, have in zip(calls, expected, got, strict=True):
        compare_values = entry.name not in UNINITIALISED
        problems += [f"{where}: {p}" for p in differences(want, have, compare_values)]
    problems += [
        f"warning: {w.message}"
        for w in caught
        if issubclass(w.category, aoti_eager.errors.AotiEagerWarning)
    ]
    return {"registered": [str(op) for op in overloads], "problems": problems, **answer}


def _state() -> dict[str, Any]:
    served, declined, calls = [], {}, dict.fromkeys(_COUNTS, 0)
    for cache in _library.caches():
        counts = cache.counters.snapshot()
        for name in _COUNTS:
            calls[name] += getattr(counts, name)
        op = cache.schema.op
        if cache.always_declined and counts.declines:
            declined[op] = cache.always_declined
        served += [f"{op} {_digest(key)}" for key in cache.table.kernels]
        declined |= {f"{op} {_digest(key)}": d.reason for key, d in cache.table.declines.items()}
    return {"served": served, "declined": declined, "calls": calls}


_COUNTS = ("hits", "misses", "declines", "compiles", "failures")


def _digest(key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:12]


# --- calls ---------------------------------------------------------------------------------------


def reached(entry: Any, calls: Iterable[Arguments]) -> list[Any]:
    """Return every aten overload that ``register`` takes and that calls of the entry reach.

    The profiler sees what a dispatch mode sees and, beyond that, the calls that kernels make.
    """
    config = torch._C._profiler._ExperimentalConfig(capture_overload_names=True)
    with torch.autograd.profiler.profile(experimental_config=config) as profile:
        for arguments in calls:
            outcome(entry, arguments)
    found = {}
    for event in profile.kineto_results.events():
        namespace, _, name = event.name().partition("::")
        packet = getattr(torch.ops.aten, name, None) if namespace == "aten" else None
        overload = getattr(packet, event.overload_name() or "default", None)
        if overload is None or overload in found:
            continue
        try:
            aoti_eager.register(overload).unregister()
        except aoti_eager.errors.RegistrationError:
            continue  # Composite-implicit, or without a CPU kernel: refused, as documented.
        found[overload] = None
    return list(found)


def outcome(entry: Any, arguments: Arguments) -> Outcome:
    """Return what a call of the entry with these arguments does."""
    input_, args, kwargs = arguments
    inputs = [t for t in pytree.tree_leaves(arguments) if isinstance(t, Tensor)]
    torch.manual_seed(1)
    exception = result = None
    try:
        result = entry(input_, *args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever the original raises is what is wanted
        exception = (f"{type(error).__module__}.{type(error).__qualname__}", str(error))
    values, structure = pytree.tree_flatten(result)
    return Outcome(
        values, structure, inputs, _sharing(values, inputs), torch.get_rng_state(), exception
    )


def copies(sample: Any, rolled: bool) -> Arguments:
    """Return the sample's arguments with copies of its tensors and of the storages under them.

    Tensors on one storage stay on one. ``rolled`` moves a storage's elements on by one.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def copied(tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            return tensor.clone()
        old = tensor.untyped_storage()
        new = storages.get(old._cdata)
        if new is None:
            new = storages[old._cdata] = old.clone()
            if rolled:
                flat = torch.empty(0, dtype=tensor.dtype).set_(new)
                flat.copy_(flat.roll(1))
        copy = torch.empty(0, dtype=tensor.dtype).set_(
            new, tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        copy = copy.conj() if tensor.is_conj() else copy
        return torch._neg_view(copy) if tensor.is_neg() else copy

    arguments: Arguments = pytree.tree_map_only(
        Tensor, copied, (sample.input, sample.args, dict(sample.kwargs))
    )
    return arguments


def _sharing(values: list[Any], inputs: list[Tensor]) -> frozenset[tuple[str, str]]:
    pairs = set()
    named: list[tuple[str, Any]] = [(f"input {i}", t) for i, t in enumerate(inputs)]
    for index, value in enumerate(values):
        for name, other in named:
            if value is other and isinstance(value, Tensor):
                pairs.add((f"result {index}", f"is {name}"))
            elif _storage(value) is not None and _storage(value) == _storage(other):
                pairs.add((f"result {index}", f"shares storage with {name}"))
        named.append((f"result {index}", value))
    return frozenset(pairs)


def _storage(value: Any) -> int | None:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    return value.untyped_storage().data_ptr() or None


# --- comparison ----------------------------------------------------------------------------------


def differences(want: Outcome, have: Outcome, compare_values: bool) -> list[str]:
    """Return one line for each thing in which two outcomes differ."""
    found = []
    if want.exception != have.exception:
        return [f"exception: {have.exception} instead of {want.exception}"]
    if want.structure != have.structure:
        return [f"structure: {have.structure} instead of {want.structure}"]
    if want.sharing != have.sharing:
        found.append(f"aliasing: {sorted(have.sharing)} instead of {sorted(want.sharing)}")
    if not torch.equal(want.random_state, have.random_state):
        found.append("the random stream is elsewhere")
    for what, mine, theirs in (
        ("result", have.values, want.values),
        ("input", have.inputs, want.inputs),
    ):
        for i, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            problem = _difference(other, one, compare_values or what == "input")
            if problem is not None:
                found.append(f"{what} {i}: {problem}")
    return found


def _difference(want: Any, have: Any, compare_values: bool) -> str | None:
    if type(want) is not type(have):
        return f"{type(have)} instead of {type(want)}"
    if isinstance(want, Tensor):
        mine, theirs = _metadata(have), _metadata(want)
        if mine != theirs:
            return f"{mine} instead of {theirs}"
    elif not isinstance(want, int | float | complex):
        return None if want == have else f"{have!r} instead of {want!r}"
    if not compare_values:
        return None
    try:
        torch.testing.assert_close(have, want, equal_nan=True)
    except AssertionError as error:
        return "values: " + " ".join(str(error).split())
    return None


def _metadata(tensor: Tensor) -> tuple[Any, ...]:
    strided = tensor.layout is torch.strided
    return (
        tensor.dtype,
        tensor.device,
        tensor.layout,
        tuple(tensor.shape),
        (tensor.stride(), tensor.storage_offset()) if strided else None,
        tensor.is_conj(),
        tensor.is_neg(),
        tensor.requires_grad,
        tensor._version,
    )


if __name__ == "__main__":
    main()
