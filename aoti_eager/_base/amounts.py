"""Sizes and ages as people write them: ``5G`` is bytes, ``7d`` is seconds.

The units of sizes are those of GNU's tools: ``K``, ``M``, ``G`` and ``T`` are powers of 1024, with
or without ``iB`` behind them; ``KB``, ``MB``, ``GB`` and ``TB`` are powers of 1000.
"""

from __future__ import annotations

import re

SIZE = "wants bytes, or text such as 500M or 5G"
AGE = "wants an age such as 30m, 12h or 7d"

_NUMBER = r"(?P<number>[0-9]{1,18}(\.[0-9]{1,9})?)\s*"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
# More than any disk has, and little enough for every file system's counters.
_LARGEST = 1 << 62
_LONGEST_S = 1e11


def parse_size(value: object) -> int:
    """Return a number of bytes, at least 0: ``value`` itself, or what the text says.

    Raises:
        ValueError: ``value`` is no size; the message says what is wanted.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        size = _size_in(value) if isinstance(value, str) else -1
    if not 0 <= size <= _LARGEST:
        raise ValueError(SIZE)
    return size


def _size_in(text: str) -> int:
    match = re.fullmatch(_NUMBER + r"(?P<power>[kmgt]?)(?P<base>i?b)?", text.strip().lower())
    if match is None or (match["base"] == "ib" and not match["power"]):
        return -1
    base = 1000 if match["base"] == "b" and match["power"] else 1024
    unit = base ** _POWERS[match["power"]]
    number = match["number"]
    return int(float(number) * unit) if "." in number else int(number) * unit


def parse_age(value: object) -> float:
    """Return a number of seconds, at least 0: ``value`` itself, or what the text says.

    Text needs a unit: ``s``, ``m``, ``h``, ``d`` or ``w``.

    Raises:
        ValueError: ``value`` is no age; the message says what is wanted.
    """
    age = -1.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        age = float(value) if abs(value) <= _LONGEST_S else -1.0
    elif isinstance(value, str):
        match = re.fullmatch(_NUMBER + r"(?P<unit>[smhdw])", value.strip().lower())
        if match is not None:
            age = float(match["number"]) * _UNIT_S[match["unit"]]
    if not 0 <= age <= _LONGEST_S:
        raise ValueError(AGE)
    return age


def size_in_words(size_bytes: int) -> str:
    """Return a number of bytes for people: ``812 bytes``, ``1.5 MiB``."""
    size, unit = float(size_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
