"""The process in which units are run; ``processes.py`` starts it.

It reads a request a line from standard input, and answers one JSON document a line: where it is,
before every call, so that a crash or a hang is known to be of that call, and at last the answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

import numpy
import torch

import aoti_eager
from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._registration import registry
from aoti_eager._store.environment import CODE_VERSION

from .calls import Call, calls_of
from .outcome import Outcome, differences, outcome
from .records import DTYPES
from .samples import Arguments

# The results of these are uninitialised memory: everything but their values is compared.
UNINITIALISED = frozenset(
    {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
)
# Lines that tell how one call differs.
MOST_LINES = 3
_COUNTS = ("hits", "misses", "declines", "compiles", "failures")


def main() -> None:
    """Answer until standard input ends; ``argv`` is the phase, the cache directory and ``native``.

    With ``entries`` for a phase, print every entry with its dtypes, and the versions.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What an op prints must not be taken for an answer.
    entries = _entries()
    phase, *rest = sys.argv[1:]
    if phase == "entries":
        _say(answers, {"entries": _dtypes(entries), "versions": versions()})
        return
    imported = "torch._inductor" in sys.modules  # by op_db itself, in some versions of torch
    torch.set_warn_always(True)
    mode = "sync" if phase == "cold" else "cache_only"
    cache_dir, native = Path(rest[0]), rest[1]
    with aoti_eager.config.scope(
        mode=mode, gate=False, cache_dir=cache_dir, workers=1, native=native
    ):
        for line in sys.stdin:
            answer = UnitRun(entries, json.loads(line), answers).answer()
            if not imported and "torch._inductor" in sys.modules:
                answer["problems"].append("torch._inductor was imported")
            _say(answers, {"answer": answer})


