"""Runs generated Python under a file name of its own, so that tracebacks show its lines."""

from __future__ import annotations

import linecache
from typing import Any


def run_generated(source: str, name: str, names: dict[str, Any]) -> None:
    """Execute ``source`` in the namespace ``names``.

    Args:
        source: Python source text.
        name: What the text is; tracebacks show it as the file ``<aoti_eager NAME>``.
        names: Global names for the text; names that the text defines are added.
    """
    file = f"<aoti_eager {name}>"
    # None for the time of change: linecache then treats the lines as a loader's, and keeps them.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), names)  # noqa: S102
