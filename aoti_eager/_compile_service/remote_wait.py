"""Waits for the courier of remote tiers, where there is one."""

from __future__ import annotations

import sys

_COURIER = f"{__package__.rpartition('.')[0]}._remote.courier"


def wait_for_remotes(timeout_s: float | None = None) -> bool:
    """Wait until nothing is on its way to or from remote tiers; return whether that is so.

    Args:
        timeout_s: Seconds to wait at most; ``None`` for no limit.
    """
    courier = sys.modules.get(_COURIER)  # Without remote tiers, nobody has imported it.
    return courier is None or bool(courier.wait(timeout_s))
