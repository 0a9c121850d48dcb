"""``tiers``, ``push`` and ``pull``: the stores behind the cache directory."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from .. import cache
from .._base.amounts import size_in_words
from .bundles import say, say_counts


def add_verbs(verb: Callable[[str, Callable[[argparse.Namespace], int], str], Any]) -> None:
    """Add all verbs.

    Args:
        verb: Makes the parser of a verb, by its name, what runs it, and its purpose.
    """
    _add_common(verb("tiers", tiers, "Show the stores that calls look into, in order."))
    _add_transfer(verb("push", push, "Copy kernels to a remote tier."))
    parser = verb("pull", pull, "Copy kernels from a remote tier into the cache.")
    _add_transfer(parser)
    parser.add_argument(
        "--trust",
        choices=("signed", "any"),
        help="as for load; by default, as the tier says: signed, or any after #trust=any",
    )


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url", metavar="URL", nargs="?", help="s3://BUCKET/PREFIX; default: the remote tier"
    )
    parser.add_argument(
        "--op",
        metavar="PATTERN",
        action="append",
        help="kernels of these ops: aten::silu, 'aten::add*'; may be given again",
    )
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache-dir", help="the cache's directory")


def tiers(namespace: argparse.Namespace) -> int:
    """Run ``tiers``; return its exit status: 1 if a directory cannot be used."""
    found = cache.tiers()
    if namespace.json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))
    else:
        for one in found:
            right = "rw" if one.is_writable else "ro"
            kind = "" if one.name == "cache_dir" else one.name.partition("#")[2]
            say("  ".join(filter(None, (right, f"{one.state:8}", one.place, kind))))
    return int(any(one.state == "unusable" for one in found))


def push(namespace: argparse.Namespace) -> int:
    """Run ``push``; return its exit status: 1 if kernels could not be moved."""
    return _report(namespace, cache.push(namespace.url, ops=namespace.op), "to")


def pull(namespace: argparse.Namespace) -> int:
    """Run ``pull``; return its exit status: 1 if kernels could not be moved."""
    report = cache.pull(namespace.url, ops=namespace.op, trust=namespace.trust)
    return _report(namespace, report, "from")


def _report(namespace: argparse.Namespace, report: cache.TransferReport, way: str) -> int:
    if namespace.json:
        print(json.dumps(dataclasses.asdict(report)))
        return int(report.failed > 0)
    size = size_in_words(report.size_bytes)
    say(f"{report.moved} kernels ({size}) {way} {report.url}; {report.there_already} were there")
    say_counts("left out", report.skipped)
    if report.failed:
        say(f"{report.failed} kernels could not be moved:")
    for problem in report.problems:
        say(f"  {problem}")
    return int(report.failed > 0)
