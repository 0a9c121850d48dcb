"""``record``: run a script, and write its calls as a workload; nothing is compiled."""

from __future__ import annotations

import argparse

from . import run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``record`` to ``parser``."""
    parser.add_argument("--cache-dir", metavar="DIR", help="as the setting cache_dir")
    run.add_ops_argument(parser)
    parser.add_argument("file", metavar="FILE", help="the workload, for the verb warm")
    parser.add_argument("script", metavar="SCRIPT", help="the script's file")
    parser.add_argument(
        "arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="the script's own arguments"
    )


def main(options: argparse.Namespace) -> int:
    """Return the exit code of ``record``: as of ``run``."""
    options.record, options.mode = options.file, "cache_only"
    options.all_ops, options.fuse, options.wait = True, False, False
    options.workers = options.json = None
    return run.main(options)
