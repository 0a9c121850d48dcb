"""The setting ``tiers``: what a tier is called, where it is, and what it may do."""

from __future__ import annotations

import os
import re
from typing import Any

from .accepted_values import directory
from .data_class import dataclass

_WANTED = (
    "wants stores behind the cache directory, ro:/PATH, rw:/PATH or ro:s3://BUCKET/PREFIX: a list, "
    "or text with commas"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*")
TRUST = ("signed", "any")


@dataclass(frozen=True, slots=True)
class TierName:
    """One tier, taken apart.

    Attributes:
        text: The tier as it stands in the setting.
        place: An absolute path, or a URL of fsspec's.
        is_writable: Whether new kernels are copied there.
        is_remote: Whether the place is a URL, which no call asks.
        trust: For a URL: ``"signed"``, entries that this user or a key of ``trusted_keys`` has
            signed; ``"any"``: whoever can write there may run code as this user.
    """

    text: str
    place: str
    is_writable: bool
    is_remote: bool
    trust: str


def tiers(value: Any) -> tuple[str, ...]:
    """Return the setting's value: tiers in their order, each ``ro:PLACE`` or ``rw:PLACE``.

    A place alone is read-only.

    Raises:
        ValueError: The value says something else; with what is wanted.
    """
    places = value.split(",") if isinstance(value, str) else value
    if not isinstance(places, list | tuple):
        raise ValueError(_WANTED)
    found = []
    for place in places:
        if not isinstance(place, str):
            raise ValueError(_WANTED)
        if place.strip():  # AOTI_EAGER_TIERS= and a comma at the end have an empty place.
            found.append(tier_name(place.strip()))
    if len({one.place for one in found}) != len(found):
        raise ValueError(f"{_WANTED}; each place once")
    return tuple(one.text for one in found)


def tier_name(text: str) -> TierName:
    """Return a tier taken apart.

    Raises:
        ValueError: The text is no tier.
    """
    right, place = (text[:2], text[3:]) if text[:3] in ("ro:", "rw:") else ("ro", text)
    if _URL.fullmatch(place):
        url, _, option = place.partition("#")
        trust = option.removeprefix("trust=") if option else "signed"
        if trust not in TRUST or url.endswith("://"):
            raise ValueError(f"{_WANTED}; a URL may end in #trust=any; got {text!r}")
        url = url.rstrip("/")
        ending = "" if trust == "signed" else f"#trust={trust}"
        return TierName(f"{right}:{url}{ending}", url, right == "rw", True, trust)
    if not (place.startswith("~") or os.path.isabs(place)):
        raise ValueError(f"{_WANTED}; got {text!r}, which is neither an absolute path nor a URL")
    path = str(directory(place))
    return TierName(f"{right}:{path}", path, right == "rw", False, "any")
