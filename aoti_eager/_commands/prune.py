"""``prune``: what the next process is to try again, or has no use for, goes."""

from __future__ import annotations

import argparse
import dataclasses
import json

from .. import cache
from .._base.printable import printable
from ..config import config
from ..errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``prune``."""
    parser.add_argument(
        "--declined",
        action="store_true",
        help="remembered failures, and what lost against the original on this processor",
    )
    parser.add_argument("--stale", action="store_true", help="entries of other environments")
    parser.add_argument(
        "--compiler",
        metavar="TEXT",
        help="entries made by a C++ compiler with this in its version, or whose identity begins so",
    )
    parser.add_argument("--dry-run", action="store_true", help="remove nothing; say what would go")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache-dir", help="the cache's directory")


def main(namespace: argparse.Namespace) -> int:
    """Run the verb; return its exit status.

    Raises:
        ConfigError: Nothing is asked for.
    """
    compiler = namespace.compiler
    if not (namespace.declined or namespace.stale or compiler):
        raise ConfigError("prune: choose --declined, --stale or both, or --compiler")
    report = cache.prune(
        declined=namespace.declined,
        stale=namespace.stale,
        compiler=compiler,
        dry_run=namespace.dry_run,
    )
    if namespace.json:
        print(json.dumps(dataclasses.asdict(report)))
        return 0
    made = f"{report.compiler} entries of that compiler, " if compiler else ""
    done = "would be removed" if report.dry_run else "removed"
    print(
        printable(
            f"{made}{report.declined} remembered failures, {report.slower} losing verdicts, "
            f"{report.stale} entries of other environments and {report.orphans} verdicts without "
            f"an entry {done} from {config.cache_dir}"
        )
    )
    return 0
