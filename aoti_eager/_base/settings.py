"""The settings of the package: names, defaults, accepted values and purpose."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from . import accepted_values as accepted
from .data_class import dataclass
from .tier_names import tiers


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


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "mode",
            "background",
            accepted.mode,
            "background runs the original while worker processes compile a missing kernel; sync "
            "compiles it before the call returns; cache_only never compiles; recache is background "
            "and makes every kernel anew; off runs originals",
        ),
        Setting(
            "cache_dir",
            None,
            accepted.directory,
            "directory of the store; created 0700",
            find_default=lambda: _of_this_user(platformdirs.user_cache_dir),
            is_path=True,
        ),
        Setting(
            "max_size",
            5 << 30,
            accepted.size_or_none,
            "most bytes of the store's entries, also as text: 500M, 5G, none; past it, the entries "
            "that were not used for longest go",
        ),
        Setting(
            "max_entries",
            None,
            accepted.count_or_none,
            "most entries of the store, or none for no limit; past it, as for max_size",
        ),
        Setting(
            "tiers",
            (),
            tiers,
            "stores behind the cache directory, in order: ro:/PATH or rw:/PATH, or a URL such as "
            "ro:s3://BUCKET/PREFIX",
        ),
        Setting(
            "trusted_keys",
            (),
            accepted.public_keys,
            "public keys of those whose bundles and remote entries are loaded, as keygen prints "
            "them, ed25519:...",
        ),
        Setting(
            "cpu_target",
            "auto",
            accepted.cpu_target,
            "instruction set of new kernels: auto is the best level of x86-64 that this CPU has, "
            "elsewhere this very CPU; native is this very CPU; a level is pinned by its name",
        ),
        Setting(
            "gate",
            True,
            accepted.flag,
            "use only kernels that were measured to beat the original on this model of processor",
        ),
        Setting(
            "certified",
            False,
            accepted.flag,
            "serve only ops of torch's that have a certificate of being as exact as eager for "
            "their dtypes; 0 refuses only those that were found wrong",
        ),
        Setting(
            "check",
            True,
            accepted.flag,
            "compare a new library's results with the original's before it serves calls",
        ),
        Setting(
            "recheck",
            True,
            accepted.flag,
            "compare calls that a kernel serves with the original once more: few, and short ones",
        ),
        Setting(
            "rerecord",
            True,
            accepted.flag,
            "record calls of a region that a library serves once more: numbers 2, 4, 8, ... 1024, "
            "and each 1024th",
        ),
        Setting(
            "region_cap",
            8,
            accepted.count,
            "most kinds of calls that one region is recorded for, of all modes; sizes and dtypes "
            "of arguments, and values of attributes, make a kind; calls of further kinds run the "
            "forward, recorded kinds stay served, and the report says what kept changing",
        ),
        Setting(
            "strict",
            False,
            accepted.flag,
            "raise errors of the store and the compile worker instead of warning once",
        ),
        Setting(
            "static_cap",
            64,
            accepted.count,
            "most static specialisations of one op in one process; past it, new keys decline",
        ),
        Setting(
            "dynamic",
            "auto",
            accepted.dynamic,
            "kernels for several sizes: auto compiles one when sizes change, true at once, false "
            "never, and uses none",
        ),
        Setting(
            "dynamic_cap",
            32,
            accepted.count,
            "most dynamic specialisations of one op in one process; past it, kernels are static",
        ),
        Setting(
            "compile_after",
            "auto",
            accepted.count_or_auto,
            "calls of a key until its kernel is asked for in the background: auto goes by the time "
            "that its calls take, never at the first; sync compiles at the first call",
        ),
        Setting(
            "native",
            "auto",
            accepted.native,
            "the C++ hit path, built once a machine: auto waits up to 10 s for it at register, 1 "
            "as long as it takes, background not at all, and 0 serves from Python",
        ),
        Setting(
            "untested_torch",
            "auto",
            accepted.untested_torch,
            "a release of torch that this package was not checked with: auto serves once a "
            "self-test in another process has passed, 1 without a self-test, 0 not at all",
        ),
        Setting(
            "workers",
            1,
            accepted.count,
            "most compile worker processes at a time: that calls wait for, and as many others",
        ),
        Setting(
            "compile_timeout_s",
            300.0,
            accepted.seconds,
            "seconds until a compile is given up and its worker killed, waits for a core left out",
        ),
        Setting(
            "lock_timeout_s",
            330.0,
            accepted.seconds,
            "seconds to wait for another process that compiles the same key",
        ),
        Setting(
            "linger_s",
            30.0,
            accepted.seconds_or_none,
            "seconds that a worker may go on after the script's end, to finish the kernel that it "
            "is making; 0 ends it with the script",
        ),
    )
}
