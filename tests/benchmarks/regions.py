"""Whole models plain, fused, and under ``torch.compile``: ``python -m tests.benchmarks.regions``.

Each is measured in a process of its own, and rounds of the three alternate. A row has the median of
the rounds' medians of a call; the first result in a new process (from the model being there to the
first output; the caches of ours and of ``torch.compile`` are warm); and the seconds of a compile
with cold caches. Prints a table and geometric means; ``--json FILE`` and ``--svg FILE`` write them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import region_models
from .region_plot import write_svg

KINDS = ("plain", "fused", "compiled")
SMALL = ("1", "1x1", "1x16")
# What small sizes must reach over eager and torch.compile, and what no size may fall below.
OVER_EAGER, OVER_COMPILED, WORST = 2.0, 1.5, 0.97
WINDOW_S, FEWEST = 0.5, 10
# A library is asked for, compared and timed in so many calls.
CALLS_TO_SERVE = 40


# --- one process -------------------------------------------------------------------------------


def child(kind: str, name: str, size: str) -> dict[str, Any]:
    """Return what one process has measured: milliseconds, seconds of the compile, and errors."""
    import torch

    model, args, kwargs = region_models.case(name, size)
    found: dict[str, Any] = {}
    with torch.inference_mode():
        if kind == "plain":
            found["first_ms"] = timed_ms(lambda: model(*args, **kwargs))
            found["call_ms"] = steady_ms(lambda: model(*args, **kwargs))
            return found
        expected = None if "--first" in sys.argv else model(*args, **kwargs)
        start = time.perf_counter()
        if kind == "compiled":
            fast: Any = torch.compile(model, dynamic=False)
        else:
            import aoti_eager

            report = aoti_eager.fuse(model)
            fast = model
        got = fast(*args, **kwargs)
        found["first_ms"] = 1e3 * (time.perf_counter() - start)
        if kind == "fused":
            for _ in range(CALLS_TO_SERVE):
                fast(*args, **kwargs)
                if not aoti_eager.wait(timeout_s=0):
                    aoti_eager.wait()
            found["compile_s"] = time.perf_counter() - start
            found["states"] = [str(one) for one in report.regions]
            found["served"] = [one.path for one in report.regions if one.state == "served"]
            found["compiles"] = sum(one.compiles for one in aoti_eager.stats().values())
            got = fast(*args, **kwargs)
        else:
            found["compile_s"] = time.perf_counter() - start
        if expected is not None:
            found["error"] = difference(got, expected)
        found["call_ms"] = steady_ms(lambda: fast(*args, **kwargs))
    return found


def timed_ms(call: Callable[[], Any]) -> float:
    """Return the milliseconds of one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def steady_ms(call: Callable[[], Any]) -> float:
    """Return the median milliseconds of the calls in a window, after some that are not counted."""
    for _ in range(5):
        call()
    times: list[float] = []
    end = time.perf_counter() + WINDOW_S
    while time.perf_counter() < end or len(times) < FEWEST:
        times.append(timed_ms(call))
    return statistics.median(times)


