"""A process that ends a worker when its script has ended, however busy the machine is (Linux).

A worker is behind everything else, and imports torch before it reads a request: where all cores are
taken, it finds out after minutes that nobody is there any more, and longer where code in C++ keeps
the interpreter's lock. So it forks a watcher before it imports anything: a process without torch,
in a session of its own, which has the script's priority. It sleeps until the script or the worker
ends. A worker that was let go of by its script (``linger``) is left alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from pathlib import Path

from .._base import scheduling
from .._base.store_format import is_marked
from .._base.trusted_files import open_directory
from .._store.work_directories import remove_scratch, remove_work_of

# Seconds that a worker has, once it reads its requests, to end by itself, with the script's
# priority; then it is killed.
GRACE_S = 5.0
# What the system calls it.
NAME = "aoti-watch"
_READY, _LET_GO = b"r", b"l"
# Bytes of requests that may lie unread.
_MOST_UNREAD = 1 << 20


class ParentWatch:
    """The worker's end of the pipe to its watcher; there may be no watcher.

    Args:
        pipe: What is written to; ``None`` without a watcher.
        watcher: Its process number.
    """

    def __init__(self, pipe: int | None, watcher: int | None = None) -> None:
        self._pipe = pipe
        self._watcher = watcher

    def ready(self) -> None:
        """Tell it that this process reads its requests now, and notices its script's end."""
        self._tell(_READY)

    def let_go(self) -> None:
        """Have it end: this process goes on without its script."""
        self._tell(_LET_GO)

    def end(self) -> None:
        """Have it end and wait for that: a script that is init would be left with a zombie."""
        self._tell(_LET_GO)
        if self._watcher is not None:
            with contextlib.suppress(OSError):
                os.waitpid(self._watcher, 0)

    def _tell(self, what: bytes) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # It has been killed.
                os.write(self._pipe, what)


def watch_parent(parent: int, scratch: Path | None) -> ParentWatch:
    """Fork the watcher of this process, which must have no threads yet.

    Args:
        parent: The script's process number.
        scratch: What is removed if this process has to be killed.
    """
    try:
        script = os.pidfd_open(parent)
    except ProcessLookupError:
        script = None
    except (AttributeError, OSError):  # Another system, or one that refuses this.
        return ParentWatch(None)
    if script is not None and os.getppid() != parent:  # The number is another's by now.
        os.close(script)
        script = None
    try:
        pipe, ours = os.pipe()
        worker = os.getpid()
        own_name = _rename(NAME)  # Its command is this process's.
        child = os.fork()
        if child:
            _rename(own_name)
    except OSError:  # No room for another process.
        return ParentWatch(None)
    if child == 0:
        try:
            _watch(worker, script, pipe, scratch)
        finally:
            os._exit(0)
    os.close(pipe)
    if script is not None:
        os.close(script)
    return ParentWatch(ours, child)


def _rename(name: str) -> str:
    """Name this process for the system's lists, and return what it was called."""
    comm = Path("/proc/self/comm")
    before = comm.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
    comm.write_text(name, encoding="utf-8", errors="surrogateescape")
    return before


def _watch(worker: int, script: int | None, pipe: int, scratch: Path | None) -> None:
    os.setsid()
    _close_all_but(0, script, pipe)
    grace_s = 0.0
    while script is not None:
        ready, _, _ = select.select([script, pipe], [], [])
        if pipe in ready:
            if os.read(pipe, 1) != _READY:
                return
            grace_s = GRACE_S
        elif script in ready:
            break
    if _is_let_go_of():
        return
    # What it does to end, and dying itself, takes time on a processor.
    scheduling.set_group_nice(worker, 0)
    if _hears(pipe, grace_s):
        return
    if os.getppid() == worker:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)
    _hears(pipe, None)
    if scratch is not None:
        remove_scratch(scratch)
        with contextlib.suppress(OSError), open_directory(scratch.parent.parent) as root:
            if is_marked(root):
                remove_work_of(worker, root)


def _hears(pipe: int, seconds: float | None) -> bool:
    """Return whether the worker has ended in time, or was let go of."""
    while select.select([pipe], [], [], seconds)[0]:
        if os.read(pipe, 1) != _READY:
            return True
    return False


def _is_let_go_of() -> bool:
    """Return whether the script has asked the worker to go on, and that was not read yet."""
    try:
        with socket.socket(fileno=os.dup(0)) as requests:
            unread = requests.recv(_MOST_UNREAD, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    return b'"kind": "linger"' in unread[-1000:]


def _close_all_but(*kept: int | None) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
