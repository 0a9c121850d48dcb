"""How this package's own child processes are started."""

from __future__ import annotations

import sys


def child_command(module: str, function: str) -> list[str]:
    """Return the command that runs ``module.function`` with this process's import path.

    The path is set before the first import: a script's directory may hold a ``types.py``, and with
    ``-m`` the current directory would come first.
    """
    path = [entry for entry in sys.path if entry]
    code = f"import sys; sys.path[:] = {path!r}; from {module} import {function}; {function}()"
    return [sys.executable, "-c", code]
