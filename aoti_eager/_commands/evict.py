"""``evict`` and ``trim``: entries go by age and op, or until the rest keeps a limit."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from collections.abc import Callable
from typing import TypeVar

from .. import cache
from .._base.amounts import parse_age, parse_size, size_in_words
from .._base.printable import printable
from ..config import config
from ..errors import ConfigError
from .columns import show

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evict``."""
    parser.add_argument(
        "--older-than",
        metavar="AGE",
        help="entries that no process has loaded for so long, exact to six hours: 30m, 12h, 7d",
    )
    parser.add_argument(
        "--op", metavar="PATTERN", help="entries of these ops: aten::silu, 'aten::add*'"
    )
    _add_common(parser)


def add_trim_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``trim``."""
    parser.add_argument("--max-size", metavar="SIZE", help="most bytes that are left: 500M, 5G")
    parser.add_argument("--max-entries", metavar="N", help="most entries that are left")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="remove nothing; say what would go")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache-dir", help="the cache's directory")


def main(namespace: argparse.Namespace) -> int:
    """Run ``evict``; return its exit status.

    Raises:
        ConfigError: Nothing is asked for, or an age is none.
    """
    if namespace.older_than is None and namespace.op is None:
        raise ConfigError("evict: choose --older-than, --op or both")
    age_s = _parsed("--older-than", namespace.older_than, parse_age)
    return _say(
        cache.evict(older_than=age_s, op=namespace.op, dry_run=namespace.dry_run), namespace.json
    )


def main_trim(namespace: argparse.Namespace) -> int:
    """Run ``trim``; return its exit status.

    Raises:
        ConfigError: Nothing is asked for, or a limit is none.
    """
    if namespace.max_size is None and namespace.max_entries is None:
        raise ConfigError("trim: choose --max-size, --max-entries or both")
    size = _parsed("--max-size", namespace.max_size, parse_size)
    entries = _parsed("--max-entries", namespace.max_entries, _count)
    return _say(
        cache.trim(max_size=size, max_entries=entries, dry_run=namespace.dry_run), namespace.json
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ValueError("wants a whole number, at least 0")
    return int(text)


def _parsed(option: str, text: str | None, parse: Callable[[str], T]) -> T | None:
    """Return what an option says; ``None`` if it was not given."""
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: got {text!r}; {error}") from error


def _say(report: cache.EvictReport, as_json: bool) -> int:
    if as_json:
        entries = [dataclasses.asdict(one) | {"path": str(one.path)} for one in report.entries]
        numbers = {
            "removed": len(report.entries),
            "removed_bytes": report.size_bytes,
            "left": report.left,
            "left_bytes": report.left_bytes,
            "dry_run": report.dry_run,
        }
        print(json.dumps({**numbers, "entries": entries}))
        return 0
    if report.dry_run and report.entries:
        rows = [
            (one.op, one.digest[:12], f"{one.size_bytes / 1024:.0f}", _day(one.used_at))
            for one in report.entries
        ]
        show([("op", "key", "KiB", "last used"), *rows], left=(0, 1, 3))
    what = "would be removed" if report.dry_run else "removed"
    print(
        printable(
            f"{len(report.entries)} entries, {size_in_words(report.size_bytes)}, {what}; "
            f"{report.left} entries, {size_in_words(report.left_bytes)}, left in {config.cache_dir}"
        )
    )
    return 0


def _day(at: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(at):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return "?"
