"""Generated Python: run under a name of its own, so that tracebacks show its lines."""

from __future__ import annotations

import linecache
from typing import Any


def run_generated(source: str, name: str, names: dict[str, Any]) -> None:
    """Execute ``source`` in the namespace ``names``.

    Args:
        source: Python source text.
        name: What the text is, for tracebacks: ``<aoti_eager NAME>`` is its file.
        names: Global names of the text; what the text defines is added.
    """
    file = f"<aoti_eager {name}>"
    # Without a time of change, linecache takes the lines for those of a loader and keeps them.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), names)  # noqa: S102
