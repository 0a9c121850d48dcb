"""Files with a record of their sizes and digests beside them, by which half a file is recognised.

Records are for files that compilers open by name, such as precompiled headers: such a file cannot
be copied into sealed memory first, and it is large. Nobody else can write to its directory, so a
file that was compared once stays right as long as it is the same file::

    {"files": {"<name>": {"size_bytes": 150000000, "sha256": "<hexadecimal digits>"}}}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import UntrustedFileError
from .trusted_files import Directory

# Most bytes that a record may have; a longer one is not read.
_RECORD_LIMIT = 1 << 16
# Most bytes that a file may have, whatever its record says.
_FILE_LIMIT = 1 << 31

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """What a record says about one file."""

    size_bytes: int
    sha256: str


Record = Mapping[str, RecordedFile]

# What was compared in this process: device, inode, size, time of the last change, and digest.
_compared: set[tuple[int, int, int, int, str]] = set()


def write_record(directory: Directory, record_name: str, names: Iterable[str]) -> None:
    """Write the record of the files ``names``, as they are now.

    Raises:
        OSError: A file cannot be read, others could have written it, or there is no room.
    """
    files = {}
    for name in names:
        fd = directory.open(name)
        try:
            sha256 = _digest(fd)
            _compared.add(_identity(os.fstat(fd), sha256))
            files[name] = {"size_bytes": os.fstat(fd).st_size, "sha256": sha256}
        finally:
            os.close(fd)
    directory.write(record_name, (json.dumps({"files": files}, indent=1) + "\n").encode())


def read_record(directory: Directory, record_name: str) -> Record:
    """Return what a record says, by file name.

    Raises:
        FileNotFoundError: There is no record.
        UntrustedFileError: The file is no record, or others could have written it.
        OSError: The record cannot be read.
    """
    content = directory.read(record_name, _RECORD_LIMIT)
    try:
        return {
            str(name): RecordedFile(int(file["size_bytes"]), str(file["sha256"]))
            for name, file in json.loads(content)["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UntrustedFileError(directory.path / record_name, "is no record of files") from None


def check_recorded(
    directory: Directory, name: str, record: Record, *, remembered: bool = True
) -> None:
    """Raise unless the file ``name`` is what its record says.

    Args:
        directory: The file's directory.
        name: The file's name, one component.
        record: The record of that directory.
        remembered: Whether a comparison made earlier in this process is enough.

    Raises:
        FileNotFoundError: The file is missing.
        UntrustedFileError: The file is another one, or others could have written it.
        OSError: The file cannot be read.
    """
    path = directory.path / name
    fd = directory.open(name)
    try:
        status = os.fstat(fd)
        recorded = record.get(name)
        if recorded is None:
            raise UntrustedFileError(path, "has no record of its size and digest")
        if status.st_size != recorded.size_bytes or status.st_size > _FILE_LIMIT:
            raise UntrustedFileError(
                path, f"has {status.st_size} bytes; its record says {recorded.size_bytes}"
            )
        identity = _identity(status, recorded.sha256)
        if remembered and identity in _compared:
            return
        if _digest(fd) != recorded.sha256:
            raise UntrustedFileError(path, "is not the file that its record is of")
        _compared.add(identity)
    finally:
        os.close(fd)


def are_recorded(directory: Directory, record_name: str, names: Iterable[str]) -> bool:
    """Return whether all files ``names`` exist and are what their record says."""
    try:
        record = read_record(directory, record_name)
        for name in names:
            check_recorded(directory, name, record)
    except OSError:
        return False
    return True


def _digest(fd: int) -> str:
    sha256 = hashlib.sha256()
    while chunk := os.read(fd, _CHUNK):
        sha256.update(chunk)
    return sha256.hexdigest()


def _identity(status: os.stat_result, sha256: str) -> tuple[int, int, int, int, str]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, sha256
