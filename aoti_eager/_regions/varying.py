"""What varies from call to call of a region, and what has gone wrong, in words."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._base.warn_once import warn_once
from .stop import Stop

if TYPE_CHECKING:
    from .variant import Variant

_warnings = itertools.count()


def what_varies(by_key: Mapping[Any, list[Variant]], key: Any) -> str:
    """Return in words what is new in a call, beside the kinds of calls that were recorded."""
    known = {repr(one) for _, listed in list(by_key) for one in listed}
    new = [one for one in key[1] if repr(one) not in known]
    shown = ", ".join(repr(one) for one in new[:3]) or "the attributes of its modules"
    count = sum(map(len, list(by_key.values())))
    return f"{count} were recorded (region_cap); new in this call: {shown}"


def warn_of_difference(path: str, name: str, stop: Stop) -> None:
    """Warn that two calls of a region that should be alike are not."""
    warn_once(
        f"region {next(_warnings)}",
        f"fuse: {path or 'the module'} ({name}) is not served any more: two calls with equal "
        f"arguments and attributes made different calls of ops: {stop}",
    )


def warn_of_failure(path: str, name: str, error: Exception) -> None:
    """Warn of an error of ours in a recording; the forward has run."""
    where = f"{path or 'the module'} ({name})"
    warn_once(f"region failed {type(error).__name__}", f"fuse: {where}: {error!r}")
