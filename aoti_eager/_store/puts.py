"""Puts: an entry is counted and put into its place, and what is too much is evicted.

Whoever puts an entry evicts, if limits are passed and no other process evicts. Never in a call: a
worker puts most entries, and for entries that are put in a call, ``keep_limits`` evicts later.
"""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .._base.trusted_files import Directory
from .._base.warn_once import log, warn_once
from ..errors import ConfigError, StoreError
from .least_used import evicting
from .limits import HIGH, Amount, Limits, current_limits
from .store_root import StoreRoot, names_below
from .usage import TIMEOUT_S, Account, Usage, account, read_usage

# A put that would take the store far past its limits waits so long for an eviction, and then goes
# on: the process that evicts may be stopped.
LONGEST_WAIT_S = 20.0
# Stores whose eviction this process has waited for in vain. The process waits again once it has got
# the lock.
_waited_in_vain: set[Path] = set()
# A put in a call waits so long for the account's lock.
_TIMEOUT_IN_CALL_S = 0.2
# While a process evicts, others put entries: it looks again, and so often at most.
_MOST_PASSES = 8


def put(
    root: Directory,
    place: tuple[str, ...],
    more: Amount,
    limits: Limits | None,
    install: Callable[[], bool],
    longest_wait_s: float = math.inf,
) -> None:
    """Count an entry, have ``install`` put it into its place, and evict if limits are passed.

    If another process evicts, nobody waits for it, unless the store would be far past its limits.
    No listing of the store is made, except in an eviction, and where the store has no account.

    Args:
        root: The open store.
        place: The names that lead from the root to the entry's directory.
        more: What the entry adds.
        limits: The limits; ``None`` to count only, and evict nothing: for callers in a call.
        install: Puts the entry into its place; returns false if an equal one is there.
        longest_wait_s: Most seconds to wait for another process's eviction, if that is less than
            ``LONGEST_WAIT_S``.

    Raises: what ``install`` raises. Errors of the account and of an eviction are logged.
    """
    usage = _counted_and_installed(root, more, limits, install, longest_wait_s)
    if usage is not None and limits is not None:
        _evict_if(root, usage, limits, place)


def keep_limits(store: StoreRoot, put_at: Path | None = None) -> None:
    """Evict until a store is within the limits of the settings; never raises.

    For what a call has put, after the call. If another process evicts, or the store cannot be
    written, nothing is done.

    Args:
        store: The store.
        put_at: The directory of the entry that was put, which stays.
    """
    with contextlib.suppress(StoreError, ConfigError), store.marked() as root:
        if root is not None:
            place = None if put_at is None else names_below(store.root, put_at)
            _evict_if(root, read_usage(root), current_limits(), place)


def _evict_if(
    root: Directory, usage: Usage, limits: Limits, spared: tuple[str, ...] | None
) -> None:
    if limits.are_passed(usage.held) or not usage.is_counted():
        evict_down(root, limits, spared)


def _counted_and_installed(
    root: Directory,
    more: Amount,
    limits: Limits | None,
    install: Callable[[], bool],
    longest_wait_s: float,
) -> Usage | None:
    """Return what the account says after the put; ``None`` if nothing was put or counted."""
    deadline = time.monotonic() + min(LONGEST_WAIT_S, longest_wait_s)
    timeout_s = _TIMEOUT_IN_CALL_S if limits is None else TIMEOUT_S
    while True:
        with contextlib.ExitStack() as opened:
            try:
                held = opened.enter_context(account(root, timeout_s))
                before = held.read()
            except OSError as error:
                log.info("%s: an entry is not counted: %s", root.path, error)
                install()
                return None
            after = replace(before, held=before.held.plus(more))
            if limits is None or not before.counted_at or not _is_too_much(more, after, limits):
                return after if _installed(held, more, after, install) else None
        if not _made_room(root, limits, more, deadline - time.monotonic()):
            limits = None  # Better too much than a kernel that is not kept.


def _is_too_much(more: Amount, after: Usage, limits: Limits) -> bool:
    """Return whether a put must wait; for an entry that is larger than a limit, no wait helps."""
    return limits.are_passed(after.held, HIGH) and not limits.are_passed(more, HIGH)


def _installed(held: Account, more: Amount, after: Usage, install: Callable[[], bool]) -> bool:
    was_put = was_counted = False
    try:
        with contextlib.suppress(OSError):
            held.write(after)
            was_counted = True
        was_put = install()
    finally:
        if was_counted and not was_put:
            with contextlib.suppress(OSError):
                held.take(more)
    return was_put


def _made_room(root: Directory, limits: Limits, more: Amount, left_s: float) -> bool:
    """Wait for an eviction, and evict if that was not enough; return whether to look again."""
    if left_s <= 0:
        return False
    try:
        with evicting(root, 0.0 if root.path in _waited_in_vain else left_s) as eviction:
            _waited_in_vain.discard(root.path)
            if not limits.are_passed(read_usage(root).held.plus(more), HIGH):
                return True
            removed = eviction.down_to(limits, incoming=more)
            # Where nothing can be removed, looking again would not help.
            return removed > 0 or not limits.are_passed(read_usage(root).held.plus(more), HIGH)
    except OSError as error:
        if isinstance(error, TimeoutError):
            _waited_in_vain.add(root.path)
        _log(root, error)
        return False


def evict_down(root: Directory, limits: Limits, spared: tuple[str, ...] | None = None) -> None:
    """Evict until an open store is within its limits; if another process evicts, do nothing.

    Never raises: what cannot be removed stays.

    Args:
        root: The open store.
        limits: Its limits.
        spared: The place of the entry that was just put, which stays.
    """
    try:
        with evicting(root, 0.0) as eviction:
            for _ in range(_MOST_PASSES):
                removed = eviction.down_to(limits, spared=spared)
                held = read_usage(root).held
                if not limits.are_passed(held):
                    return
                if not removed:
                    break
            if eviction.refused is not None:
                _warn(root, held, limits, eviction.refused)
    except OSError as error:
        _log(root, error)


def _warn(root: Directory, held: Amount, limits: Limits, refused: Path) -> None:
    warn_once(
        f"limits:{root.path}",
        f"{root.path}: holds {held.entries} entries, {held.size_bytes} bytes, more than the limits "
        f"max_size={limits.max_size} and max_entries={limits.max_entries}, because this user may "
        f"not remove some of them, such as {refused}; remove them as their owner, or raise the "
        "settings",
    )


def _log(root: Directory, error: OSError) -> None:
    if error.errno != errno.ETIMEDOUT:
        log.info("%s: nothing more is evicted: %s", root.path, error)
