"""The self-test's process: serves calls of several kinds, and compares them with eager's results.

``_compile_service/untested_torch.py`` starts it. Standard input has the names of the kinds as JSON,
all if empty; the last line of standard output is the answer. A crash is an answer, too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._native import library as native_library
from .._regions.fuse import fuse
from .._registration.registry import register, stats
from ..config import config
from ..errors import AotiEagerError

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
# Serves without harm: the kernel was not made, or lost, but nothing crashed or differed.
_HARMFUL = ("crashed", "mismatch", "raised", "library_unloadable", "run_failed")


def serve_child() -> None:
    """Answer one request; the process's exit status is 0 if an answer was given."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What libraries print is no answer.
    kinds = json.loads(sys.stdin.read() or "[]") or [*KINDS, "dynamic", "region"]
    config.mode, config.gate = "sync", False
    problems: list[str] = []
    served: list[str] = []
    for name in kinds:
        try:
            problem, how = _tried(name)
        except AotiEagerError as error:
            problem, how = str(error), ""
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            served.append(f"{name} {how}")
    path = "C++" if native_library.is_loaded() else "Python"
    answer = {
        "torch": str(torch.__version__),
        "problems": problems,
        "served": f"{', '.join(served)}; hit path: {path}",
    }
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _tried(name: str) -> tuple[str, str]:
    """Return what is wrong, empty if nothing is, and how the calls were served."""
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
) -> tuple[str, str]:
    inputs = [torch.randn(size) for size in sizes for _ in range(3)]
    wanted = [function(x) for x in inputs]
    before = stats().get(op)
    with register(op) as registration:
        results = [function(x) for x in inputs]
        if op not in registration.ops:
            return f"{op} cannot be registered", ""
        counts = stats()[op]
    for result, want in zip(results, wanted, strict=True):
        if not torch.allclose(result, want, rtol=1e-5, atol=1e-6):
            return f"{op}: a kernel's result differs from eager's", ""
    declined = sorted(set(counts.declined) - set(before.declined if before else ()))
    harmful = [reason for reason in declined if reason in _HARMFUL]
    if harmful:
        return f"{op}: {', '.join(harmful)}", ""
    hits = counts.hits - (before.hits if before else 0)
    compiles = counts.compiles - (before.compiles if before else 0)
    if not hits and must_serve:
        return f"{op}: no call was served ({', '.join(declined) or 'no reason is known'})", ""
    made = "compiled now" if compiles else "from the store"
    return "", f"served ({made})" if hits else f"not served ({', '.join(declined)})"


def _region() -> tuple[str, str]:
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
            return "a region's result differs from eager's", ""
    if reasons & set(_HARMFUL):
        return ", ".join(sorted(reasons)), ""
    return "", "served" if hits else f"not served ({', '.join(sorted(reasons)) or 'no reason'})"
