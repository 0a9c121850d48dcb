"""The values that settings accept: each function turns text or a value into what a setting holds.

Each raises ValueError with what is wanted.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

from .amounts import SIZE, parse_size

MODES = ("background", "sync", "cache_only", "recache", "off")
_PUBLIC_KEY = re.compile(r"ed25519:[A-Za-z0-9+/]{43}=")
CPU_TARGETS = ("auto", "native", "x86-64-v2", "x86-64-v3", "x86-64-v4")


def flag(value: Any) -> bool:
    """Return true or false."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("wants true or false (or 1, 0, yes, no, on, off)")


def mode(value: Any) -> str:
    """Return one of ``MODES``."""
    if value not in MODES:
        raise ValueError(f"wants one of {', '.join(map(repr, MODES))}")
    return str(value)


def dynamic(value: Any) -> str | bool:
    """Return ``'auto'``, true or false."""
    text = str(value).strip().lower()
    if text == "auto":
        return "auto"
    if text in ("1", "true", "0", "false"):
        return text in ("1", "true")
    raise ValueError("wants 'auto', True or False")


def native(value: Any) -> str:
    """Return ``0``, ``1``, ``auto`` or ``background``, as text."""
    text = str(int(value)) if isinstance(value, bool) else str(value).strip().lower()
    if text not in ("0", "1", "auto", "background"):
        raise ValueError("wants 0, 1, auto or background")
    return text


def untested_torch(value: Any) -> str:
    """Return ``0``, ``1`` or ``auto``, as text."""
    text = str(int(value)) if isinstance(value, bool) else str(value).strip().lower()
    if text not in ("0", "1", "auto"):
        raise ValueError("wants 0, 1 or auto")
    return text


def cpu_target(value: Any) -> str:
    """Return one of ``CPU_TARGETS``."""
    if value not in CPU_TARGETS:
        raise ValueError(f"wants one of {', '.join(map(repr, CPU_TARGETS))}")
    return str(value)


def directory(value: Any) -> Path:
    """Return an absolute path."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("wants the path of a directory, got an empty string")
    if not isinstance(value, str | os.PathLike):
        raise ValueError("wants the path of a directory, a str or a Path")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"wants the path of a directory: {error}") from error


def count(value: Any) -> int:
    """Return a whole number of at least 1."""
    wanted = ValueError("wants a whole number of at least 1")
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        raise wanted from None
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise wanted
    return number


def count_or_auto(value: Any) -> int | str:
    """Return a whole number of at least 1, or ``'auto'``."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    try:
        return count(value)
    except ValueError:
        raise ValueError("wants 'auto', or a whole number of at least 1") from None


def is_no_limit(value: Any) -> bool:
    """Return whether a value says that there is no limit."""
    return value is None or (isinstance(value, str) and value.strip().lower() == "none")


def size_or_none(value: Any) -> int | None:
    """Return a number of bytes; ``None`` for no limit."""
    if is_no_limit(value):
        return None
    wanted = f"{SIZE}, above 0; or 'none' for no limit"
    try:
        size = parse_size(value)
    except ValueError:
        raise ValueError(wanted) from None
    if size == 0:
        raise ValueError(wanted)
    return size


def count_or_none(value: Any) -> int | None:
    """Return a whole number of at least 1; ``None`` for no limit."""
    if is_no_limit(value):
        return None
    try:
        return count(value)
    except ValueError:
        raise ValueError("wants a whole number of at least 1, or 'none' for no limit") from None


def seconds(value: Any) -> float:
    """Return a number of seconds above 0."""
    wanted = ValueError("wants a number of seconds above 0")
    try:
        number = float(value) if isinstance(value, str | int) else value
    except (ValueError, OverflowError):
        raise wanted from None
    if isinstance(value, bool) or not isinstance(number, float) or not 0 < number < math.inf:
        raise wanted
    return number


def seconds_or_none(value: Any) -> float:
    """Return a number of seconds, or 0."""
    try:
        is_zero = not isinstance(value, bool) and float(value) == 0
    except (TypeError, ValueError, OverflowError):
        is_zero = False
    try:
        return 0.0 if is_zero else seconds(value)
    except ValueError:
        raise ValueError("wants a number of seconds, or 0") from None


def public_keys(value: Any) -> tuple[str, ...]:
    """Return public keys, sorted, each once."""
    keys = value.replace(",", " ").split() if isinstance(value, str) else value
    wanted = "wants public keys as keygen prints them, ed25519:...: a list, or text with commas"
    if not isinstance(keys, list | tuple | set | frozenset):
        raise ValueError(wanted)
    if not all(isinstance(key, str) and _PUBLIC_KEY.fullmatch(key) for key in keys):
        raise ValueError(wanted)
    return tuple(sorted(set(keys)))
