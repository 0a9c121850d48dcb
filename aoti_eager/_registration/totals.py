"""Adds what happened to this process's calls to the store's totals, when the process ends."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from .._base.warn_once import log
from .._compile_service import cache_context
from .._dispatch.counters import OpStats, add_totals
from ..config import config
from ..errors import ConfigError

# A forked child starts with its parent's counts, which the parent stores.
_pid = os.getpid()
_started = time.monotonic()


def store_totals(counts: Mapping[str, OpStats]) -> None:
    """Add counts by op to the store's; a process that stored nothing leaves none."""
    counts = {op: count for op, count in counts.items() if count != OpStats()}
    try:
        root = config.cache_dir
    except ConfigError:
        return  # ``register`` has raised this error.
    if not counts or os.getpid() != _pid or root is None or not root.is_dir():
        return
    try:
        cache_context.current().store.create()  # Marks the directory if an older version made it.
        add_totals(root, counts)
        from .._dispatch.run_log import note_run, this_run

        note_run(root, this_run(counts, config.mode, time.monotonic() - _started))
    except OSError as error:
        log.info("totals are not stored: %s", error)
