"""The marker of a cache directory: without it, nothing is removed."""

from __future__ import annotations

import contextlib
import os
import re

from ..errors import UntrustedFileError
from .store_format import (
    ENTRY_FILE,
    KEPT,
    MARKER_FILE,
    STORE,
    TOOLCHAIN,
    File,
    Names,
    children,
    is_entry,
    is_temporary,
    lookup,
)
from .store_removal import remove
from .trusted_files import Directory

# https://bford.info/cachedir/: backup programs skip directories with this file. The second line
# says whose cache it is, because other programs write the first line, too.
_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55\n"
MARKER = (
    _SIGNATURE
    + b"# This directory is a cache of aoti_eager: it holds compiled kernels, and may be deleted.\n"
)
_MARKED = re.escape(_SIGNATURE) + rb"(#.*\n)*#.*\baoti_eager\b.*(\n|$)"
_MARKER_LIMIT = 1 << 12


def is_marked(root: Directory) -> bool:
    """Return whether an open directory is a cache of this package, by its marker.

    Raises:
        OSError: The marker cannot be read, for a reason that says nothing about the marker.
    """
    try:
        # Any mode will do, because the marker is no code.
        found = root.read(MARKER_FILE, _MARKER_LIMIT, any_mode=True)
    except (FileNotFoundError, UntrustedFileError):
        return False
    return re.match(_MARKED, found) is not None


def is_recognised(root: Directory) -> bool:
    """Return whether a directory may be marked: an empty one, or a cache without its marker.

    A cache without its marker has only names of the format, two levels deep, and at least one
    directory if it has files.
    """
    has_directory = has_file = False
    for name in root.names():
        # Names at the root of a file system, and names that systems put anywhere.
        if name in ("lost+found", ".DS_Store", ".snapshot") or name.startswith(".nfs"):
            continue
        if is_temporary(name) and name.startswith(f".{MARKER_FILE}."):
            continue  # A process is writing the marker, or was killed while it did.
        if name == MARKER_FILE and _is_empty(root, name):
            continue  # The marker's writer was killed.
        inside = STORE.find(name)
        if inside is None or inside == KEPT:  # Somebody else's marker.
            return False
        has_file = has_file or isinstance(inside, File)
        if isinstance(inside, Names):
            has_directory = True
            try:
                with root.directory(name, trusted=False) as directory:
                    if not all(inside.find(one) for one in directory.names()):
                        return False
            except OSError:
                # The user may have made ``toolchain`` a link to another place.
                if name != "toolchain" or not root.is_link(name):
                    return False
    return has_directory or not has_file


def _is_empty(root: Directory, name: str) -> bool:
    try:
        return root.status(name).st_size == 0
    except FileNotFoundError:
        return True


def mark(root: Directory) -> None:
    """Write the marker, and close the toolchain's directories that others can write to.

    Such directories come from versions that obeyed the umask where compilers work. Others could
    have put files there, so the files are removed. This is done only in a cache that has entries:
    a project may have a directory called ``toolchain``, too.

    Raises:
        OSError: The marker cannot be written.
    """
    root.write(MARKER_FILE, MARKER)
    if not _has_entry(root):
        return
    for path in (("toolchain",), *(("toolchain", name) for name in TOOLCHAIN.inside)):
        _close_to_others(root, *path)
    _close_to_others(root, "toolchain", "headers", "stub")


def _has_entry(directory: Directory, *path: str) -> bool:
    """Return whether an entry's record lies below the directory at ``path`` in a cache."""
    path = path or ("v1",)
    try:
        with directory.directory(path[-1], trusted=False) as inner:
            if is_entry(path):
                return ENTRY_FILE in inner.names()
            return any(_has_entry(inner, *path, name) for name in children(inner, *path))
    except OSError:
        return False


def _close_to_others(root: Directory, *path: str) -> None:
    """Empty a directory that others can write to, and take that right from others."""
    with contextlib.ExitStack() as opened, contextlib.suppress(FileNotFoundError):
        directory = root
        try:
            for name in path:
                directory = opened.enter_context(directory.directory(name, trusted=False))
        except (NotADirectoryError, UntrustedFileError):
            return
        status = os.fstat(directory.fd)
        if status.st_mode & 0o022 and status.st_uid == os.geteuid():
            os.fchmod(directory.fd, 0o700)  # First, so that nobody adds a file meanwhile.
            for name in children(directory, *path):
                if lookup((*path, name)) != KEPT:
                    remove(root, *path, name)


def remove_marked(root: Directory, *path: str) -> bool:
    """Remove as ``remove`` does, if the marker says that the directory is a cache.

    Raises: as ``remove``; PermissionError if there is no marker.
    """
    if not is_marked(root):
        raise UntrustedFileError(
            root.path, f"has no {MARKER_FILE} of aoti_eager, so nothing is removed"
        )
    return remove(root, *path)
