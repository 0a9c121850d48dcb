"""The names that a cache directory may hold, and the only function that removes them.

All code that deletes something in a cache directory (verify, prune, clear, replacing an entry,
sweeping what dead processes left) calls ``remove``. ``remove`` works relative to the open root,
follows no link, enters no other file system, and removes only names of the format: a file that
somebody has put beside ours stays, and so do the directories that hold it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence

from ..errors import UntrustedFileError
from .data_class import dataclass, field
from .trusted_files import Directory, mount_id

ENTRY_FILE = "entry.json"
LIBRARY_FILE = "library.so"
LOG_FILE = "log"
MARKER_FILE = "CACHEDIR.TAG"
TOTALS_FILE = "totals.json"
WANTED_FILE = "wanted"
RUNS_FILE = "runs"
# The lock around all of Inductor's own precompiled headers; Inductor locks each by itself only.
HEADERS_LOCK = "headers.lock"
STUB_FILE = "libtorch_cpu.so"
STUB_RECORD = "libtorch_cpu.json"

# https://bford.info/cachedir/: backup programs skip directories with this file. The second line
# says whose cache it is, because other programs write the first line, too.
_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55\n"
MARKER = (
    _SIGNATURE
    + b"# This directory is a cache of aoti_eager: it holds compiled kernels, and may be deleted.\n"
)
_MARKED = re.escape(_SIGNATURE) + rb"(#.*\n)*#.*\baoti_eager\b.*(\n|$)"
_MARKER_LIMIT = 1 << 12


@dataclass(frozen=True, slots=True)
class _File:
    """A file, which may be removed unless it is kept."""

    kept: bool = False


@dataclass(frozen=True, slots=True)
class _Scratch:
    """A directory that is removed with everything in it, whatever the names."""


@dataclass(frozen=True, slots=True)
class _Names:
    """A directory; ``inside`` maps patterns that match a whole name to what has that name."""

    inside: Mapping[str, _File | _Scratch | _Names] = field(default_factory=dict)

    def find(self, name: str) -> _File | _Scratch | _Names | None:
        found = self.inside.get(name)
        # Most patterns are plain names and need not be compiled.
        if found is not None and name.isalnum():
            return found
        for pattern, what in self.inside.items():
            if not pattern.isalnum() and re.fullmatch(pattern, name):
                return what
        return None


_FILE, _KEPT, _SCRATCH = _File(), _File(kept=True), _Scratch()
_HEX = "[0-9a-f]"
WORK_NAME = rf"[^/]+-[0-9]{{1,10}}-{_HEX}{{12}}"
_TEMPORARY = rf"\.[^/]{{1,16}}\.{_HEX}{{8}}"

_INDUCTOR_HEADER = r"[a-z0-9]{20,80}\.h(\.gch(\.json)?)?"

_ENTRY = _Names({re.escape(name): _FILE for name in (ENTRY_FILE, LIBRARY_FILE, LOG_FILE)})
_OP = _Names({"static|dynamic": _Names({rf"{_HEX}{{64}}": _Names({r"\w[\w.+-]*": _ENTRY})})})
_HEADERS = _Names(
    {
        rf"thin-{_HEX}{{24}}\.(h|o|h\.gch|json|[0-9]+\.tmp)": _FILE,
        rf"thin-{_HEX}{{24}}\.lock": _KEPT,
        rf"\.build-{_HEX}{{24}}-\w+": _SCRATCH,
        # Inductor's own headers, for libraries that are not thin.
        rf"{_INDUCTOR_HEADER}|\.[0-9]+\.[0-9]+\.tmp": _FILE,
        "locks": _Names({rf"[a-z0-9]{{20,80}}\.lock|{re.escape(HEADERS_LOCK)}": _KEPT}),
        "stub": _Names({r"libtorch_cpu(\.so|\.json|\.[0-9]+\.tmp)": _FILE, _TEMPORARY: _FILE}),
        _TEMPORARY: _FILE,
    }
)
_NATIVE = _Names(
    {
        rf"{_HEX}{{16}}": _Names({r"native\.(so|json)": _FILE}),
        rf"{_HEX}{{16}}\.lock": _KEPT,
        rf"\.build-{_HEX}{{16}}-\w+": _SCRATCH,
    }
)
_TOOLCHAIN = _Names(
    {
        "headers": _HEADERS,
        "probes": _Names({rf"{_HEX}{{24}}\.(json|[0-9]+\.tmp)": _FILE, _TEMPORARY: _FILE}),
        "native": _Names({rf"{_HEX}{{24}}": _NATIVE}),
    }
)
STORE = _Names(
    {
        re.escape(MARKER_FILE): _KEPT,
        rf"{re.escape(TOTALS_FILE)}|{WANTED_FILE}|{RUNS_FILE}": _FILE,
        _TEMPORARY: _FILE,
        "v1": _Names({rf"{_HEX}{{16}}": _Names({rf"\w[\w.]*(-{_HEX}{{16}})?": _OP})}),
        "tmp": _Names({WORK_NAME: _SCRATCH}),
        "locks": _Names({rf"{_HEX}{{2}}|totals|wanted|runs": _KEPT}),
        "toolchain": _TOOLCHAIN,
        "verdicts": _Names({r"[\w-]+": _Names({rf"{_HEX}{{64}}\.json|{_TEMPORARY}": _FILE})}),
    }
)


def names_at(*path: str) -> _Names:
    """Return the names that the directory at ``path`` in a cache directory may hold.

    Raises:
        ValueError: The format has no such directory.
    """
    found = _lookup(path)
    if not isinstance(found, _Names):
        raise ValueError(f"{'/'.join(path)}: is no directory of the cache's format")
    return found


def is_entry(path: Sequence[str]) -> bool:
    """Return whether ``path`` leads from a cache directory to an entry's directory."""
    return _lookup(path) is _ENTRY