def difference(got: Any, expected: Any) -> float:
    """Return the largest absolute difference of two results of one class."""
    import torch
    from torch.utils._pytree import tree_flatten

    if type(got) is not type(expected):
        raise AssertionError(f"a {type(got).__name__}, not a {type(expected).__name__}")
    mine, theirs = tree_flatten(got)[0], tree_flatten(expected)[0]
    pairs = [pair for pair in zip(mine, theirs, strict=True) if isinstance(pair[1], torch.Tensor)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    return max(float((one - other).abs().max()) for one, other in pairs)


# --- all processes -----------------------------------------------------------------------------


class Processes:
    """Starts the processes, all with the same caches."""

    def __init__(self, caches: Path) -> None:
        root = str(Path(__file__).parents[2])
        path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # A process that writes no bytecode compiles each module that it imports: its first result
        # would be late by that.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("AOTI_EAGER_") and name != "PYTHONDONTWRITEBYTECODE"
        }
        self._environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join(path),
            "AOTI_EAGER_CACHE_DIR": str(caches / "ours"),
            "AOTI_EAGER_LINGER_S": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "HF_HUB_OFFLINE": "1",
        }

    def set_up(self) -> None:
        """Build what is built once a machine, and write the bytecode of the package and of this."""
        self._run("-m", "aoti_eager", "setup")
        root = Path(__file__).parents[2]
        self._run("-m", "compileall", "-q", str(root / "aoti_eager"), str(root / "tests"))

    def measured(self, kind: str, name: str, size: str, *, first: bool = False) -> dict[str, Any]:
        """Return what one process has measured; ``first`` if nothing is called before that."""
        options = ["--child", kind, name, size, *(["--first"] if first else [])]
        printed = self._run("-m", "tests.benchmarks.regions", *options)
        result: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return result

    def _run(self, *arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")
        return done.stdout


def row_of(processes: Processes, name: str, size: str, rounds: int) -> dict[str, Any]:
    """Return what one model at one size takes."""
    cold = {kind: processes.measured(kind, name, size) for kind in KINDS[1:]}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for kind in KINDS if number % 2 else reversed(KINDS):
            found[kind].append(processes.measured(kind, name, size, first=True))
    calls = {kind: _median(found[kind], "call_ms") for kind in KINDS}
    firsts = {kind: _median(found[kind], "first_ms") for kind in KINDS}
    plain = [one["call_ms"] for one in found["plain"]]
    last = found["fused"][-1]
    return {
        "model": name,
        "size": size,
        **{f"{kind}_ms": round(ms, 4) for kind, ms in calls.items()},
        "over_eager": round(calls["plain"] / calls["fused"], 3),
        "over_compiled": round(calls["compiled"] / calls["fused"], 3),
        "plain_spread": round(max(plain) / min(plain), 3),
        **{f"{kind}_first_ms": round(ms, 1) for kind, ms in firsts.items()},
        "first_bound_ms": round(1.5 * firsts["plain"] + 50, 1),
        "fused_compile_s": round(cold["fused"]["compile_s"], 1),
        "compiled_compile_s": round(cold["compiled"]["compile_s"], 1),
        "error": cold["fused"]["error"],
        "served": last["served"],
        "compiles_warm": last["compiles"],
        "states": last["states"],
    }


def _median(found: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(one[name] for one in found))


HEADER = (
    f"{'model':12}{'size':7}{'plain ms':>10}{'fused':>10}{'compiled':>10}{'eager/':>9}"
    f"{'compiled/':>10}{'noise':>7}{'first ms':>10}{'bound':>9}{'compiled':>10}"
    f"{'compile s':>11}{'theirs':>8}  served"
)


def row_text(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    served = ", ".join(one or "all" for one in row["served"][:3]) or "nothing"
    return (
        f"{row['model']:12}{row['size']:7}{row['plain_ms']:10.3f}{row['fused_ms']:10.3f}"
        f"{row['compiled_ms']:10.3f}{row['over_eager']:8.2f}x{row['over_compiled']:9.2f}x"
        f"{row['plain_spread']:7.2f}{row['fused_first_ms']:10.1f}{row['first_bound_ms']:9.1f}"
        f"{row['compiled_first_ms']:10.1f}{row['fused_compile_s']:11.1f}"
        f"{row['compiled_compile_s']:8.1f}  {served}"
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return geometric means of the small sizes, the worst case, and firsts beyond their bound."""
    small = [row for row in rows if row["size"] in SMALL]
    late = [row for row in rows if row["fused_first_ms"] > row["first_bound_ms"]]
    return {
        "over_eager_small": _mean(small, "over_eager"),
        "over_compiled_small": _mean(small, "over_compiled"),
        "worst_over_eager": min(row["over_eager"] for row in rows),
        "first_beyond_bound": [f"{row['model']} {row['size']}" for row in late],
        "wanted": {"over_eager": OVER_EAGER, "over_compiled": OVER_COMPILED, "worst": WORST},
    }


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return round(statistics.geometric_mean([row[name] for row in rows]), 3) if rows else 0.0


def main() -> None:
    """Print the table and the means."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(*sys.argv[2:5])))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(region_models.MODELS))
    parser.add_argument("--sizes", nargs="+", help="of these sizes: 1, 64, 1x1, 1x16, 2x128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--caches", type=Path, help="keep caches here; empty, for cold compiles")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    names = options.models or list(region_models.MODELS)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        processes = Processes(options.caches or Path(temporary))
        processes.set_up()
        print(HEADER)
        for name in names:
            for size in region_models.MODELS[name][1]:
                if options.sizes is None or size in options.sizes:
                    rows.append(row_of(processes, name, size, options.rounds))
                    print(row_text(rows[-1]), flush=True)
                    for line in rows[-1]["states"] if "" not in rows[-1]["served"] else ():
                        print(f"    {line}")
    result = {"cores": os.cpu_count(), "summary": summary(rows), "rows": rows}
    print(json.dumps(result["summary"]))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1))
    if options.svg is not None:
        write_svg(options.svg, rows)


if __name__ == "__main__":
    main()
