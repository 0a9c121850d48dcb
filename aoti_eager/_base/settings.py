"""The settings of the package: names, defaults, accepted values and purpose."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from .amounts import SIZE, parse_size
from .data_class import dataclass

MODES = ("background", "sync", "cache_only", "off")
CPU_TARGETS = ("auto", "native", "x86-64-v2", "x86-64-v3", "x86-64-v4")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name, default, how text becomes a value, and what it is for.

    ``find_default`` computes the default when it is read. ``is_path`` marks paths, which must be
    absolute (or begin with ``~``) in an environment variable and in the config file.
    """

    name: str
    fixed_default: Any
    parse: Callable[[Any], Any]
    doc: str
    find_default: Callable[[], Any] | None = None
    is_path: bool = False

    @property
    def default(self) -> Any:
        """Return the value that holds when nobody has set one."""
        return self.fixed_default if self.find_default is None else self.find_default()

    @property
    def variable(self) -> str:
        """Return the name of the environment variable that sets this setting."""
        return f"AOTI_EAGER_{self.name.upper()}"


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("wants true or false (or 1, 0, yes, no, on, off)")


def _mode(value: Any) -> str:
    if value not in MODES:
        raise ValueError(f"wants one of {', '.join(map(repr, MODES))}")
    return str(value)


def _dynamic(value: Any) -> str | bool:
    text = str(value).strip().lower()
    if text == "auto":
        return "auto"
    if text in ("1", "true", "0", "false"):
        return text in ("1", "true")
    raise ValueError("wants 'auto', True or False")


def _native(value: Any) -> str:
    text = str(int(value)) if isinstance(value, bool) else str(value).strip().lower()
    if text not in ("0", "1", "auto", "background"):
        raise ValueError("wants 0, 1, auto or background")
    return text


def _untested_torch(value: Any) -> str:
    text = str(int(value)) if isinstance(value, bool) else str(value).strip().lower()
    if text not in ("0", "1", "auto"):
        raise ValueError("wants 0, 1 or auto")
    return text


def _cpu_target(value: Any) -> str:
    if value not in CPU_TARGETS:
        raise ValueError(f"wants one of {', '.join(map(repr, CPU_TARGETS))}")
    return str(value)


def _directory(value: Any) -> Path:
    if isinstance(value, str) and not value.strip():
        raise ValueError("wants the path of a directory, got an empty string")
    if not isinstance(value, str | os.PathLike):
        raise ValueError("wants the path of a directory, a str or a Path")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"wants the path of a directory: {error}") from error


def _of_this_user(find: Callable[[str], str]) -> Path | None:
    """Return this package's directory for this user; ``None`` if the user has no home.

    Without a home, platformdirs raises or leaves ``~`` in the path, which would mean a directory
    called ``~`` in whatever directory the script runs.
    """
    try:
        path = Path(find("aoti_eager"))
    except (RuntimeError, OSError, KeyError):
        return None
    return path if path.is_absolute() else None


def user_config_file() -> Path | None:
    """Return the path of the user's config file; ``None`` if the user has no home."""
    directory = _of_this_user(platformdirs.user_config_dir)
    return None if directory is None else directory / "config.toml"


def is_from_the_root(value: Any) -> bool:
    """Return whether a path means the same in every directory, also after ``os.chdir``."""
    text = os.fspath(value)
    return text.startswith("~") or os.path.isabs(text)


def _count(value: Any) -> int:
    wanted = ValueError("wants a whole number of at least 1")
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        raise wanted from None
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise wanted
    return number


def _count_or_auto(value: Any) -> int | str:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    try:
        return _count(value)
    except ValueError:
        raise ValueError("wants 'auto', or a whole number of at least 1") from None


def _is_no_limit(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() == "none")


def _size_or_none(value: Any) -> int | None:
    if _is_no_limit(value):
        return None
    wanted = f"{SIZE}, above 0; or 'none' for no limit"
    try:
        size = parse_size(value)
    except ValueError:
        raise ValueError(wanted) from None
    if size == 0:
        raise ValueError(wanted)
    return size


def _count_or_none(value: Any) -> int | None:
    if _is_no_limit(value):
        return None
    try:
        return _count(value)
    except ValueError:
        raise ValueError("wants a whole number of at least 1, or 'none' for no limit") from None


