"""``report``: one page about the cache and the last runs, which needs no network and no script."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cache
from .._base.amounts import size_in_words
from .._base.output_file import OutputFile
from .._base.printable import printable
from .._dispatch.counters import OpStats, read_totals
from .._dispatch.run_log import Run, read_runs
from .._store.store import store_at
from .._store.verdict import PathTime, Verdicts, processor
from ..config import config
from .held import held_in_words
from .stats import total_of

DEFAULT_FILE = "aoti-eager-report.html"
# The page shows so many rows at most: a store may have tens of thousands of entries.
MOST_ROWS = 100
_TEMPLATE = Path(__file__).with_name("report_page.html.j2")


@dataclass(frozen=True, slots=True)
class OpRow:
    """What became of the calls of one op, in all processes."""

    op: str
    calls: int
    hits: int
    share: float
    compiles: int
    saved_s: float


@dataclass(frozen=True, slots=True)
class KernelRow:
    """A kernel and its original, as they were measured on this processor."""

    op: str
    inputs: str
    kernel_us: float
    original_us: float
    spread: float

    @property
    def gain(self) -> float:
        """Return how many times as fast the kernel is."""
        return self.original_us / self.kernel_us


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run of a script."""

    ended: str
    script: str
    mode: str
    seconds: float
    calls: int
    share: float
    compiles: int
    saved_s: float


def add_arguments(parser: Any) -> None:
    """Add the arguments of ``report``."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default=DEFAULT_FILE, help=f"default: {DEFAULT_FILE}"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, too")
    parser.add_argument("--cache-dir", help="the cache's directory")


def main(namespace: argparse.Namespace) -> int:
    """Run ``report``; return its exit status."""
    output = OutputFile(namespace.file)
    figures = read_figures()
    output.write(page(figures).encode())
    if namespace.json:
        print(json.dumps(figures, default=dataclasses.asdict))
    else:
        print(printable(f"{output.path}: {figures['held']}"))
    return 0


def read_figures() -> dict[str, Any]:
    """Return what the page shows.

    Raises:
        StoreError: The store cannot be read.
    """
    entries, totals = cache.list(), read_totals(config.cache_dir)
    runs = read_runs(config.cache_dir)
    kernels = _kernels(entries)
    total = sum(totals.values(), OpStats())
    ops = sorted((_op_row(op, stats) for op, stats in totals.items()), key=lambda one: -one.calls)
    reasons = Counter(total.declined)
    reasons["no kernel yet"] = total.misses - total.rare
    reasons["rare: not worth a kernel yet"] = total.rare
    return {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "held": held_in_words(entries),
        "processor": processor(),
        "size": size_in_words(sum(one.size_bytes for one in entries)),
        "statuses": dict(Counter(one.status for one in entries).most_common()),
        "calls": total.calls,
        "share": total.hits / total.calls if total.calls else 0.0,
        "saved_s": total.saved_s,
        "compiles": total.compiles,
        "failures": total.failures,
        "ops": ops[:MOST_ROWS],
        "more_ops": max(0, len(ops) - MOST_ROWS),
        "reasons": [(name, number) for name, number in reasons.most_common() if number > 0],
        "kernels": kernels[:MOST_ROWS],
        "more_kernels": max(0, len(kernels) - MOST_ROWS),
        "runs": [_run_row(one) for one in reversed(runs)][:MOST_ROWS],
        "more_runs": max(0, len(runs) - MOST_ROWS),
    }


def page(figures: dict[str, Any]) -> str:
    """Return the page. Text of entries and of runs is escaped, and nothing in the page is run."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Any] = {
        "shown": printable,
        "whole": lambda number: f"{number:,}",
        "percent": lambda share: f"{100 * share:.0f} %",
        "seconds": lambda number: f"{number:,.1f} s",
        "microseconds": lambda number: f"{number:,.1f}",
        "log_share": _log_share,
    }
    environment.filters |= filters
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(figures)


def _log_share(gain: float) -> float:
    """Return where a ratio stands on an axis from a quarter to sixteen, from 0 to 1."""
    return min(1.0, max(0.0, (math.log2(gain) + 2) / 6))


def _op_row(op: str, stats: OpStats) -> OpRow:
    share = stats.hits / stats.calls if stats.calls else 0.0
    return OpRow(op, stats.calls, stats.hits, share, stats.compiles, stats.saved_s)


def _run_row(run: Run) -> RunRow:
    total = total_of(run)
    ended = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.ended_at))
    share = total.hits / total.calls if total.calls else 0.0
    return RunRow(
        ended,
        run.script,
        run.mode,
        run.seconds,
        total.calls,
        share,
        total.compiles,
        total.saved_s,
    )


def _kernels(entries: Sequence[cache.CacheEntry]) -> list[KernelRow]:
    """Return the kernels that were measured here, the greatest gain first."""
    verdicts, found = Verdicts(store_at(None).root), []
    for one in entries:
        if one.status not in ("ready", "slower"):
            continue
        verdict = verdicts.read(one.digest)
        taken = None if verdict is None else _time(verdict.times)
        if taken is not None and taken.kernel_us > 0 and taken.original_us > 0:
            inputs = one.region or one.inputs
            found.append(
                KernelRow(one.op, inputs, taken.kernel_us, taken.original_us, taken.spread)
            )
    return sorted(found, key=lambda one: -one.gain)


def _time(times: Any) -> PathTime | None:
    """Return the times of the C++ path; else those of Python's."""
    for path in ("native", "python"):
        for label, taken in sorted(times.items()):
            if label.startswith(f"{path}/"):
                assert isinstance(taken, PathTime)
                return taken
    return None
