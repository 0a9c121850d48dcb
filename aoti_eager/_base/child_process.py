"""How this package's own child processes are started."""

from __future__ import annotations

import sys

# Each flag that decides which code an interpreter runs before ours, with its option.
_FLAGS = {
    "isolated": "-I",
    "ignore_environment": "-E",
    "no_user_site": "-s",
    "no_site": "-S",
    "safe_path": "-P",  # Python 3.11
    "dont_write_bytecode": "-B",
}


# Bytes of what a compile worker may answer to one request; who says more is not believed.
LONGEST_ANSWER = 1 << 20


def interpreter_options() -> list[str]:
    """Return the options that have a child's interpreter start as this process's did.

    They are those that decide which code runs at the start (``-I``, ``-E``, ``-s``, ``-S``,
    ``-P``), ``-B`` and ``-X utf8``: who wants nothing of PYTHONPATH run wants that of children,
    too. Not ``-W`` and ``-O``, which are about the script's own code.
    """
    options = [option for flag, option in _FLAGS.items() if getattr(sys.flags, flag, False)]
    return [*options, "-X", f"utf8={sys.flags.utf8_mode}"]


def child_command(module: str, function: str) -> list[str]:
    """Return the command that runs ``module.function`` with this process's import path.

    The path is set before the first import: a script's directory may hold a ``types.py``, and with
    ``-m`` the current directory would come first.
    """
    path = [entry for entry in sys.path if entry]
    code = f"import sys; sys.path[:] = {path!r}; from {module} import {function}; {function}()"
    return [sys.executable, *interpreter_options(), "-c", code]
