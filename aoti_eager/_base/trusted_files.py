"""Opens directories and files that nobody but this user and root can have written.

Files of a cache directory are loaded into the process, so this module alone decides which of them
to trust. The rule for a path: every directory on the way belongs to this user or to root, and
nobody else can write to it (``trusted_path``). The directory at the path is opened once, and
everything below it is reached relative to that descriptor, one name at a time and never through a
link: so nothing can be swapped between the check and the use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ..errors import UntrustedFileError
from .ownership import check_regular, check_status
from .trusted_path import ADVICE, walk

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a pipe would wait for the other end.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_CHUNK = 1 << 20


class Directory:
    """An open directory; names are single components, and no link is followed.

    Attributes:
        path: The directory's path, for messages.
        fd: The directory's descriptor; closed at the end of the ``with`` block.

    More than 12 methods, because each is one system call, or a few, relative to the descriptor.
    """

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; closing twice is no error."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def directory(self, name: str, *, create: bool = False, trusted: bool = True) -> Directory:
        """Return the open directory ``name``.

        Args:
            name: One component.
            create: Make the directory, 0700, if it is missing.
            trusted: Whether to refuse a directory that others can write to. If false, the caller
                must not trust anything in it.

        Raises:
            FileNotFoundError: The directory is missing.
            NotADirectoryError: The name is a file's.
            UntrustedFileError: The name is a link's, or others could have put something into the
                directory.
            OSError: The directory cannot be opened or made.
        """
        path = self.path / name
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self.fd)
        try:
            fd = os.open(name, _LIST, dir_fd=self.fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and self.is_link(name):
                raise UntrustedFileError(path, "is a link, which is not followed") from None
            raise
        try:
            if trusted:
                check_status(path, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return Directory(fd, path)

    def descend(self, *names: str, create: bool = False) -> Directory:
        """Return the open directory below this one at ``names``; errors as for ``directory``."""
        with contextlib.ExitStack() as opened:
            found = self
            for name in names:
                found = opened.enter_context(found.directory(name, create=create))
            # A duplicate, which stays open when the stack closes the directories.
            return Directory(os.dup(found.fd), found.path)

    def directories(self) -> Iterator[tuple[str, Directory]]:
        """Give the directories in this one with their names, sorted; each is open until the next.

        Files, links, names that are gone and directories of other users are skipped.
        """
        for name in sorted(self.names()):
            try:
                child = self.directory(name)
            except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
                continue
            with child:
                yield name, child

    def names(self) -> list[str]:
        """Return the names of everything in this directory; none if it was removed meanwhile."""
        try:
            return os.listdir(self.fd)
        except FileNotFoundError:  # The directory is open, so this is what its removal looks like.
            return []

    def status(self, name: str) -> os.stat_result:
        """Return the status of ``name``; for a link, that of the link itself."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def open(self, name: str, *, any_mode: bool = False) -> int:
        """Return a descriptor of the regular file ``name``, to read it.

        Args:
            name: One component.
            any_mode: Whether others may write to the file: for callers who know the digest of its
                bytes.

        Raises:
            FileNotFoundError: The file is missing.
            UntrustedFileError: The name is a link's, the file is not regular, or others could have
                written it.
            OSError: The file cannot be opened.
        """
        path = self.path / name
        try:
            fd = os.open(name, _READ, dir_fd=self.fd)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UntrustedFileError(path, "is a link, which is not followed") from None
            if error.errno == errno.ENXIO:  # a socket
                raise UntrustedFileError(path, "is no regular file") from None
            raise
        try:
            check_regular(path, os.fstat(fd), any_mode=any_mode)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def read(self, name: str, limit: int, *, any_mode: bool = False) -> bytes:
        """Return the content of the file ``name``.

        Args:
            name: One component.
            limit: Most bytes that the file may have; a larger file is not read.
            any_mode: As for ``open``.

        Raises: as ``open``; UntrustedFileError also if the file is larger than ``limit``.
        """
        fd = self.open(name, any_mode=any_mode)
        try:
            return read_bounded(fd, limit, self.path / name)
        finally:
            os.close(fd)

    def write(self, name: str, content: bytes) -> None:
        """Write the file ``name``, 0600; readers see the old content or all of the new one.

        Raises:
            OSError: The file cannot be written; an old file stays as it was.
        """
        temporary = f".{name[:16]}.{os.urandom(4).hex()}"
        fd = os.open(temporary, _CREATE, 0o600, dir_fd=self.fd)
        try:
            try:
                write_all(fd, content)
            finally:
                os.close(fd)
            os.replace(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self.fd)
            raise

    def is_link(self, name: str) -> bool:
        """Return whether ``name`` is a link; false if it is gone."""
        try:
            return stat.S_ISLNK(self.status(name).st_mode)
        except OSError:
            return False


def open_directory(path: Path, *, create: bool = False) -> Directory:
    """Return the open directory at ``path``, after every directory on the way was checked.

    Links on the way are followed if they belong to this user or to root.

    Args:
        path: An absolute path.
        create: Make missing directories, each 0700.

    Raises:
        FileNotFoundError: The directory is missing.
        NotADirectoryError: The path, or a path above it, is a file's.
        UntrustedFileError: Others can write to the directory, or put another one in its place.
        OSError: The directory cannot be opened or made.
    """
    fd, shown = walk(path, create)
    try:
        listed = os.open(".", _LIST, dir_fd=fd)
    finally:
        os.close(fd)
    try:
        check_status(shown, os.fstat(listed))
    except UntrustedFileError as error:
        os.close(listed)
        raise UntrustedFileError(shown, f"{error.problem}; {ADVICE}") from None
    except BaseException:
        os.close(listed)
        raise
    return Directory(listed, path)


def read_file(path: Path, limit: int) -> bytes:
    """Return the content of a file that may be group-writable if the group is the user's own.

    This is for files that a user writes with an editor, such as the config file. Errors are those
    of ``open_directory`` and ``Directory.read``.
    """
    fd, _ = walk(path.parent, create=False)
    try:
        with Directory(fd, path.parent) as directory:
            file = os.open(path.name, _READ & ~os.O_NOFOLLOW, dir_fd=directory.fd)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise UntrustedFileError(path, "is no regular file") from None
        raise
    try:
        status = os.fstat(file)
        check_regular(path, status, private_group=True)
        return read_bounded(file, limit, path)
    finally:
        os.close(file)


def read_bounded(fd: int, limit: int, path: Path) -> bytes:
    """Return all bytes that are left to read from ``fd``.

    Raises:
        UntrustedFileError: There are more than ``limit`` bytes; at most one more was read.
    """
    size = os.fstat(fd).st_size
    if size > limit:
        raise UntrustedFileError(path, f"has {size} bytes; at most {limit} are read")
    chunks, left = [], limit + 1
    while left > 0:
        chunk = os.read(fd, min(left, max(size, 1) + 1, _CHUNK))
        if not chunk:
            break
        chunks.append(chunk)
        left -= len(chunk)
    if left <= 0:
        raise UntrustedFileError(path, f"grows while it is read; at most {limit} bytes are read")
    return b"".join(chunks)


def write_all(fd: int, content: bytes) -> None:
    """Write all of ``content`` to ``fd``; one call of ``os.write`` may write only a part."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def mount_id(fd: int) -> int | None:
    """Return the number of the mount that ``fd`` lies on; ``None`` if the system does not tell.

    Unlike the device's number, the mount's number tells a bind mount from the directory around it.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name == "mnt_id":
                    return int(value)
    except (OSError, ValueError):
        pass
    return None
