"""Imports what asks for kernels, so that the first miss of a script does not wait for it."""

from __future__ import annotations

from .._base.warn_once import log
from .._compile_service import cache_context
from .._dispatch import asking_modules
from ..config import config
from ..errors import StoreError

_is_prepared = False


def prepare_for_misses() -> None:
    """Import the modules that ask for kernels, unless calls may find their kernels in the store."""
    global _is_prepared
    if _is_prepared or config.mode == "off":
        return
    _is_prepared = True
    context = cache_context.current()
    try:
        if context.store.has_entries(context.environment):
            return
    except (StoreError, OSError) as error:
        log.info("%s", error)  # A miss will warn, if there is one.
    asking_modules.prepare()
