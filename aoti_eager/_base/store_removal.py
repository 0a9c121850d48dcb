"""The only module that removes something in a cache directory.

All code that deletes something there (verify, prune, clear, replacing an entry, sweeping what dead
processes left) calls ``remove``; an eviction first renames an entry into its own work directory,
and then calls ``remove_work``. ``remove`` works relative to the open root, follows no link,
enters no other file system, and removes only names of the format: a file that somebody has put
beside ours stays, and so do the directories that hold it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence

from ..errors import UntrustedFileError
from .store_format import ENTRY_FILE, KEPT, File, Names, Scratch, lookup
from .trusted_files import Directory, mount_id

# Errors for a directory that is not empty, and for a name that is gone, in use or of another kind:
# it is left as it is.
_PASSED_OVER = {
    errno.ENOENT,
    errno.ENOTEMPTY,
    errno.EEXIST,
    errno.EBUSY,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.EXDEV,
    errno.EISDIR,
}


def remove(root: Directory, *path: str, base: Sequence[str] = ()) -> bool:
    """Remove what lies at ``path``, as far as the format has it; return whether it is gone.

    Args:
        root: The cache directory, or the directory at ``base`` in it.
        path: The names from ``root`` on.
        base: Names of the format that lead to ``root``. A toolchain is opened by itself, because
            the user may have made it a link to another place.

    Raises:
        ValueError: The format has no such name, or the name is never removed.
        OSError: The file system refuses: read-only, no permission.
    """
    what = lookup((*base, *path))
    if what is None or what == KEPT or not path:
        raise ValueError(f"{'/'.join(path)}: is no name of the cache's format")
    mount = mount_id(root.fd)
    try:
        with contextlib.ExitStack() as opened:
            parent = root
            for name in path[:-1]:
                parent = opened.enter_context(_inner(parent, name, mount))
            return _remove(parent, path[-1], what, mount)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except UntrustedFileError:
        return False


def remove_work(work: Directory, name: str) -> None:
    """Remove what lies at ``name`` in an open work directory of this process, whatever it is.

    Raises:
        OSError: The file system refuses: read-only, no permission.
    """
    _remove_any(work, name, mount_id(work.fd))


def remove_empty(root: Directory, *path: str) -> bool:
    """Remove the directory at ``path`` and those above it, as far as they are empty.

    The first name stays. A process that is about to put something into one of the directories
    finds it gone, and makes it again (``Store.publish``).

    Args:
        root: The cache directory.
        path: Names of the format that lead to a directory.

    Returns:
        Whether the directory at ``path`` itself is gone.

    Raises:
        OSError: The file system refuses: read-only, no permission.
    """
    is_gone = True
    for depth in range(len(path), 1, -1):
        try:
            with root.descend(*path[: depth - 1]) as parent:
                was_removed = _rmdir(parent, path[depth - 1])
        except (FileNotFoundError, NotADirectoryError):
            continue
        except UntrustedFileError:
            was_removed = False
        if depth == len(path):
            is_gone = was_removed
        if not was_removed:
            break
    return is_gone


def _remove(parent: Directory, name: str, what: File | Scratch | Names, mount: object) -> bool:
    if isinstance(what, File):
        return not what.kept and _unlink(parent, name)
    try:
        inner = _inner(parent, name, mount)
    except FileNotFoundError:
        return True
    except (NotADirectoryError, UntrustedFileError):
        # A file or a link under a directory's name: not ours.
        return False
    with inner:
        # The entry's record first: without its record, the rest of an entry is no entry.
        for one in sorted(inner.names(), key=lambda one: (one != ENTRY_FILE, one)):
            if isinstance(what, Scratch):
                _remove_any(inner, one, mount)
            elif (found := what.find(one)) is not None:
                _remove(inner, one, found, mount)
    return _rmdir(parent, name)


def _remove_any(parent: Directory, name: str, mount: object) -> None:
    """Remove a file, a link (not its target), or a directory with everything in it."""
    try:
        is_directory = stat.S_ISDIR(parent.status(name).st_mode)
    except FileNotFoundError:
        return
    if not is_directory:
        _unlink(parent, name)
        return
    try:
        inner = _inner(parent, name, mount)
    except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
        return
    with inner:
        for one in inner.names():
            _remove_any(inner, one, mount)
    _rmdir(parent, name)


def _inner(parent: Directory, name: str, mount: object) -> Directory:
    """Return the directory ``name``, if it lies on the mount of the root.

    Others may be able to write to it: files are removed by name, and their content is not read.

    Raises: as ``Directory.directory``; UntrustedFileError also for another mount.
    """
    inner = parent.directory(name, trusted=False)
    is_other = mount_id(inner.fd) != mount or (
        os.fstat(inner.fd).st_dev != os.fstat(parent.fd).st_dev
    )
    if is_other:
        inner.close()
        raise UntrustedFileError(parent.path / name, "is another file system's")
    return inner


def _unlink(parent: Directory, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=parent.fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        # A directory under a file's name: removed if it is empty.
        if error.errno in (errno.EISDIR, errno.EPERM):
            return _rmdir(parent, name)
        if error.errno in _PASSED_OVER:
            return False
        raise
    return True


def _rmdir(parent: Directory, name: str) -> bool:
    try:
        os.rmdir(name, dir_fd=parent.fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in _PASSED_OVER:
            return False
        raise
    return True
