"""The only module that locks files: advisory locks among processes, which end with their holder.

Locks are made by ``flock`` itself, relative to an open directory. A lock library is not used: it
opens lock files by path, which follows links, and its behaviour on a file system without locks
differs from version to version (an error, a wait of minutes, lock files that outlive their holder).
Here, nothing is locked on such a file system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from .ownership import check_regular
from .trusted_files import Directory
from .warn_once import warn_once

# Errors of ``flock`` on a file system without locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF}
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.005, 0.05


class FileLock:
    """A lock file, made 0600 if it is missing and never removed.

    Args:
        directory: The directory of the lock file.
        name: The lock file's name there.

    Attributes:
        held: Whether this object holds the lock. On a file system without locks it is true without
            keeping anybody out.
        existed: Whether the file was there before.

    Raises:
        UntrustedFileError: The file is not regular, or belongs to another user.
        OSError: The file cannot be made.
    """

    def __init__(self, directory: Directory, name: str) -> None:
        self.held = False
        self._path = directory.path / name
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory.fd)
            self.existed = False
        except FileExistsError:
            self._fd = os.open(name, flags, dir_fd=directory.fd)
            self.existed = True
            try:
                # Any mode will do, because nothing is read from the file.
                check_regular(self._path, os.fstat(self._fd), any_mode=True)
            except BaseException:
                self.close()
                raise

    def acquire(self, timeout_s: float) -> None:
        """Take the lock.

        Args:
            timeout_s: Seconds to wait for the present holder.

        Raises:
            TimeoutError: Another process, or another thread, held the lock all the time.
        """
        deadline = time.monotonic() + timeout_s
        wait_s = _FIRST_WAIT_S
        while not self._take():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "is locked by another process", str(self._path))
            time.sleep(min(wait_s, left))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        self.held = True

    def _take(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                return False
            if error.errno not in _NO_LOCKS:
                raise
            warn_once(
                "no_locks",
                f"{self._path}: the file system has no locks ({error.strerror}), so two processes "
                "may compile the same kernel; nothing else changes",
            )
        return True

    def close(self) -> None:
        """Release the lock and close the file; closing twice is no error."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self.held:
            # Closing is not enough: a process that was forked meanwhile has the file open, too.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
        self.held = False
        os.close(fd)


@contextlib.contextmanager
def locked(directory: Directory, name: str, timeout_s: float) -> Iterator[FileLock]:
    """Hold the lock file ``name``; arguments and errors as for ``FileLock`` and its ``acquire``."""
    lock = FileLock(directory, name)
    try:
        lock.acquire(timeout_s)
        yield lock
    finally:
        lock.close()


def hold(fd: int) -> bool:
    """Lock an open directory until every process that has it open has closed it.

    Returns:
        Whether the lock was taken: false if somebody else holds it or the file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(fd: int) -> bool | None:
    """Return whether somebody else holds a lock on an open directory; ``None`` without locks.

    To find out, this takes the lock if nobody has it; that lock ends when ``fd`` is closed.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN) else None
    return False
