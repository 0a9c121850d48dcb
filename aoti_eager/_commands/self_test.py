"""The self-test's process: serves calls of several kinds, and compares them with eager's results.

``_compile_service/untested_torch.py`` starts it. Standard input has the names of the kinds as JSON,
all if empty; the last line of standard output is the answer. A crash is an answer, too.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._base.data_class import dataclass
from .._base.determinism import is_deterministic
from ..config import config

# A call's function; its op; whether a kernel must have served the call.
_Kind = tuple[Callable[[Tensor], Tensor], str, bool]


def _clamped(x: Tensor) -> Tensor:
    return x.clone().clamp_(-0.5, 0.5)


KINDS: dict[str, _Kind] = {
    "pointwise": (torch.nn.functional.silu, "aten::silu", True),
    "reduction": (lambda x: x.sum(1), "aten::sum.dim_IntList", True),
    "number": (lambda x: torch.add(x, x, alpha=3), "aten::add.Tensor", False),
    "in_place": (_clamped, "aten::clamp_", False),
    "softmax": (lambda x: x.softmax(1), "aten::_softmax", False),
}
# Reasons that are problems, whatever else serves. With any other reason, a kernel was not made, or
# lost, but nothing crashed or differed.
_HARMFUL = ("crashed", "mismatch", "raised", "library_unloadable", "run_failed")
# Those of them that another process may not meet: no memory, a file system without permission.
_PASSING = ("library_unloadable",)


@dataclass(frozen=True, slots=True)
class _Found:
    """What became of the calls of one kind.

    Attributes:
        problem: What is wrong; empty if nothing is.
        how: How the calls were served.
        is_lasting: Whether another process would find the same problem.
    """

    problem: str = ""
    how: str = ""
    is_lasting: bool = True


def serve_child() -> None:
    """Answer one request; the process's exit status is 0 if an answer was given."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What libraries print is no answer.
    kinds = json.loads(sys.stdin.read() or "[]") or [*KINDS, "dynamic", "region"]
    found: dict[str, _Found] = {}
    for name in kinds:
        try:
            found[name] = _tried(name)
        except Exception as error:  # noqa: BLE001 - of a torch that nobody has seen, any may come
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
            found[name] = _Found(problem, is_lasting=is_deterministic(error))
    problems = {name: one for name, one in found.items() if one.problem}
    answer = {
        "torch": str(torch.__version__),
        "problems": [f"{name}: {one.problem}" for name, one in problems.items()],
        "is_lasting": any(one.is_lasting for one in problems.values()),
        "served": ", ".join(f"{name} {one.how}" for name, one in found.items()),
        "path": "Python" if problems or "Python" in _paths or not _paths else "C++",
    }
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


# The hit paths that have served ops.
_paths: set[str] = set()


def _tried(name: str) -> _Found:
    config.mode, config.gate = "sync", False
    if name == "region":
        return _region()
    if name == "dynamic":
        with config.scope(dynamic=True):
            return _op(*KINDS["pointwise"][:2], [(24, 8), (40, 8)], must_serve=False)
    function, op, must_serve = KINDS[name]
    return _op(function, op, [(64, 64)], must_serve=must_serve)


def _op(
    function: Callable[[Tensor], Tensor],
    op: str,
    sizes: list[tuple[int, int]],
    *,
    must_serve: bool,
) -> _Found:
    # Not at the top, here and below: a name that this torch lacks is a problem to be told.
    from .._registration.registry import register, stats

    inputs = [torch.randn(size) for size in sizes for _ in range(3)]
    wanted = [function(x) for x in inputs]
    before = stats().get(op)
    with register(op) as registration:
        if op not in registration.ops:
            return _Found(f"{op} cannot be registered")
        _note_path(op)
        results = [function(x) for x in inputs]
        counts = stats()[op]
    for result, want in zip(results, wanted, strict=True):
        if not torch.allclose(result, want, rtol=1e-5, atol=1e-6):
            return _Found(f"{op}: a kernel's result differs from eager's")
    declined = sorted(set(counts.declined) - set(before.declined if before else ()))
    harmful = [reason for reason in declined if reason in _HARMFUL]
    if harmful:
        is_lasting = not set(harmful) <= set(_PASSING)
        return _Found(f"{op}: {', '.join(harmful)}", is_lasting=is_lasting)
    hits = counts.hits - (before.hits if before else 0)
    compiles = counts.compiles - (before.compiles if before else 0)
    if not hits and must_serve:
        problem = f"{op}: no call was served ({', '.join(declined) or 'no reason is known'})"
        return _Found(problem, is_lasting=_is_kept_as_failed(op))
    made = "compiled now" if compiles else "from the store"
    return _Found(how=f"served ({made})" if hits else f"not served ({', '.join(declined)})")


def _note_path(op: str) -> None:
    """Note which hit path serves an op."""
    from .._registration import registry

    caches = [one for one in registry.caches() if one.schema.op == op]
    _paths.update("Python" if one.native is None else "C++" for one in caches)


def _is_kept_as_failed(op: str) -> bool:
    """Return whether the store keeps a failure of an op: it keeps what every process would meet."""
    from .._compile_service import cache_context
    from .._store.entry import Status
    from .._store.store import StoredEntry

    context = cache_context.current()
    return any(
        isinstance(one, StoredEntry) and one.entry.status is not Status.READY
        for one in context.store.of_op(op, context.environment)
    )


def _region() -> _Found:
    from .._regions.fuse import fuse

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.LayerNorm(16))
    model.eval()
    inputs = [torch.randn(8, 16) for _ in range(6)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
        report: Any = fuse(model)
        results = [model(x) for x in inputs]
        hits = sum(one.hits for one in report.regions)
        reasons = {one.reason for one in report.regions if one.reason}
        report.undo()
    for result, want in zip(results, wanted, strict=True):
        if not torch.allclose(result, want, rtol=1e-5, atol=1e-6):
            return _Found("a region's result differs from eager's")
    harmful = reasons & set(_HARMFUL)
    if harmful:
        is_lasting = not harmful <= set(_PASSING)
        return _Found(", ".join(sorted(reasons)), is_lasting=is_lasting)
    return _Found(
        how="served" if hits else f"not served ({', '.join(sorted(reasons)) or 'no reason'})"
    )
