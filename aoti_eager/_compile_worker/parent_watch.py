"""A process that ends a worker when its script has ended, however busy the machine is (Linux).

A worker has the lowest priority, and imports torch before it reads a request. Where all cores are
busy, the worker would notice its script's end only after minutes, and later still where C++ code
keeps the interpreter's lock. So the worker forks a watcher before it imports anything: a process
without torch, in a session of its own, which has the script's priority. The watcher sleeps until
the script or the worker ends. A worker that its script has released (``linger``) is left alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from pathlib import Path

from .._base import scheduling
from .._base.store_marker import is_marked
from .._base.trusted_files import open_directory
from .._store.work_directories import remove_scratch, remove_work_of

# A worker that reads its requests has so many seconds to end by itself, with the script's priority;
# then it is killed.
GRACE_S = 5.0
# The watcher's name in the system's lists.
NAME = "aoti-watch"
_READY, _LET_GO = b"r", b"l"
# Bytes of requests that may lie unread.
_MOST_UNREAD = 1 << 20


class ParentWatch:
    """The worker's end of the pipe to its watcher; there may be no watcher.

    Args:
        pipe: What is written to; ``None`` without a watcher.
        watcher: The watcher's process number.
    """

    def __init__(self, pipe: int | None, watcher: int | None = None) -> None:
        self._pipe = pipe
        self._watcher = watcher

    def ready(self) -> None:
        """Tell the watcher that this process reads its requests and notices its script's end."""
        self._tell(_READY)

    def let_go(self) -> None:
        """Tell the watcher to end: this process continues without its script."""
        self._tell(_LET_GO)

    def end(self) -> None:
        """Tell the watcher to end and wait for it: a script that is init would keep a zombie."""
        self._tell(_LET_GO)
        if self._watcher is not None:
            with contextlib.suppress(OSError):
                os.waitpid(self._watcher, 0)

    def _tell(self, what: bytes) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # The watcher has been killed.
                os.write(self._pipe, what)


def watch_parent(parent: int, scratch: Path | None) -> ParentWatch:
    """Fork the watcher of this process, which must have no threads yet.

    Args:
        parent: The script's process number.
        scratch: The directory to remove if this process has to be killed.
    """
    try:
        script = os.pidfd_open(parent)
    except ProcessLookupError:
        script = None
    except (AttributeError, OSError):  # The system lacks this, or refuses it.
        return ParentWatch(None)
    if script is not None and os.getppid() != parent:  # The number may be another process's.
        os.close(script)
        script = None
    try:
        pipe, ours = os.pipe()
        worker = os.getpid()
        own_name = _rename(NAME)  # The fork inherits this process's name.
        child = os.fork()
        if child:
            _rename(own_name)
    except OSError:  # The system allows no further process.
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
    """Name this process for the system's lists, and return its former name."""
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
    # The worker's cleaning up and ending take processor time.
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
    """Return whether the worker has ended in time, or was released."""
    while select.select([pipe], [], [], seconds)[0]:
        if os.read(pipe, 1) != _READY:
            return True
    return False


def _is_let_go_of() -> bool:
    """Return whether an unread request of the script asks the worker to continue (``linger``)."""
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
