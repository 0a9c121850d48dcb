"""Runs this package's exit handlers when Python ends, after the script's own.

This module registers one ``atexit`` handler when the package is imported, and runs all handlers of
the package from there. Python calls exit handlers in the reverse order of their registration. Most
of the package is imported only when a script first uses it: a handler registered then could run
before handlers of the script that still call ops.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable

_handlers: list[Callable[[], None]] = []


def at_exit(handler: Callable[[], None]) -> None:
    """Call ``handler`` when Python ends; handlers run in the reverse order of registration."""
    _handlers.append(handler)


def _run() -> None:
    while _handlers:
        handler = _handlers.pop()
        try:
            handler()
        except Exception:
            logging.getLogger("aoti_eager").exception("%s: failed while Python ended", handler)


atexit.register(_run)
