"""``python -m aoti_eager warm``: compile a workload, or what scripts have left unfinished.

It shows a progress bar and prints a summary.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict

from tqdm import tqdm

from .._base.output_file import OutputFile
from .._base.printable import printable_lines
from .._compile_service import cache_context
from .._workloads.report import WarmReport
from .._workloads.warm import Warming
from .._workloads.workload import load_workload
from ..config import config
from ..errors import WorkloadError
from .columns import align
from .kept import KeptWarming

INTERRUPTED = 130  # What a shell says of a command that Ctrl-C ended.
_SHOWN_FAILURES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``warm`` to ``parser``."""
    parser.add_argument(
        "workload", metavar="FILE", nargs="?", help="a workload, from run --record FILE"
    )
    parser.add_argument(
        "--kept",
        action="store_true",
        help="what scripts wanted and did not get before they ended, in place of a workload",
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, help="compiles at a time (default: one a core)"
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="the cache's directory")
    parser.add_argument("--json", metavar="FILE", help="write the summary to FILE, too")


def main(options: argparse.Namespace) -> int:
    """Return 0, 1 if a compile failed or a line is damaged, or 130 after Ctrl-C.

    Raises:
        AotiEagerError: A wrong use: no workload, a wrong option, a store that cannot be written.
    """
    if (options.workload is None) != options.kept:
        raise WorkloadError("choose a workload, or --kept: what scripts have left unfinished")
    workload = None if options.kept else load_workload(options.workload)
    file = None if options.json is None else OutputFile(options.json, pipes=True)
    # Only on a terminal: in a log, each step of the bar would be a line.
    with tqdm(disable=None, unit="kernel", desc="compiling", mininterval=0, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            if not bar.update(done - bar.n):
                bar.refresh()

        context = cache_context.current()
        warming: Warming | KeptWarming
        if workload is None:
            warming = KeptWarming(context, jobs=options.jobs, progress=progress)
        else:
            warming = Warming(workload, context, jobs=options.jobs, progress=progress)
        status = 0
        try:
            warming.run()
        except KeyboardInterrupt:
            status = INTERRUPTED
    report = warming.report()
    print(format_report(report), flush=True)
    if file is not None:
        file.write(json.dumps(asdict(report)).encode())
    if status == INTERRUPTED:
        print(
            f"aoti-eager: interrupted; {report.remaining} of {report.calls} calls remain, and the "
            "same command goes on with them",
            file=sys.stderr,
        )
    return status or (1 if report.failed else 0)


def format_report(report: WarmReport) -> str:
    """Return the summary of a warm-up as a table, with a line for each of the first failures.

    In the words of executors and files, characters that a terminal would obey are shown as escapes.
    """
    declined = Counter(dict(report.declined))
    failed = Counter(failure.reason for failure in report.failed)
    rows = [
        ("compiled", str(report.compiled), ""),
        ("already there", str(report.present), ""),
        ("declined", str(declined.total()), _reasons(declined)),
        ("failed", str(failed.total()), _reasons(failed)),
    ]
    if report.remaining:
        rows.append(("remaining", str(report.remaining), ""))
    rows.append(("calls", str(report.calls), ""))
    lines = align(rows, left=(0, 2))
    lines.insert(-1, "-" * max(map(len, lines)))
    jobs = "" if report.jobs is None else f" with {report.jobs} at a time"
    lines.append(f"{report.seconds:.1f} s{jobs}, in {config.cache_dir}")
    for failure in report.failed[:_SHOWN_FAILURES]:
        which = f"{failure.digest[:12]} " if failure.digest else ""
        lines.append(f"failed: {which}{failure.reason}: {failure.message}")
    if len(report.failed) > _SHOWN_FAILURES:
        lines.append(f"and {len(report.failed) - _SHOWN_FAILURES} more; --json has all of them")
    return printable_lines("\n".join(lines))


def _reasons(counts: Counter[str]) -> str:
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} x{n}" for reason, n in by_count)
