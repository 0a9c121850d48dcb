"""``config``: every setting, its value and where the value came from."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from .._base.amounts import size_in_words
from .._base.printable import printable
from .._base.settings import SETTINGS
from ..config import config
from ..errors import ConfigError
from .columns import show

_WIDTH = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``config``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="one setting, with its purpose")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache-dir", help="the cache's directory")


def main(namespace: argparse.Namespace) -> int:
    """Run ``config``; return its exit status: 1 if a setting's value is refused.

    Raises:
        ConfigError: There is no setting of that name.
    """
    names = sorted(SETTINGS) if namespace.name is None else [_known(namespace.name)]
    found = [_described(name) for name in names]
    if namespace.json:
        print(json.dumps(found if namespace.name is None else found[0]))
    elif namespace.name is None:
        rows = [(one["name"], _short(one), one["source"]) for one in found]
        show([("setting", "value", "from"), *rows], left=(0, 1, 2))
    else:
        (one,) = found
        print(printable(f"{one['name']} = {_short(one)}"))
        print(printable(f"  from      {one['source']}"))
        print(printable(f"  default   {_text(one['name'], one['default'])}"))
        print(printable(f"  variable  {one['variable']}"))
        print(textwrap.indent(textwrap.fill(one["purpose"], _WIDTH - 2), "  "))
    return 1 if any("error" in one for one in found) else 0


def _known(name: str) -> str:
    short = name.removeprefix("AOTI_EAGER_").lower()
    if short not in SETTINGS:
        # The message names settings that are written alike.
        config.source(name)
        raise ConfigError(f"{name}: no such setting")
    return short


def _described(name: str) -> dict[str, Any]:
    setting = SETTINGS[name]
    one: dict[str, Any] = {"name": name, "variable": setting.variable, "purpose": setting.doc}
    one["default"] = _plain(setting.default)
    try:
        value, source = config.lookup(name)
    except ConfigError as error:
        return one | {"value": None, "source": "refused", "error": str(error)}
    return one | {"value": _plain(value), "source": source}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple | frozenset) else value


def _short(one: dict[str, Any]) -> str:
    return one["error"] if "error" in one else _text(one["name"], one["value"])


def _text(name: str, value: Any) -> str:
    """Return a value as a variable or the config file would have it."""
    if value is None:
        return "none"
    if name == "max_size":
        return size_in_words(value)
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return str(value)
