"""Sets how much of the processor a process session beside a script gets. Linux first.

A session is what ``setsid`` begins: a worker with its compilers, or a build. Linux groups processes
for scheduling by session (``sched_autogroup``) and shares a core among groups by each group's own
nice value; a process's nice value counts within its group only. So a session behind a script needs
both nice values. A process's nice value cannot be lowered again without rights; a group's can, ten
times a second in the whole machine.

Where there are no such groups (the feature is off, a control group has a CPU controller, macOS),
the nice value of the processes counts, and a session keeps the value that its processes have.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# Beside a process with nice value 0 on the same core, a process with this value gets 1.5 percent.
LOWEST = 19
# Beside a process with nice value 0 on the same core, a process with this value gets a tenth.
BEHIND = 10
_ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
_PROC = Path("/proc")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
# The control group namespace that the system starts with.
_FIRST_NAMESPACE = "cgroup:[4026531835]"


def has_groups() -> bool:
    """Return whether Linux shares cores among sessions, and not among processes.

    Processes in a control group with a CPU controller get their share by that group instead.
    """
    try:
        if _ENABLED.read_text(encoding="ascii").strip() != "1":
            return False
        lines = (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        namespace = os.readlink(_PROC / "self" / "ns" / "cgroup")
    except OSError:
        return False
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            # In another namespace, the path of any control group may be "/".
            return path == "/" and namespace == _FIRST_NAMESPACE
        if not controllers and _is_weighed(path):
            return False
    return True


def _is_weighed(path: str) -> bool:
    """Return whether a control group of version 2, or one above it, has a CPU controller."""
    directory = _CONTROL_GROUPS
    for name in ("", *path.strip("/").split("/")):
        directory /= name
        if (directory / "cpu.weight").exists():
            return True
    return False


def give_way(session: int) -> bool:
    """Put a session behind everything else: it gets cores that nobody wants, and little more.

    Does nothing where Linux has no groups, because ``_compile_service.share`` could give the
    session no windows there: a process's nice value cannot be lowered again.

    Args:
        session: Number of the session's first process, which is also its process group's number.

    Returns:
        Whether the system has accepted the change.
    """
    if not has_groups():
        return True
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, session, LOWEST)
    return set_group_nice(session, LOWEST)


def set_group_nice(session: int, nice: int) -> bool:
    """Set the nice value of a session's group, and return whether the system has accepted it.

    Unless root makes it, the system refuses a change less than 0.1 s after another change.

    Args:
        session: Number of a process in the session.
        nice: From 0, a script's own value, to 19.
    """
    try:
        (_PROC / str(session) / "autogroup").write_text(str(nice), encoding="ascii")
    except OSError:
        return False
    return True


def is_there(session: int) -> bool:
    """Return whether a process still exists: it runs, or its parent has not waited for it yet."""
    return (_PROC / str(session)).exists()


def process_times(session: int) -> dict[int, tuple[int, int]]:
    """Return how long a process and its descendants have run, and have waited for a core.

    Only main threads are read: each read of a file lets another thread have the interpreter, and
    that thread may be the script. The result is empty where the system does not say.

    Returns:
        Process number -> nanoseconds run, nanoseconds waited.
    """
    times = {}
    found = [session]
    proc = str(_PROC)  # Joining paths by ``Path`` takes as long as reading the files.
    for process in found:  # The list grows while the loop runs.
        with contextlib.suppress(ValueError, IndexError):
            words = _read(f"{proc}/{process}/schedstat").split()
            times[process] = int(words[0]), int(words[1])
            children = _read(f"{proc}/{process}/task/{process}/children")
            found += [int(child) for child in children.split()]
    return times


def waits(session: int) -> tuple[int, int]:
    """Return the sums of ``process_times`` over a session's processes; zeros where unknown."""
    times = process_times(session).values()
    return sum(run for run, _ in times), sum(waited for _, waited in times)


def _read(path: str) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(file, 4096)
    except OSError:
        return b""
    finally:
        os.close(file)
