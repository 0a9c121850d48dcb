"""How much of the processor a process session gets that works beside a script. Linux first.

A session is what ``setsid`` begins: a worker with its compilers, or a build. Linux groups processes
for scheduling by session (``sched_autogroup``), and shares a core among groups by each group's own
nice value: a nice value of a process counts within its group only. So a session behind a script
needs both. The nice value of a process cannot be lowered again without rights; that of a group can,
ten times a second in the whole machine.

Where there are no groups (the feature is off, a container with a CPU controller, macOS), the nice
value of the processes is what counts.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# Of a core that a process with nice value 0 uses, it leaves one and a half percent.
LOWEST = 19
_ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
_PROC = Path("/proc")


def give_way(session: int) -> None:
    """Put a session behind everything else: it has what cores nobody wants, and little more.

    Args:
        session: Number of the session's first process, whose process group it is, too.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, session, LOWEST)
    set_group_nice(session, LOWEST)


def has_groups() -> bool:
    """Return whether Linux shares cores among sessions, and not among processes."""
    try:
        return _ENABLED.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def set_group_nice(session: int, nice: int) -> bool:
    """Set the nice value of a session's group, and return whether the system has taken it.

    The system refuses what comes less than 0.1 s after another change, by anybody.

    Args:
        session: Number of a process in it.
        nice: From 0, as much as a script's, to 19.
    """
    try:
        (_PROC / str(session) / "autogroup").write_text(str(nice), encoding="ascii")
    except OSError:
        return False
    return True


def waits(session: int) -> tuple[int, int]:
    """Return how long a session's processes have run, and have waited for a core, in nanoseconds.

    Zeros where the system does not say.
    """
    run = waited = 0
    for process in _descendants(session):
        for thread in _names(_PROC / str(process) / "task"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                found = (_PROC / str(process) / "task" / thread / "schedstat").read_text().split()
                run, waited = run + int(found[0]), waited + int(found[1])
    return run, waited


def _descendants(process: int) -> list[int]:
    found = [process]
    for parent in found:  # The list grows meanwhile.
        for thread in _names(_PROC / str(parent) / "task"):
            with contextlib.suppress(OSError, ValueError):
                children = (_PROC / str(parent) / "task" / thread / "children").read_text()
                found += [int(child) for child in children.split()]
    return found


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
