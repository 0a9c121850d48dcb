"""Evictions by hand: ``cache.evict`` by age and op, ``cache.trim`` to a size."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .._base.amounts import parse_age, parse_size
from .._base.trusted_files import Directory
from .._base.warn_once import warn_once
from ..errors import ConfigError, LockTimeoutError
from .held_entries import (
    Held,
    entry_at,
    held_entries,
    holds_back_a_compile,
    in_turn,
    total,
)
from .least_used import Eviction, evicting
from .limits import Limits
from .store import store_at
from .store_root import store_errors

# Seconds that a person waits for an eviction by another process.
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class EvictedEntry:
    """An entry that ``evict`` or ``trim`` has removed, or would remove.

    Attributes:
        op: Qualified name of the overload; of an entry that cannot be read, its directory's name.
        digest: The key's digest, 64 hexadecimal digits.
        size_bytes: Bytes of the entry's files.
        used_at: When a process last used the entry, in seconds since 1970, exact to six hours.
        path: The entry's directory.
    """

    op: str
    digest: str
    size_bytes: int
    used_at: float
    path: Path


@dataclass(frozen=True, slots=True)
class EvictReport:
    """What ``evict`` or ``trim`` has removed, or would remove.

    Attributes:
        entries: The entries, in the order in which they go: that used longest ago is first.
        left: How many entries are left.
        left_bytes: Bytes of the entries that are left.
        dry_run: Whether nothing was removed.
    """

    entries: Sequence[EvictedEntry]
    left: int
    left_bytes: int
    dry_run: bool

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the removed entries had."""
        return sum(one.size_bytes for one in self.entries)


def evict(
    *,
    older_than: str | float | None = None,
    op: str | None = None,
    dry_run: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> EvictReport:
    """Remove entries that were not used for a time, or that are of some ops, and return which.

    Entries of all environments count, and remembered failures, too. With both arguments, an entry
    goes if both say so. The verdicts of a key go with its last entry. Running processes keep the
    kernels that they have loaded; the next process compiles anew. Entries that this user may not
    remove stay, with a warning.

    Args:
        older_than: Seconds, or text such as ``30m``, ``12h`` or ``7d``: entries go that no process
            has loaded for longer, exact to six hours. A process that serves a kernel for days has
            loaded it once.
        op: A pattern for the names of ops, with ``*``, ``?`` and ``[...]``: ``aten::silu``,
            ``aten::add*``, ``aoti_eager_region::*``. A name without an overload is that of all
            overloads.
        dry_run: Remove nothing; only return what would go.
        cache_dir: The store's directory.

    Raises:
        ConfigError: Neither an age nor an op is given, or ``older_than`` is no age.
        LockTimeoutError: Another process evicts, and has not ended within 10 seconds.
        StoreError: The store cannot be read or written, or is not ours.
    """
    if older_than is None and op is None:
        raise ConfigError("nothing to remove: choose an age (older_than), an op, or both")
    age_s = None
    if older_than is not None:
        try:
            age_s = parse_age(older_than)
        except ValueError as error:
            raise ConfigError(f"older_than: got {older_than!r}; {error}") from error

    def chosen(root: Directory, found: list[Held]) -> Iterator[Held]:
        now = time.time()
        for one in found:
            is_old = age_s is None or now - one.used_at > age_s
            if is_old and (op is None or matches(_op(root, one), op)):
                yield one

    return _run(chosen, dry_run, cache_dir)


def trim(
    *,
    max_size: str | int | None = None,
    max_entries: int | None = None,
    dry_run: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> EvictReport:
    """Remove the entries that were not used for longest, until the rest keeps a limit.

    A failure that holds later processes from compiling a key goes only when all other entries have
    gone. The settings of the same names are limits that are kept without being asked for.

    Args:
        max_size: Most bytes of all entries' files, or text such as ``500M`` or ``5G``.
        max_entries: Most entries.
        dry_run: Remove nothing; only return what would go.
        cache_dir: The store's directory.

    Raises:
        ConfigError: No limit is given, or a limit is wrong.
        LockTimeoutError: Another process evicts, and has not ended within 10 seconds.
        StoreError: The store cannot be read or written, or is not ours.
    """
    if max_size is None and max_entries is None:
        raise ConfigError("nothing to trim to: choose max_size, max_entries, or both")
    size = None
    if max_size is not None:
        try:
            size = parse_size(max_size)
        except ValueError as error:
            raise ConfigError(f"max_size: got {max_size!r}; {error}") from error
    is_count = isinstance(max_entries, int) and not isinstance(max_entries, bool)
    if max_entries is not None and (not is_count or max_entries < 0):
        raise ConfigError(f"max_entries: got {max_entries!r}; wants a whole number, at least 0")
    limits = Limits(size, max_entries)

    def chosen(root: Directory, found: list[Held]) -> Iterator[Held]:
        return in_turn(found, lambda one: holds_back_a_compile(root, one))

    return _run(chosen, dry_run, cache_dir, limits)


def _run(
    chosen: Callable[[Directory, list[Held]], Iterator[Held]],
    dry_run: bool,
    cache_dir: str | os.PathLike[str] | None,
    limits: Limits | None = None,
) -> EvictReport:
    """Remove what ``chosen`` gives of a store's entries, and return the report.

    With ``limits``, entries are removed only as long as what is left passes a limit.
    """
    store = store_at(cache_dir)
    with store.below() if dry_run else store.marked() as root, contextlib.ExitStack() as held:
        if root is None:
            return EvictReport((), 0, 0, dry_run)
        with store_errors(f"{store.root}: its entries cannot be removed"):
            eviction = None if dry_run else held.enter_context(_lock(root))
            found = held_entries(root) if eviction is None else eviction.count()
            gone, left = [], total(found)
            for one in chosen(root, found):
                if limits is not None and not limits.are_passed(left):
                    break
                shown = _shown(root, one)
                if eviction is None or eviction.remove(one):
                    gone.append(shown)
                    left = left.minus(one.amount)
            if eviction is not None and eviction.refused is not None:
                refused = eviction.refused
                warn_once(
                    f"evict:{refused}",
                    f"{refused}: this user may not remove the entry, so it stays, and perhaps "
                    "others; remove them as their owner",
                )
            return EvictReport(tuple(gone), left.entries, left.size_bytes, dry_run)


@contextlib.contextmanager
def _lock(root: Directory) -> Iterator[Eviction]:
    with contextlib.ExitStack() as opened:
        try:
            eviction = opened.enter_context(evicting(root, _TIMEOUT_S))
        except TimeoutError as error:
            raise LockTimeoutError(
                f"{root.path}: another process has been evicting for more than {_TIMEOUT_S:g} s; "
                "try again"
            ) from error
        yield eviction


def _op(root: Directory, one: Held) -> str:
    entry = entry_at(root, one)
    return one.place[2].replace(".", "::", 1) if entry is None else entry.key.op


def matches(op: str, pattern: str) -> bool:
    """Return whether a pattern matches an op's name, with its overload or without."""
    return fnmatchcase(op, pattern) or fnmatchcase(op.partition(".")[0], pattern)


def _shown(root: Directory, one: Held) -> EvictedEntry:
    path = root.path.joinpath(*one.place)
    return EvictedEntry(_op(root, one), one.place[-2], one.size_bytes, one.used_at, path)