def _say(answers: TextIO, document: dict[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


def _entries() -> dict[str, Any]:
    # Here: the import changes global flags of torch, and pytest imports this module too.
    from torch.testing._internal import common_methods_invocations as databases

    names = ("op_db", *sorted(n for n in dir(databases) if n.startswith("foreach_")))
    return {
        entry.full_name: entry
        for name in names
        if name.endswith("op_db")
        for entry in getattr(databases, name)
    }


def _dtypes(entries: dict[str, Any]) -> dict[str, list[str]]:
    supported = {name: entry.supported_dtypes("cpu") for name, entry in entries.items()}
    return {
        name: [dtype for dtype in DTYPES if getattr(torch, dtype) in supported[name]]
        for name in sorted(entries)
    }


def versions() -> dict[str, Any]:
    """Return what a table must say beside its results."""
    return {
        "code": CODE_VERSION,
        "torch": str(torch.__version__),
        "torch_git": torch.version.git_version,
        "python": sys.version.partition(" ")[0],
        "target": cpu_target(cpu_features()).name,
        "threads": torch.get_num_threads(),
    }


class UnitRun:
    """One unit in one phase.

    Args:
        entries: Every entry by its full name.
        request: ``entry``, ``dtype``, ``part``; ``samples``, how many; ``budget_s``, after which no
            further call is made; ``limit``, the number of calls, or null; ``skip``, labels of calls
            that are left out, because they ended a process.
        answers: Where to say which call is made.
    """

    def __init__(self, entries: dict[str, Any], request: dict[str, Any], answers: TextIO) -> None:
        self._entry = entries[request["entry"]]
        self._request = request
        self._answers = answers
        self._left_out: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._problems: list[str] = []

    def answer(self) -> dict[str, Any]:
        """Return the fields of ``records.Run``."""
        deadline = time.monotonic() + self._request["budget_s"]
        calls = self._calls()
        mine, theirs = [c.copied() for c in calls], [c.copied() for c in calls]
        overloads, expected = self._originals(calls, theirs)
        got: list[tuple[Outcome, int]] = []
        with aoti_eager.register(overloads):
            for call, arguments in zip(calls, mine, strict=True):
                if time.monotonic() > deadline:
                    break
                self._say("registered", call)
                before = _hits()
                got.append((outcome(call.run, arguments), _hits() - before))
            state = _state()
        if len(got) < len(calls):
            self._left_out["calls beyond the time"] += len(calls) - len(got)
        self._say("comparison", None)
        for call, want, (have, hits) in zip(calls, expected, got, strict=False):
            self._compare(call, want, have, hits > 0)
        return {
            "registered": [str(op) for op in overloads],
            "problems": self._problems,
            "notes": dict(self._notes),
            "left_out": dict(self._left_out),
            "calls": {
                "compared": len(got),
                "hit": sum(hits > 0 for _, hits in got),
                "raised": sum(want.exception is not None for want in expected),
            },
            **state,
        }

    def _say(self, stage: str, call: Call | None) -> None:
        _say(self._answers, {"at": [stage, "" if call is None else call.label]})

    def _calls(self) -> list[Call]:
        request = self._request
        torch.manual_seed(0)
        random.seed(0)
        numpy.random.seed(0)
        self._say("samples", None)
        dtype = getattr(torch, request["dtype"])
        every = calls_of(self._entry, dtype, request["part"], request["samples"], self._left_out)
        skip = set(request["skip"])
        calls = [call for call in every if call.label not in skip]
        return calls[: request["limit"]]

    def _originals(
        self, calls: list[Call], arguments: list[Arguments]
    ) -> tuple[list[Any], list[Outcome]]:
        """Return every overload that ``register`` takes and the calls reach, and their outcomes.

        The profiler sees what a dispatch mode sees and, beyond that, the calls that kernels make.
        """
        config = torch._C._profiler._ExperimentalConfig(capture_overload_names=True)
        expected = []
        with torch.autograd.profiler.profile(experimental_config=config) as profile:
            for call, theirs in zip(calls, arguments, strict=True):
                self._say("original", call)
                expected.append(outcome(call.run, theirs))
        found: dict[Any, None] = {}
        for event in profile.kineto_results.events():
            namespace, _, name = event.name().partition("::")
            packet = getattr(torch.ops.aten, name, None) if namespace == "aten" else None
            overload = getattr(packet, event.overload_name() or "default", None)
            if overload is not None and overload not in found and _is_taken(overload):
                found[overload] = None
        return list(found), expected

    def _compare(self, call: Call, want: Outcome, have: Outcome, hit: bool) -> None:
        def again() -> Outcome:
            return outcome(call.run, call.copied())

        def reference() -> Outcome | None:
            wide = outcome(call.run, call.copied().map(_widened))
            return wide if wide.exception is None else None

        compare_values = self._entry.name not in UNINITIALISED
        found = differences(want, have, compare_values=compare_values, hit=hit, reference=reference)
        if found.problems and differences(want, again(), compare_values=compare_values).problems:
            self._notes["the original differs from itself"] += 1
            return
        self._notes.update(found.notes)
        # A list of tensors has as many lines as tensors; the first ones tell what it is.
        more = len(found.problems) - MOST_LINES
        lines = found.problems[:MOST_LINES] + ([f"and {more} more lines"] if more > 0 else [])
        self._problems += [f"{call.label}: {problem}" for problem in lines]


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


_taken: dict[Any, bool] = {}


def _is_taken(overload: Any) -> bool:
    """Return whether ``register`` takes the overload.

    It refuses composite ones, and those without a CPU kernel, as documented.
    """
    if overload not in _taken:
        try:
            aoti_eager.register(overload).unregister()
        except aoti_eager.errors.RegistrationError:
            _taken[overload] = False
        else:
            _taken[overload] = True
    return _taken[overload]


def _hits() -> int:
    return sum(cache.counters.snapshot().hits for cache in registry.caches())


def _state() -> dict[str, Any]:
    served, declined, counts = [], {}, dict.fromkeys(_COUNTS, 0)
    for cache in registry.caches():
        snapshot = cache.counters.snapshot()
        for name in _COUNTS:
            counts[name] += getattr(snapshot, name)
        op = cache.schema.op
        if cache.always_declined and snapshot.declines:
            declined[op] = cache.always_declined
        served += [f"{op} {_digest(key)}" for key in cache.table.kernels]
        declined |= {f"{op} {_digest(key)}": d.reason for key, d in cache.table.declines.items()}
    return {"served": served, "declined": declined, "counts": counts}


def _digest(key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:12]


if __name__ == "__main__":
    main()
