"""What a call does, in a form that can be compared with what another call does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


def outcome(call: Callable[[], Any]) -> tuple[str, str, list[str]]:
    """Return the type and text of what ``call`` raises, or of its result, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - whatever the original raises is what is wanted
            what = (type(error).__name__, str(error))
        else:
            what = ("returned", repr((result, result.stride())))
    return (*what, [str(warning.message) for warning in caught])
