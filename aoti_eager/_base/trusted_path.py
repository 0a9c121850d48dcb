"""Walks to a directory past directories that only this user and root can change.

A sticky directory, such as ``/tmp``, may be on the way, because each file in it belongs to its
maker. Links on the way are followed if they belong to this user or to root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from ..errors import UntrustedFileError
from .ownership import has_access_list, is_ours, is_unmapped_root, private_group_of

# On the way to a directory, the right to search is enough: the parent of a home directory often
# gives no other right.
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_MOST_LINKS = 40

ADVICE = "set AOTI_EAGER_CACHE_DIR to a new directory of your own"


def walk(path: Path, create: bool) -> tuple[int, Path]:
    """Return a descriptor of ``path``, for searching, and the path without links.

    Every directory above ``path`` was checked; the caller checks the last one.

    Args:
        path: An absolute path.
        create: Make missing directories, each 0700.

    Raises:
        ValueError: ``path`` is not absolute.
        FileNotFoundError: A directory is missing.
        NotADirectoryError: The path, or a path above it, is a file's.
        UntrustedFileError: Others can put another directory in the place of one above ``path``.
        OSError: A directory cannot be opened or made.
    """
    if not path.is_absolute():
        raise ValueError(f"{path}: an absolute path is wanted")
    pending = list(reversed(path.parts[1:]))
    links = 0
    fd, shown = os.open("/", _SEARCH), Path("/")
    try:
        while pending:
            # The caller checks the last directory: others may not write to it even if it is sticky.
            _check_ancestor(path, shown, os.fstat(fd))
            name = pending.pop()
            try:
                child = os.open(name, _SEARCH, dir_fd=fd)
            except FileNotFoundError:
                if not create:
                    raise FileNotFoundError(
                        errno.ENOENT, os.strerror(errno.ENOENT), str(path)
                    ) from None
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=fd)
                child = os.open(name, _SEARCH, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                target = _link_target(path, shown / name, fd, name)
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
                pending += reversed([part for part in target.parts if part != "/"])
                if not target.is_absolute():
                    continue
                child, name = os.open("/", _SEARCH), "/"
            os.close(fd)
            fd = child
            shown = shown.parent if name == ".." else shown / name
    except BaseException:
        os.close(fd)
        raise
    return fd, shown


def _link_target(path: Path, link: Path, fd: int, name: str) -> Path:
    """Return where a link on the way leads; in a sticky directory, anybody may have made one."""
    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not is_ours(status.st_uid):
        raise UntrustedFileError(
            path, f"{link} on its way is a link of user {status.st_uid}; {ADVICE}"
        )
    return Path(os.readlink(name, dir_fd=fd))


def _check_ancestor(path: Path, shown: Path, status: os.stat_result) -> None:
    if not is_ours(status.st_uid) and not is_unmapped_root(status.st_uid):
        raise UntrustedFileError(
            path,
            f"{shown}, above it, belongs to user {status.st_uid}, who can put another directory "
            f"in its place; {ADVICE}",
        )
    if not status.st_mode & 0o022 or status.st_mode & stat.S_ISVTX:
        return
    is_private = not status.st_mode & 0o002 and status.st_gid == private_group_of(os.geteuid())
    if is_private and not has_access_list(shown):
        return
    raise UntrustedFileError(
        path,
        f"others can write to {shown} above it (mode {stat.S_IMODE(status.st_mode):o}) and put "
        f"another directory in its place; {ADVICE}",
    )
