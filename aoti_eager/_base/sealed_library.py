"""Private copies of libraries' bytes, which nobody can change while they are in use.

Whoever can write to a mapped file controls it: if the file is replaced between the check and
``dlopen``, the other file is loaded; if it is truncated in place, the process dies by SIGBUS. So
the bytes whose digest was compared are copied into sealed memory, and the copy is opened.

The loader recognises a library by the name it was opened under, before it looks at any file.
Descriptor numbers are used again, and a name made of the number alone would be, too: the loader
would hand out the library that had the number before. So each copy has a name that no other copy
in the process has.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import functools
import hashlib
import itertools
import mmap
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from ..errors import UntrustedFileError
from .trusted_files import open_directory, write_all

# Most bytes that a library may have; a larger one is not read.
LIBRARY_LIMIT = 64 << 20

# Since Linux 6.3: without this flag the kernel logs a warning, or refuses if it is configured to.
_MFD_EXEC = 0x10

_counter = itertools.count()


class SealedLibrary:
    """A copy of a shared object, to be opened by ``name``; after ``close``, mappings of it stay.

    Args:
        content: The shared object's bytes.
        path: The file that the bytes were read from, for messages.

    Attributes:
        name: The name for ``dlopen``, to be used unchanged: ``pathlib`` would make it another name.
        path: As given.
        content: As given; empty after ``close``.
        identity: Device and inode of the copy.

    Raises:
        OSError: There is no memory, no descriptor, or no place for the copy.
    """

    __slots__ = ("_directory", "_fd", "content", "identity", "name", "path")

    def __init__(self, content: bytes, path: Path) -> None:
        self.path = path
        self.content = content
        self._directory: str | None = None
        self._fd = -1
        if _memory_is_executable():
            self._fd = _sealed_memory(content, path.name)
            self.name = _unique_name(self._fd)
            status = os.fstat(self._fd)
        else:
            self._directory, self.name = _private_file(content)
            status = os.stat(self.name)
        self.identity = (status.st_dev, status.st_ino)

    def __enter__(self) -> SealedLibrary:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the copy: whoever has opened it keeps it, and nobody else can open it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self.content = b""
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def library_digest(path: Path) -> str:
    """Return the SHA-256 of a library that has just been made, in hexadecimal digits.

    Raises:
        OSError: The library cannot be read, or others could have written it.
    """
    with open_directory(path.parent) as directory:
        content = directory.read(path.name, LIBRARY_LIMIT, any_mode=True)
    return hashlib.sha256(content).hexdigest()


def sealed_file(path: Path, sha256: str) -> SealedLibrary:
    """Return a private copy of the library at ``path``, whose bytes have the digest ``sha256``.

    Args:
        path: An absolute path; every directory on the way is checked.
        sha256: In hexadecimal digits.

    Raises:
        UntrustedFileError: The digest is another one, or others could have written the file.
        OSError: The file cannot be read or copied.
    """
    with open_directory(path.parent) as directory:
        content = directory.read(path.name, LIBRARY_LIMIT, any_mode=True)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UntrustedFileError(path, "is not the file that was compiled")
    return SealedLibrary(content, path)


def _sealed_memory(content: bytes, label: str) -> int:
    fd = _memory(f"aoti_eager:{label}")
    try:
        write_all(fd, content)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _memory(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the kernel does not know the flag.
            raise
        return os.memfd_create(name, flags)


def _unique_name(fd: int) -> str:
    """Return a path of ``fd`` that was never used before.

    The path contains a running count, written in separators that mean nothing: ``//`` for 0,
    ``/./`` for 1.
    """
    count = next(_counter)
    bits = "".join("./" if bit == "1" else "/" for bit in f"{count:b}")
    return f"/proc/self/fd/{bits}{fd}"


@functools.cache
def _memory_is_executable() -> bool:
    """Return whether a library can be opened from memory, through ``/proc`` and executable."""
    try:
        fd = _sealed_memory(b"\0" * mmap.PAGESIZE, "probe")
    except (AttributeError, OSError):
        return False  # Not Linux, or a sandbox that forbids it.
    try:
        if not os.path.exists(f"/proc/self/fd/{fd}"):
            return False
        prot = mmap.PROT_READ | mmap.PROT_EXEC
        mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE, prot=prot).close()
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _private_file(content: bytes) -> tuple[str, str]:
    """Return a new directory, 0700, and the copy in it."""
    directory = tempfile.mkdtemp(prefix="aoti-eager-")
    name = os.path.join(directory, "library.so")
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, content)
        finally:
            os.close(fd)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory, name


_kept: list[tuple[int, str]] = []


def copy_for_good(content: bytes) -> Path:
    """Return a private file with ``content`` that stays until this process ends.

    Such a file is for a device's own loader, which may open it at any time.

    Raises:
        OSError: There is no place for the file.
    """
    directory, name = _private_file(content)
    _kept.append((os.getpid(), directory))
    return Path(name)


@atexit.register
def _remove_kept() -> None:
    for pid, directory in _kept:
        if pid == os.getpid():  # A forked child must not remove its parent's files.
            shutil.rmtree(directory, ignore_errors=True)
