"""Which ops a script's second run leaves out: those all of whose kernels lose on this processor.

``_workloads.left_out`` has the rule and counts the runs; this module says which script runs, and
counts its run when the process ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from .._base.at_exit import at_exit
from .._base.data_class import dataclass
from .._base.torch_compat.dispatcher import OpOverload
from .._base.warn_once import log
from .._compile_service import cache_context
from .._workloads import left_out
from ..config import config
from ..errors import AotiEagerError


@dataclass(frozen=True, slots=True)
class Script:
    """A script: its text and its arguments."""

    text: bytes
    arguments: tuple[str, ...]


def main_script() -> Script | None:
    """Return the script that this process runs; ``None`` if there is no file of it."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(path, str):
        return None
    try:
        return Script(Path(path).read_bytes(), tuple(sys.argv[1:]))
    except OSError:
        return None


def without_losing(
    ops: Mapping[str, OpOverload], script: Script
) -> tuple[dict[str, OpOverload], str | None]:
    """Return ``ops`` without those that a run of ``script`` need not register, and its digest.

    The digest is for ``count_at_end``; ``None`` where nothing is known of runs.
    """
    try:
        context = cache_context.current()
        # The choice belongs to the run: an op that was not registered has met no calls.
        run = left_out.run_digest(script.text, ["enable", *script.arguments, *sorted(ops)], context)
        left_out.leave_out(list(ops), run, context)
    except (AotiEagerError, OSError) as error:
        log.info("no op is left out: %s", error)  # A miss will warn.
        return dict(ops), None
    if left_out.left_out:
        log.info("left out, as all their kernels lose here: %s", ", ".join(left_out.left_out))
    return {name: op for name, op in ops.items() if name not in left_out.left_out}, run


# The process and the run that is counted at its end.
_counted: list[tuple[int, str | None]] = [(0, None)]
_is_counting = False


def count_at_end(run: str | None) -> None:
    """Count a run when the process ends, in place of the one that was to be counted so far.

    Args:
        run: Its digest; ``None`` to count none.
    """
    global _is_counting
    _counted[:] = [(os.getpid(), run)]
    if run is not None and not _is_counting:
        _is_counting = True
        at_exit(_count)


def _count() -> None:
    """Count the run if the script has come to its end, so that all its calls were met.

    ``sys.exit`` is an end, whatever the status: Python does not tell exit handlers.
    """
    (pid, run), root = _counted[0], config.cache_dir
    # ``last_value`` is there after an error of the script.
    if run is None or os.getpid() != pid or hasattr(sys, "last_value"):
        return
    if config.mode not in ("background", "sync") or root is None or not root.is_dir():
        return
    try:
        cache_context.current().store.create()
        left_out.note_run(run, root, looked=not left_out.left_out)
    except OSError as error:
        log.info("the run is not counted: %s", error)
