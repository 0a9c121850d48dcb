"""How long a remembered failure holds, and which failure never does. Pure: callers give the time.

A failure is remembered so that the next process does not compile in vain. It holds for a while, for
one compiler, and only if its cause is one that every process would meet.
"""

from __future__ import annotations

import re

from .._base.determinism import FATAL_SIGNALS, is_passing_text
from .._keys.declines import REMEMBERED
from .entry import Entry, Status
from .new_entries import identity_of

# 30 days: within this time, a fix in the system or the compiler is found.
PERIOD_S = 30 * 24 * 3600.0
# A clock may be wrong by a time zone. A time further ahead would make a failure hold for good.
_AHEAD_S = 24 * 3600.0

_SIGNAL = r"\bthe process ended with (SIG\w+)"

# Reasons under which older versions remembered errors of the operating system.
_MAY_BE_PASSING = frozenset({"compile_failed", "does_not_trace", "raised", "not_dynamic"})


def holds(
    entry: Entry, *, written_at: float, now: float, compiler: str | None, log: str = ""
) -> bool:
    """Return whether a declined or quarantined entry still keeps its key from being compiled.

    Args:
        entry: A remembered failure; a ready entry always holds.
        written_at: When the entry's file was written, in seconds since 1970; used if the entry has
            no time of its own.
        now: The current time, in seconds since 1970.
        compiler: Identity of the compiler on this machine; ``None`` if there is none. Then nothing
            could be compiled anyway, and a failure holds.
        log: What the compiler wrote; used if the entry has no time of its own.
    """
    if entry.status is Status.READY:
        return True
    if compiler is None:
        return True
    if (entry.reason or "mismatch") not in REMEMBERED:
        return False
    at = written_at if entry.remembered is None else float(entry.remembered.at)
    if not -_AHEAD_S <= now - at <= PERIOD_S:
        return False
    made_with = identity_of(entry)
    if made_with is not None and compiler != made_with:
        return False
    return entry.remembered is not None or not _was_passing(entry, log)


def _was_passing(entry: Entry, log: str) -> bool:
    """Return whether an older version has remembered a transient error."""
    message = entry.message or ""
    if entry.reason == "crashed":
        signal = re.search(_SIGNAL, message)
        return signal is None or signal[1] not in FATAL_SIGNALS or is_passing_text(message)
    return entry.reason in _MAY_BE_PASSING and is_passing_text(f"{message}\n{log}")
