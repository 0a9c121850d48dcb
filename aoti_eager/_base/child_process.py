"""How this package's own child processes are started."""

from __future__ import annotations

import sys

# Flags of ``sys.flags`` that decide which code an interpreter runs before ours -> their options.
_FLAGS = {
    "isolated": "-I",
    "ignore_environment": "-E",
    "no_user_site": "-s",
    "no_site": "-S",
    "safe_path": "-P",  # Python 3.11
    "dont_write_bytecode": "-B",
}


# Most bytes of a compile worker's reply to one request; a longer reply is not trusted.
LONGEST_ANSWER = 1 << 20


def interpreter_options() -> list[str]:
    """Return the options with which a child's interpreter starts as this process's did.

    The options are those that decide which code runs at the start (``-I``, ``-E``, ``-s``, ``-S``,
    ``-P``), ``-B`` and ``-X utf8``: a user who keeps PYTHONPATH out of a process wants it kept out
    of the children, too. ``-W`` and ``-O`` are not passed on: they are about the script's own code.
    """
    options = [option for flag, option in _FLAGS.items() if getattr(sys.flags, flag, False)]
    return [*options, "-X", f"utf8={sys.flags.utf8_mode}"]


def child_command(module: str, function: str) -> list[str]:
    """Return the command that runs ``module.function`` with this process's import path.

    The path is set before the first import: a script's directory may hold a ``types.py``, and with
    ``-m`` the current directory would come first. The import runs without garbage collections: it
    makes no garbage, and collections are a tenth of the import of torch.
    """
    path = [entry for entry in sys.path if entry]
    code = (
        f"import gc, sys; sys.path[:] = {path!r}; gc.disable(); from {module} import {function}; "
        f"gc.freeze(); gc.enable(); {function}()"
    )
    return [sys.executable, *interpreter_options(), "-c", code]
