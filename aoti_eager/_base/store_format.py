"""Which names a cache directory has, and the one function that removes any of them.

Everything that deletes something in a cache directory (verify, prune, clear, an entry that is
replaced, what dead processes left) calls ``remove``. It works relative to the open root, follows no
link, enters no other file system, and removes names of the format alone: a file that somebody has
put beside ours stays, and so do the directories that hold it.
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
# Held by who makes Inductor's own precompiled headers, which Inductor locks one by one.
HEADERS_LOCK = "headers.lock"
STUB_FILE = "libtorch_cpu.so"
STUB_RECORD = "libtorch_cpu.json"

# https://bford.info/cachedir/: backup programs pass such directories over. The second line says
# whose cache it is: other programs write the first one, too.
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
    """A directory of ours alone, whatever lies in it."""


@dataclass(frozen=True, slots=True)
class _Names:
    """A directory: what the names in it are, by patterns that match the whole name."""

    inside: Mapping[str, _File | _Scratch | _Names] = field(default_factory=dict)

    def find(self, name: str) -> _File | _Scratch | _Names | None:
        found = self.inside.get(name)
        # Most patterns are the name itself, and need not be compiled.
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
        # Inductor's own, for the libraries that are not thin.
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
    """Return what the directory at ``path`` in a cache directory may hold.

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
    """Return whether a name in ``headers`` is one of Inductor's headers, or what belongs to it."""
    return re.fullmatch(_INDUCTOR_HEADER, name) is not None


def is_temporary(name: str) -> bool:
    """Return whether a name is that of a file which ``Directory.write`` has not renamed yet."""
    return re.fullmatch(_TEMPORARY, name) is not None


def children(directory: Directory, *path: str) -> Iterator[str]:
    """Give the names in ``directory`` that the format has at ``path``, sorted."""
    names = names_at(*path)
    for name in sorted(directory.names()):
        if names.find(name) is not None:
            yield name


# --- the marker ----------------------------------------------------------------------------------


def is_marked(root: Directory) -> bool:
    """Return whether an open directory is a cache of this package, by its marker.

    Raises:
        OSError: The marker cannot be read, for a reason that says nothing about it.
    """
    try:
        # Whoever may write to it: it is no code.
        found = root.read(MARKER_FILE, _MARKER_LIMIT, any_mode=True)
    except (FileNotFoundError, UntrustedFileError):
        return False
    return re.match(_MARKED, found) is not None


def is_recognised(root: Directory) -> bool:
    """Return whether a directory may be marked: an empty one, or a cache without its marker.

    Such a cache has names of the format alone, two levels deep, and not files alone.
    """
    has_directory = has_file = False
    for name in root.names():
        # The root of a file system of its own, and what systems put anywhere.
        if name in ("lost+found", ".DS_Store", ".snapshot") or name.startswith(".nfs"):
            continue
        if is_temporary(name) and name.startswith(f".{MARKER_FILE}."):
            continue  # A process writes the marker now, or was cut off.
        if name == MARKER_FILE and _is_empty(root, name):
            continue  # Its writer was cut off.
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
                # A toolchain may lie elsewhere, by a link of the user's own.
                if name != "toolchain" or not root.is_link(name):
                    return False
    return has_directory or not has_file


def _is_empty(root: Directory, name: str) -> bool:
    try:
        return root.status(name).st_size == 0
    except FileNotFoundError:
        return True


def mark(root: Directory) -> None:
    """Write the marker, and close what older versions have left open to a group.

    They obeyed the umask where compilers work: what others could have put there goes. That is done
    in a cache that has entries, which is no project that only has a directory of such a name.

    Raises:
        OSError: It cannot be written.
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
    """Empty a directory that others can write to, and take that right from them."""
    with contextlib.ExitStack() as opened, contextlib.suppress(FileNotFoundError):
        directory = root
        try:
            for name in path:
                directory = opened.enter_context(directory.directory(name, trusted=False))
        except (NotADirectoryError, UntrustedFileError):
            return
        status = os.fstat(directory.fd)
        if status.st_mode & 0o022 and status.st_uid == os.geteuid():
            os.fchmod(directory.fd, 0o700)  # First: nobody puts anything there any more.
            for name in children(directory, *path):
                if _lookup((*path, name)) != _KEPT:
                    remove(root, *path, name)


# --- removal -------------------------------------------------------------------------------------

# What says that something is left in a directory, is gone, or is in use: it stays.
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
    """Remove what lies at ``path``, as far as it is of the format; return whether it is gone.

    Args:
        root: The cache directory, or the one at ``base`` in it.
        path: The names from there.
        base: Names of the format; a toolchain, which may be a link of the user's own to another
            place, is opened by itself.

    Raises:
        ValueError: The format has no such name, or one that is never removed.
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
    """Remove as ``remove`` does, where the marker says that the directory is a cache.

    Raises: as ``remove``; PermissionError where there is no marker.
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
        # The record first: an entry without one is none, whatever is left of the rest.
        for one in sorted(inner.names(), key=lambda one: (one != ENTRY_FILE, one)):
            if isinstance(what, _Scratch):
                _remove_any(inner, one, mount)
            elif (found := what.find(one)) is not None:
                _remove(inner, one, found, mount)
    return _rmdir(parent, name)


def _remove_any(parent: Directory, name: str, mount: object) -> None:
    """Remove a file, a link itself, or a directory with all that lies in it."""
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

    Whoever may write to it: what is removed is removed by its name, and nothing of it is read.

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