def is_inductor_header(name: str) -> bool:
    """Return whether a name in ``headers`` is an Inductor header's or its companion file's."""
    return re.fullmatch(_INDUCTOR_HEADER, name) is not None


def is_temporary(name: str) -> bool:
    """Return whether ``name`` is that of a file that ``Directory.write`` has not renamed yet."""
    return re.fullmatch(_TEMPORARY, name) is not None


def children(directory: Directory, *path: str) -> Iterator[str]:
    """Give the names in ``directory`` that the format allows at ``path``, sorted."""
    names = names_at(*path)
    for name in sorted(directory.names()):
        if names.find(name) is not None:
            yield name


# --- the marker ----------------------------------------------------------------------------------


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
        if inside is None or inside == _KEPT:  # Somebody else's marker.
            return False
        has_file = has_file or isinstance(inside, _File)
        if isinstance(inside, _Names):
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
    for path in (("toolchain",), *(("toolchain", name) for name in _TOOLCHAIN.inside)):
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
                if _lookup((*path, name)) != _KEPT:
                    remove(root, *path, name)


# --- removal -------------------------------------------------------------------------------------

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
    what = _lookup((*base, *path))
    if what is None or what == _KEPT or not path:
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


def remove_marked(root: Directory, *path: str) -> bool:
    """Remove as ``remove`` does, if the marker says that the directory is a cache.

    Raises: as ``remove``; PermissionError if there is no marker.
    """
    if not is_marked(root):
        raise UntrustedFileError(
            root.path, f"has no {MARKER_FILE} of aoti_eager, so nothing is removed"
        )
    return remove(root, *path)


def _remove(parent: Directory, name: str, what: _File | _Scratch | _Names, mount: object) -> bool:
    if isinstance(what, _File):
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
            if isinstance(what, _Scratch):
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


def _lookup(path: Sequence[str]) -> _File | _Scratch | _Names | None:
    found: _File | _Scratch | _Names | None = STORE
    for name in path:
        found = found.find(name) if isinstance(found, _Names) else None
    return found
