"""The files of one entry: read them with bounds, and find their places.

A file's owner, mode and size are checked before its content is used, and a library's digest is
compared before the library is used.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .._base.data_class import dataclass, field
from .._base.handover import let_others_run
from .._base.sealed_library import LIBRARY_LIMIT
from .._base.store_format import (
    ENTRY_FILE,
    LIBRARY_FILE,
    LOG_FILE,
    children,
)
from .._base.trusted_files import Directory, read_bounded
from ..errors import (
    AotiEagerError,
    CacheFormatError,
    EntryDamagedError,
    StoreError,
    UntrustedFileError,
)
from .entry import Entry, Library, decode
from .environment import Environment
from .store_root import store_error

# Most bytes that are read of a file: it is not checked yet.
ENTRY_LIMIT = 4 << 20
LOG_LIMIT = 1 << 20

# A directory's name has at most 255 bytes.
_LONGEST_OP = 180


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry and the directory it was read from.

    Attributes:
        entry: The entry.
        path: Its directory.
        content: The library's bytes, once they were compared with the entry's digest.
        used_at: When a process last noted that it uses the entry, in seconds since 1970; see
            ``StoredEntries.note_use``.
    """

    entry: Entry
    path: Path
    content: bytes | None = field(default=None, compare=False, repr=False)
    used_at: float = field(default=math.inf, compare=False, repr=False)

    @property
    def library_path(self) -> Path:
        """Return where the kernel library lies."""
        return self.path / LIBRARY_FILE


@dataclass(frozen=True, slots=True)
class BadEntry:
    """A directory in an entry's place that cannot be used, and why.

    ``kind`` is ``"damaged"`` or ``"future"`` (written by a newer format).
    """

    path: Path
    kind: str
    problem: str


def read_entry(parent: Directory, name: str) -> StoredEntry:
    """Return the entry in the directory ``name``.

    Raises:
        FileNotFoundError: The directory is gone, or is a file.
        EntryDamagedError: The entry is not what was published.
        CacheFormatError: A newer format wrote it.
        StoreError: The entry cannot be read, for a reason that says nothing about the entry.
    """
    path = parent.path / name
    try:
        with parent.directory(name) as directory:
            used_at = os.fstat(directory.fd).st_mtime
            try:
                document = directory.read(ENTRY_FILE, ENTRY_LIMIT)
            except FileNotFoundError:
                if not {LIBRARY_FILE, LOG_FILE} & set(directory.names()):
                    raise  # The entry is gone; somebody has put other files beside it.
                if not is_in_place(parent, name, directory):
                    raise  # Another process has evicted the entry, and is deleting its files.
                raise at(EntryDamagedError(f"has no {ENTRY_FILE}"), path) from None
    except NotADirectoryError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except FileNotFoundError:
        raise
    except UntrustedFileError as error:
        raise at(EntryDamagedError(f"{error.path.name} {error.problem}"), path) from error
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise unreadable("cannot be read", path, error) from error
    let_others_run()
    try:
        return StoredEntry(decode(document), path, used_at=used_at)
    except (EntryDamagedError, CacheFormatError) as error:
        raise at(error, path) from error


def checked_library(directory: Directory, found: StoredEntry) -> StoredEntry:
    """Return ``found`` with its library's bytes, compared with the entry's size and digest.

    Args:
        directory: The entry's open directory.
        found: The entry.

    Raises:
        EntryDamagedError: The library is missing, or not the file that was published.
        StoreError: The library cannot be read, for a reason that says nothing about the library.
    """
    library = found.entry.library
    if library is None:
        raise at(EntryDamagedError("has no kernel library"), found.path)
    if library.size_bytes > LIBRARY_LIMIT:
        problem = f"its library has {library.size_bytes} bytes; at most {LIBRARY_LIMIT} are read"
        raise at(EntryDamagedError(problem), found.path)
    content = b""
    try:
        file = directory.open(LIBRARY_FILE)
        try:
            if os.fstat(file).st_size == library.size_bytes:
                content = read_bounded(file, library.size_bytes, found.library_path)
        finally:
            os.close(file)
    except UntrustedFileError as error:
        raise at(EntryDamagedError(f"its library {error.problem}"), found.path) from error
    except OSError as error:
        raise unreadable("its library cannot be read", found.path, error) from error
    if hashlib.sha256(content).hexdigest() != library.sha256:
        raise at(EntryDamagedError("its library is not the file that was stored"), found.path)
    return replace(found, content=content)


