"""``stats``: what became of the calls of all processes that used the cache, and of each run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import Any

from .. import cache
from .._base.printable import printable
from .._dispatch.counters import OpStats, read_totals
from .._dispatch.run_log import Run, forget_totals, read_runs
from .._store.store import store_at
from ..config import config
from .columns import show
from .held import held_in_words


def add_arguments(parser: Any) -> None:
    """Add the arguments of ``stats``."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache-dir", help="the cache's directory")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--runs", action="store_true", help="a line for each of the last runs")
    what.add_argument(
        "--zero", action="store_true", help="set the counters to zero, and forget the runs"
    )


def main(namespace: argparse.Namespace) -> int:
    """Run ``stats``; return its exit status."""
    if namespace.zero:
        return _zero(namespace)
    return _runs(namespace) if namespace.runs else _totals(namespace)


def _zero(namespace: argparse.Namespace) -> int:
    root = store_at(None).root
    store_at(None).require_marker()
    number = len(read_totals(root))
    if number or read_runs(root):
        forget_totals(root)
    if namespace.json:
        print(json.dumps({"ops": number}))
    else:
        _say(f"the counters of {number} ops are zero, in {root}")
    return 0


def _totals(namespace: argparse.Namespace) -> int:
    totals = read_totals(config.cache_dir)
    if namespace.json:
        print(json.dumps({op: dataclasses.asdict(counts) for op, counts in totals.items()}))
        return 0
    entries = cache.list()
    regions = {one.op: one.region for one in entries if one.region}
    header = ("op", "hits", "misses", "compiles", "failures", "declines", "reasons", "region")
    rows: list[tuple[str, ...]] = [header]
    rows += [(*_row(op, counts), regions.get(op, "")) for op, counts in sorted(totals.items())]
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    show(rows, left=(0, 6, 7))
    _say(f"{len(totals)} ops, all processes that used {config.cache_dir}")
    _say(held_in_words(entries))
    return 0


def _runs(namespace: argparse.Namespace) -> int:
    runs = read_runs(config.cache_dir)
    if namespace.json:
        print(json.dumps([_document(one) for one in runs]))
        return 0
    rows: list[tuple[str, ...]] = [
        ("ended", "script", "mode", "seconds", "calls", "hits", "compiles", "saved s")
    ]
    for run in runs:
        total = total_of(run)
        share = f"{100 * total.hits / total.calls:.0f} %" if total.calls else "-"
        ended = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.ended_at))
        numbers = (f"{run.seconds:.0f}", str(total.calls), share, str(total.compiles))
        rows.append((ended, run.script, run.mode, *numbers, f"{total.saved_s:.1f}"))
    show(rows, left=(0, 1, 2))
    _say(f"{len(runs)} runs that used {config.cache_dir}, the last one last")
    return 0


def total_of(run: Run) -> OpStats:
    """Return what became of all calls of a run."""
    return sum(run.ops.values(), OpStats())


def _document(run: Run) -> dict[str, Any]:
    ops = {op: dataclasses.asdict(counts) for op, counts in run.ops.items()}
    return {
        "ended_at": run.ended_at,
        "seconds": run.seconds,
        "script": run.script,
        "mode": run.mode,
        "ops": ops,
    }


def _row(op: str, counts: OpStats) -> tuple[str, ...]:
    reasons = ", ".join(f"{reason} x{n}" for reason, n in sorted(counts.declined.items()))
    numbers = (counts.hits, counts.misses, counts.compiles, counts.failures, counts.declines)
    return (op, *map(str, numbers), reasons)


def _say(line: str) -> None:
    print(printable(line))
