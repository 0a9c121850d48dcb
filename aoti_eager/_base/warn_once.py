"""Warns once per cause, and never lets a warning become an error inside a dispatched call."""

from __future__ import annotations

import logging
import os
import threading
import warnings

from ..errors import AotiEagerWarning
from .printable import printable_lines

log = logging.getLogger("aoti_eager")


def _escape(record: logging.LogRecord) -> bool:
    """Make a log message safe to print: it may quote a file that somebody else wrote."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - the log handler reports it, and a call must not fail for it
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

    If the user's filters turn warnings into errors, the message is logged instead: a call that
    falls back to its original kernel must not raise.
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
    except Exception:  # The user's own function for warnings raised, or its stream is closed.
        log.warning("%s", message, exc_info=True)


def warn_of_function(op: str, why: str) -> None:
    """Warn, once per op, that the op gets no kernels because of its Python function.

    Args:
        op: Qualified name of the op, or of its gradient's op.
        why: What the function does and what to do instead; begins with the name.
    """
    name = op.replace("::_", "::").removesuffix("_backward")
    warn_once(f"function:{name}", f"{why}; no kernel serves it, the function itself runs")


def forget_warnings() -> None:
    """Allow a new warning about every cause (for tests)."""
    with _lock:
        _given.clear()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # A thread of the parent may have held it.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