def _seconds(value: Any) -> float:
    wanted = ValueError("wants a number of seconds above 0")
    try:
        number = float(value) if isinstance(value, str | int) else value
    except (ValueError, OverflowError):
        raise wanted from None
    if isinstance(value, bool) or not isinstance(number, float) or not 0 < number < math.inf:
        raise wanted
    return number


def _seconds_or_none(value: Any) -> float:
    try:
        is_zero = not isinstance(value, bool) and float(value) == 0
    except (TypeError, ValueError, OverflowError):
        is_zero = False
    try:
        return 0.0 if is_zero else _seconds(value)
    except ValueError:
        raise ValueError("wants a number of seconds, or 0") from None


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "mode",
            "background",
            _mode,
            "background runs the original while worker processes compile a missing kernel; sync "
            "compiles it before the call returns; cache_only never compiles; off runs originals",
        ),
        Setting(
            "cache_dir",
            None,
            _directory,
            "directory of the store; created 0700",
            find_default=lambda: _of_this_user(platformdirs.user_cache_dir),
            is_path=True,
        ),
        Setting(
            "max_size",
            5 << 30,
            _size_or_none,
            "most bytes of the store's entries, also as text: 500M, 5G, none; past it, the entries "
            "that were not used for longest go",
        ),
        Setting(
            "max_entries",
            None,
            _count_or_none,
            "most entries of the store, or none for no limit; past it, as for max_size",
        ),
        Setting(
            "cpu_target",
            "auto",
            _cpu_target,
            "instruction set of new kernels: auto is the best level of x86-64 that this CPU has, "
            "elsewhere this very CPU; native is this very CPU; a level is pinned by its name",
        ),
        Setting(
            "gate",
            True,
            _flag,
            "use only kernels that were measured to beat the original on this model of processor",
        ),
        Setting(
            "certified",
            False,
            _flag,
            "serve only ops of torch's that have a certificate of being as exact as eager for "
            "their dtypes; 0 refuses only those that were found wrong",
        ),
        Setting(
            "check",
            True,
            _flag,
            "compare a new library's results with the original's before it serves calls",
        ),
        Setting(
            "recheck",
            True,
            _flag,
            "compare calls that a kernel serves with the original once more: few, and short ones",
        ),
        Setting(
            "rerecord",
            True,
            _flag,
            "record calls of a region that a library serves once more: numbers 2, 4, 8, ... 1024, "
            "and each 1024th",
        ),
        Setting(
            "region_cap",
            8,
            _count,
            "most kinds of calls that one region is recorded for, of all modes; sizes and dtypes "
            "of arguments, and values of attributes, make a kind; calls of further kinds run the "
            "forward, recorded kinds stay served, and the report says what kept changing",
        ),
        Setting(
            "strict",
            False,
            _flag,
            "raise errors of the store and the compile worker instead of warning once",
        ),
        Setting(
            "static_cap",
            64,
            _count,
            "most static specialisations of one op in one process; past it, new keys decline",
        ),
        Setting(
            "dynamic",
            "auto",
            _dynamic,
            "kernels for several sizes: auto compiles one when sizes change, true at once, false "
            "never, and uses none",
        ),
        Setting(
            "dynamic_cap",
            32,
            _count,
            "most dynamic specialisations of one op in one process; past it, kernels are static",
        ),
        Setting(
            "compile_after",
            "auto",
            _count_or_auto,
            "calls of a key until its kernel is asked for in the background: auto goes by the time "
            "that its calls take, never at the first; sync compiles at the first call",
        ),
        Setting(
            "native",
            "auto",
            _native,
            "the C++ hit path, built once a machine: auto waits up to 10 s for it at register, 1 "
            "as long as it takes, background not at all, and 0 serves from Python",
        ),
        Setting(
            "untested_torch",
            "auto",
            _untested_torch,
            "a release of torch that this package was not checked with: auto serves once a "
            "self-test in another process has passed, 1 without a self-test, 0 not at all",
        ),
        Setting(
            "workers",
            1,
            _count,
            "most compile worker processes at a time: that calls wait for, and as many others",
        ),
        Setting(
            "compile_timeout_s",
            300.0,
            _seconds,
            "seconds until a compile is given up and its worker killed, waits for a core left out",
        ),
        Setting(
            "lock_timeout_s",
            330.0,
            _seconds,
            "seconds to wait for another process that compiles the same key",
        ),
        Setting(
            "linger_s",
            30.0,
            _seconds_or_none,
            "seconds that a worker may go on after the script's end, to finish the kernel that it "
            "is making; 0 ends it with the script",
        ),
    )
}
