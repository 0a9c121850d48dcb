"""What is to be done when Python ends, after the script's own exit handlers.

Python calls exit handlers in the reverse order of their registration. Most of the package is
imported when a script first uses it, which may be after the script has registered handlers that
call ops. So there is one handler, registered when the package is imported.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable

_handlers: list[Callable[[], None]] = []


def at_exit(handler: Callable[[], None]) -> None:
    """Call ``handler`` when Python ends; of several, the last one first."""
    _handlers.append(handler)


def _run() -> None:
    while _handlers:
        handler = _handlers.pop()
        try:
            handler()
        except Exception:
            logging.getLogger("aoti_eager").exception("%s: failed while Python ended", handler)


atexit.register(_run)
