"""Work in progress in a cache directory: made, held while its process lives, swept afterwards.

Each compile has a directory of its own, ``tmp/<host>-<pid>-<random>``. The process that makes a
directory holds a lock on it; the lock ends with the process, however the process ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from .._base.file_lock import hold, is_locked
from .._base.store_format import children
from .._base.store_marker import is_marked, remove_marked
from .._base.store_removal import remove
from .._base.trusted_files import Directory, open_directory

# A work directory of another host, whose processes we cannot ask about, is left alone this long.
_FOREIGN_WORK_AGE_S = 24 * 3600.0
# A work directory of this host, on a file system without locks, is left alone this long: hosts may
# share a name, and a container has process numbers of its own.
_UNLOCKED_WORK_AGE_S = 3600.0

# The environment variable that tells a worker its scratch.
SCRATCH_VARIABLE = "_AOTI_EAGER_SCRATCH"
_PREFIX = "aoti-eager-worker-"

_NAME = r"(?P<host>.+)-(?P<pid>[0-9]+)-[0-9a-f]{12}"


class WorkDirectory:
    """A new empty directory below an open store's ``tmp``, 0700.

    Args:
        root: The open store.

    Attributes:
        path: Where the directory lies.
        name: The directory's name in ``tmp``.

    Raises:
        OSError: The directory cannot be made.
        UntrustedFileError: ``tmp`` is a link, or others can write to it.
    """

    def __init__(self, root: Directory) -> None:
        self.name = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.path = root.path / "tmp" / self.name
        with root.directory("tmp", create=True) as tmp:
            self._held = tmp.directory(self.name, create=True)
        self._identity = _identity(self._held.fd)
        hold(self._held.fd)  # Without locks, the process's number in the name has to do.

    @property
    def descriptor(self) -> int | None:
        """Return the descriptor that holds the lock, for a child to inherit; ``None`` if closed.

        A script that becomes a daemon closes all descriptors, and may have used the number again.
        """
        return self._held.fd if _identity(self._held.fd) == self._identity else None

    def close(self, root: Directory) -> None:
        """Remove the directory with its content; the next sweep removes what cannot be removed."""
        if self.descriptor is not None:
            self._held.close()
        with contextlib.suppress(OSError):
            remove(root, "tmp", self.name)


def _host() -> str:
    return socket.gethostname() or "localhost"


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Scratch:
    """The directory where a worker process and its compilers write what belongs to no request.

    The scratch lies in the store. If the store cannot be written, the scratch lies in the system's
    temporary directory, under a name that nobody can foresee.

    Args:
        root: The store's directory.

    Attributes:
        path: The directory, 0700; ``None`` where none can be made.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._work: WorkDirectory | None = None
        self.path: Path | None = None
        with contextlib.suppress(OSError), open_directory(root) as opened:
            if is_marked(opened):
                self._work = WorkDirectory(opened)
                self.path = self._work.path
        if self.path is None:
            with contextlib.suppress(OSError):
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return the descriptors that the worker must inherit, so that nobody sweeps its scratch.

        The lock lasts as long as one process has the descriptor open: the worker may outlive us.
        """
        descriptor = None if self._work is None else self._work.descriptor
        return () if descriptor is None else (descriptor,)

    def close(self) -> None:
        """Remove the scratch; a second call is no error."""
        path, self.path = self.path, None
        work, self._work = self._work, None
        if work is not None:
            with contextlib.suppress(OSError), open_directory(self._root) as root:
                work.close(root)
        elif path is not None:
            shutil.rmtree(path, ignore_errors=True)


def remove_scratch(path: Path) -> None:
    """Remove a work directory, or a scratch outside of a store, by its path; nothing else."""
    if path.parent.name != "tmp" or not re.fullmatch(_NAME, path.name):
        if path.name.startswith(_PREFIX):
            shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError), open_directory(path.parent.parent) as root:
        remove_marked(root, "tmp", path.name)


def stale_work(root: Directory) -> list[str]:
    """Return the names of the work directories whose process is dead.

    Raises:
        UntrustedFileError: ``tmp`` is a link, or others can write to it.
    """
    try:
        tmp = root.directory("tmp")
    except (FileNotFoundError, NotADirectoryError):
        return []
    with tmp:
        return [name for name in children(tmp, "tmp") if _is_stale(tmp, name)]


def remove_stale_work(root: Directory) -> int:
    """Remove the work directories of dead processes and return how many are gone.

    Raises:
        UntrustedFileError: As for ``stale_work``.
        OSError: The store cannot be written.
    """
    return sum(remove(root, "tmp", name) for name in stale_work(root))


def remove_work_of(pid: int, root: Directory) -> None:
    """Remove what a dead process of this machine was working on in the store."""
    with contextlib.suppress(OSError), root.directory("tmp") as tmp:
        for name in children(tmp, "tmp"):
            # Hosts may share a name, and containers number their processes alike.
            if name.startswith(f"{_host()}-{pid}-") and not _is_held(tmp, name):
                remove(root, "tmp", name)


def _is_held(tmp: Directory, name: str) -> bool:
    """Return whether a process that is alive holds the lock of a work directory."""
    try:
        with tmp.directory(name) as work:
            return is_locked(work.fd) is True
    except OSError:
        return False


def _is_stale(tmp: Directory, name: str) -> bool:
    match = re.fullmatch(_NAME, name)
    assert match is not None  # ``children`` has looked.
    try:
        with tmp.directory(name) as work:
            age_s = time.time() - os.fstat(work.fd).st_mtime
            if match["host"] != _host():
                return age_s > _FOREIGN_WORK_AGE_S
            if _is_alive(int(match["pid"])):
                return False
            locked = is_locked(work.fd)
            return age_s > _UNLOCKED_WORK_AGE_S if locked is None else not locked
    except OSError:
        return False  # Its owner has just removed it, or it is a file, a link or another user's.


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # Another user's process, or no process's number: not known to be dead.
    return True


@contextlib.contextmanager
def work_directory(root: Directory) -> Iterator[Path]:
    """Give a new work directory, which is removed at the end; errors as for ``WorkDirectory``."""
    work = WorkDirectory(root)
    try:
        yield work.path
    finally:
        work.close(root)
