"""How much a store may hold, and when that is too much. Pure, but for ``current_limits``."""

from __future__ import annotations

import math
from typing import Any

from .._base.data_class import dataclass
from ..config import config

# An eviction goes on until so much of a limit is used, so that not every put evicts.
LOW = 0.9
# A process that would take the store past so much of a limit first waits for an eviction.
HIGH = 1.05


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes and a number of entries: what a store holds, or what is added to it."""

    size_bytes: int = 0
    entries: int = 0

    def plus(self, other: Amount) -> Amount:
        """Return the sum; never less than nothing."""
        return Amount(
            max(0, self.size_bytes + other.size_bytes), max(0, self.entries + other.entries)
        )

    def minus(self, other: Amount) -> Amount:
        """Return the difference; never less than nothing."""
        return self.plus(Amount(-other.size_bytes, -other.entries))


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a store may hold.

    Attributes:
        max_size: Bytes of all files of all entries; ``None`` for no limit.
        max_entries: Number of entries; ``None`` for no limit.
    """

    max_size: int | None = None
    max_entries: int | None = None

    def are_passed(self, held: Amount, share: float = 1.0) -> bool:
        """Return whether ``held`` is more than ``share`` of a limit.

        A share below 1 is rounded up, so that small limits are used up.
        """
        return any(
            limit is not None
            and number > (math.ceil(share * limit) if share < 1 else share * limit)
            for limit, number in (
                (self.max_size, held.size_bytes),
                (self.max_entries, held.entries),
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Return the limits as a JSON object."""
        return {"max_size": self.max_size, "max_entries": self.max_entries}


def current_limits() -> Limits:
    """Return the limits that the settings ``max_size`` and ``max_entries`` say.

    Raises:
        ConfigError: A setting has a wrong value.
    """
    return Limits(config.max_size, config.max_entries)
