"""Warn once per cause, and never let a warning become an error inside a dispatched call."""

from __future__ import annotations

import logging
import os
import threading
import warnings

from ._base.printable import printable_lines
from .errors import AotiEagerWarning

log = logging.getLogger("aoti_eager")


def _escape(record: logging.LogRecord) -> bool:
    """Make a message of our log safe to print: it may quote a file that somebody else wrote."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - the handler says so, and a call must not end by it
        return True
    shown = printable_lines(message)
    if shown != message:
        record.msg, record.args = shown, None
    return True


log.addFilter(_escape)

_given: set[str] = set()
_lock = threading.RLock()


def warn_once(cause: str, message: str) -> None:
    """Warn with ``message`` unless ``cause`` was warned about before in this process.

    Where the user's filters turn warnings into errors, it is logged instead: a call that falls back
    to its original kernel must not raise.
    """
    message = printable_lines(message)
    with _lock:
        if cause in _given:
            log.debug("%s (again): %s", cause, message)
            return
        _given.add(cause)
    try:
        warnings.warn(f"aoti_eager: {message}", AotiEagerWarning, stacklevel=2)
    except AotiEagerWarning:
        log.warning("%s", message)
    except Exception:  # Of the user's own function that shows warnings, or their stream is closed.
        log.warning("%s", message, exc_info=True)


def forget_warnings() -> None:
    """Let every cause be warned about again (for tests)."""
    with _lock:
        _given.clear()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # A thread of the parent may have held it.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
