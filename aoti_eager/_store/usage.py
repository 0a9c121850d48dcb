"""The account of a store: how many bytes and entries it holds, without looking at the entries.

A file of the store, ``usage``, has one line of a fixed length, which is changed in place under the
lock ``locks/usage``::

    aoti_eager usage 1 <bytes> <entries> <counted at, seconds since 1970> <CRC-32 of what is before>

A process adds an entry to the account before it renames the entry into its place, both under the
lock. So a process that is killed in between leaves an account that says too much, never too little;
the next eviction counts, and corrects the account. Counted at zero: nobody has counted the entries
yet, and the account has only what was added since it was begun. The file is advice: a damaged one
counts as absent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace

from .._base.data_class import dataclass
from .._base.file_lock import locked
from .._base.ownership import check_regular
from .._base.store_format import USAGE_FILE
from .._base.store_removal import remove
from .._base.trusted_files import Directory
from ..errors import UntrustedFileError
from .limits import Amount

# The lock is held for some system calls. A put that does not get it within this time goes on
# without it: the process that has the lock may be stopped.
TIMEOUT_S = 10.0
# So often, the entries are counted anew: where files have no locks, additions may be lost.
_COUNT_AGAIN_S = 24 * 3600
_MOST = 10**19
_LINE = re.compile(
    rb"(?P<text>aoti_eager usage 1 (?P<bytes>[0-9]{20}) (?P<entries>[0-9]{12}) "
    rb"(?P<at>[0-9]{12})) (?P<sum>[0-9a-f]{8})\n"
)
_LENGTH = 75
_NO_ACCOUNT = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Usage:
    """What an account says.

    Attributes:
        held: The bytes and entries.
        counted_at: When the entries were last counted, in seconds since 1970; 0 for never.
    """

    held: Amount
    counted_at: int = 0

    def is_counted(self) -> bool:
        """Return whether the entries were counted, and not too long ago."""
        return self.counted_at > 0 and abs(time.time() - self.counted_at) < _COUNT_AGAIN_S


class Account:
    """An open account, whose lock this process holds.

    Args:
        fd: The descriptor of the file.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> Usage:
        """Return what the account says; where it is new or damaged, nothing, never counted."""
        match = _LINE.fullmatch(os.pread(self._fd, _LENGTH + 1, 0))
        if match is None or int(match["sum"], 16) != zlib.crc32(match["text"]):
            return Usage(Amount())
        return Usage(Amount(int(match["bytes"]), int(match["entries"])), int(match["at"]))

    def write(self, usage: Usage) -> None:
        """Replace what the account says."""
        size, entries = min(usage.held.size_bytes, _MOST), min(usage.held.entries, 10**12 - 1)
        text = f"aoti_eager usage 1 {size:020d} {entries:012d} {usage.counted_at:012d}".encode()
        line = text + b" %08x\n" % zlib.crc32(text)
        assert len(line) == _LENGTH
        # In place, and not by a temporary file: a process that is killed would leave that.
        os.pwrite(self._fd, line, 0)
        if os.fstat(self._fd).st_size > _LENGTH:
            os.ftruncate(self._fd, _LENGTH)

    def add(self, more: Amount) -> None:
        """Add to what the account says."""
        usage = self.read()
        self.write(replace(usage, held=usage.held.plus(more)))

    def take(self, less: Amount) -> None:
        """Subtract from what the account says."""
        usage = self.read()
        self.write(replace(usage, held=usage.held.minus(less)))


@contextlib.contextmanager
def account(root: Directory, timeout_s: float | None = None) -> Iterator[Account]:
    """Hold the account of an open store, under its lock.

    Raises:
        TimeoutError: Another process held the lock for longer than ``timeout_s`` seconds; by
            default, ``TIMEOUT_S``.
        OSError: The file cannot be opened or made, or what is in its place cannot be removed.
    """
    with (
        root.directory("locks", create=True) as locks,
        locked(locks, "usage", TIMEOUT_S if timeout_s is None else timeout_s),
    ):
        fd = _opened(root)
        try:
            yield Account(fd)
        finally:
            os.close(fd)


_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _opened(root: Directory) -> int:
    """Return a descriptor of the account's file; it is made if it is missing, or not ours alone."""
    fd = _trusted(root)
    if fd is not None:
        return fd
    remove(root, USAGE_FILE)
    return os.open(USAGE_FILE, _OPEN | os.O_EXCL, 0o600, dir_fd=root.fd)


def _trusted(root: Directory) -> int | None:
    """Return a descriptor of the account's file; ``None`` if another file is to take its place."""
    try:
        fd = os.open(USAGE_FILE, _OPEN, 0o600, dir_fd=root.fd)
    except OSError as error:
        # A link, a directory, a socket, or a file that its owner has closed to us.
        if error.errno in _NO_ACCOUNT:
            return None
        raise
    with contextlib.suppress(UntrustedFileError):
        try:
            status = os.fstat(fd)
            check_regular(root.path / USAGE_FILE, status)
        except BaseException:
            os.close(fd)
            raise
        if status.st_nlink == 1:
            return fd
        # A copy of the store by hard links has the same file, which is written in place.
        os.close(fd)
    return None


def read_usage(root: Directory) -> Usage:
    """Return what the account of an open store says, without its lock; nothing if it is absent."""
    try:
        fd = root.open(USAGE_FILE)
    except OSError:
        return Usage(Amount())
    try:
        return Account(fd).read()
    except OSError:
        return Usage(Amount())
    finally:
        os.close(fd)