def is_in_place(parent: Directory, name: str, directory: Directory) -> bool:
    """Return whether an open directory still lies at ``name`` in ``parent``.

    An eviction renames an entry away before it deletes the entry's files. So a file that is missing
    in a directory that lies elsewhere says nothing about the entry at ``name``.
    """
    try:
        there = parent.status(name)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(directory.fd))


def path_below(work: Path, library: Path) -> Path:
    """Return a library's path relative to its work directory, with all links resolved.

    Raises:
        StoreError: The library lies outside of the work directory.
    """
    try:
        return Path(os.path.realpath(library)).relative_to(os.path.realpath(work))
    except ValueError as error:
        raise StoreError(f"{library}: is not in its work directory {work}") from error


def take_library(working: Directory, library: Path, directory: Directory) -> Library:
    """Move a library of the work directory into ``directory``; return its size and digest."""
    with working.descend(*library.parts[:-1]) if library.parts[:-1] else working.descend() as place:
        # Any mode will do: the work directory is new, and ours alone.
        file = place.open(library.name, any_mode=True)
        try:
            content = read_bounded(file, LIBRARY_LIMIT, place.path / library.name)
            os.fchmod(file, 0o600)
        finally:
            os.close(file)
        # Moved, not copied: the library is written only once.
        os.rename(library.name, LIBRARY_FILE, src_dir_fd=place.fd, dst_dir_fd=directory.fd)
    return Library(len(content), hashlib.sha256(content).hexdigest())


def op_path(op: str, environment: Environment, dynamic: bool) -> tuple[str, str, str, str]:
    kind = "dynamic" if dynamic else "static"
    return "v1", environment.digest[:16], _op_directory(op), kind


def _op_directory(op: str) -> str:
    """Return the name of an op's directory; a name that is too long ends in its digest."""
    name = op.replace("::", ".")
    if len(name.encode()) <= _LONGEST_OP:
        return name
    return f"{name[:100]}-{hashlib.sha256(op.encode()).hexdigest()[:16]}"


def entry_directories(
    directory: Directory, depth: int, *, passed_over: frozenset[int] = frozenset()
) -> Iterator[tuple[Directory, str]]:
    """Give each directory ``depth`` levels below, as an open parent and a name of the format.

    Skips links, files, names that the format does not know, and what other users can write to;
    and directories that cannot be opened for one of the errors ``passed_over``.
    """
    parts = directory.path.parts
    names = parts[parts.index("v1", len(parts) - (5 - depth)) :]
    for name in list(children(directory, *names)):
        if depth == 0:
            yield directory, name
            continue
        try:
            child = directory.directory(name)
        except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
            continue
        except OSError as error:
            if error.errno in passed_over:
                continue
            raise
        with child:
            yield from entry_directories(child, depth - 1, passed_over=passed_over)


def at(error: AotiEagerError, path: Path) -> EntryDamagedError | CacheFormatError:
    located = type(error)(f"{path}: {error}")
    located.path = path  # type: ignore[attr-defined]
    return located  # type: ignore[return-value]


# Errors that say something about a file that cannot be read. Other errors are the system's, and
# transient.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


def unreadable(what: str, path: Path, error: OSError) -> AotiEagerError:
    if error.errno in _DAMAGE:
        return at(EntryDamagedError(f"{what}: {error.strerror}"), path)
    return store_error(f"{path}: {what}", error)
