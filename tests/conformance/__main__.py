"""The command line of the conformance runs: ``run``, ``keep`` and ``table``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import kept, processes, runner
from .records import DTYPES, PARTS, Records
from .table import table


def main() -> int:
    """Return the exit status: 1 if there is any problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run what is not recorded yet")
    run.add_argument("--work", type=Path, required=True, help="directory of records and the store")
    run.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these entries")
    run.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    run.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    run.add_argument("--shard", type=_shard, default=(1, 1), metavar="K/N")
    run.add_argument("--samples", type=int, default=2, help="samples of each entry")
    run.add_argument("--timeout-s", type=float, default=300.0, help="for one call")
    run.add_argument("--budget-s", type=float, default=900.0, help="for the calls of a unit")
    run.add_argument("--jobs", type=int, default=1, help="units at a time, three processes each")
    run.add_argument("--native", choices=("0", "1"), default="1", help="which hit path serves")
    run.add_argument("--new", action="store_true", help="leave out what recorded.jsonl has")
    run.add_argument("--again", action="store_true", help="run what had a problem once more")
    keep = verbs.add_parser("keep", help="put what is recorded into recorded.jsonl")
    keep.add_argument("--work", type=Path, required=True)
    show = verbs.add_parser("table", help="make the table of recorded.jsonl")
    show.add_argument("--output", type=Path, help="default: standard output")
    options = parser.parse_args()
    # As Ctrl-C does: what is recorded stays, and the children end.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    verb = {"run": _run, "keep": _keep, "table": _table}[options.verb]
    return verb(options)


def _shard(text: str) -> tuple[int, int]:
    share, _, of = text.partition("/")
    return int(share), int(of)


def _run(options: argparse.Namespace) -> int:
    entries, versions = processes.entries()
    records = Records(options.work, versions)
    units = runner.units_of(
        entries,
        only=options.only,
        dtypes=options.dtype,
        parts=options.part,
        shard=options.shard,
    )
    if options.new:
        had = kept.read()
        units = [unit for unit in units if unit not in had]
    store = options.work / "store"
    store.mkdir(mode=0o700, exist_ok=True)
    runs = runner.run(
        units,
        store,
        records=records,
        bounds=runner.Bounds(options.samples, options.timeout_s, options.budget_s),
        jobs=options.jobs,
        native=options.native,
        again=options.again,
        log=lambda line: print(line, flush=True),
    )
    found = runner.problems(runs)
    print("\n".join([f"{len(units)} units, {len(found)} problems", *found]))
    return 1 if found else 0


def _keep(options: argparse.Namespace) -> int:
    _, versions = processes.entries()
    new = kept.in_short(Records(options.work, versions).read(), versions["code"])
    every = {**kept.read(), **new}
    kept.write(every)
    print(f"{len(new)} units of {options.work}, {len(every)} in {kept.FILE.name}")
    return 0


def _table(options: argparse.Namespace) -> int:
    entries, versions = processes.entries()
    text = table(kept.read(), entries, versions)
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
