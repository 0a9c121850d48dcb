"""The file of a bundle: a tar file with plain files alone, in the manifest's order.

The names in the file mean nothing: ``0``, ``1``, ... behind the manifest and the signatures. Where
something goes in a store is computed from its content. So no name leads out of a store, and a
member that is no plain file is refused.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import BundleError
from .manifest import MANIFEST_LIMIT, Manifest, Member, decode

MANIFEST_NAME, SIGNATURES_NAME = "manifest.json", "signatures.json"
SIGNATURES_LIMIT = 64 << 10

_CHUNK = 1 << 20
# Without O_NONBLOCK, opening a pipe would wait for the other end.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def write(
    file: IO[bytes], manifest: bytes, signatures: bytes | None, members: Iterable[bytes]
) -> None:
    """Write a bundle; the same arguments give the same bytes.

    Args:
        file: Is written to.
        manifest: The manifest's document.
        signatures: The signatures' document; ``None`` for a bundle without signatures.
        members: The content of every member, in the manifest's order.

    Raises:
        OSError: The file cannot be written.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, MANIFEST_NAME, manifest)
        if signatures is not None:
            _add(archive, SIGNATURES_NAME, signatures)
        for number, content in enumerate(members):
            _add(archive, str(number), content)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # Of user 0 and time 0: bytes do not depend on who writes them.
    member.size, member.mode = len(content), 0o600
    archive.addfile(member, io.BytesIO(content))


class BundleFile:
    """A bundle that is open to be read.

    Args:
        path: The file.

    Attributes:
        path: The file.
        manifest: What is in the file; the digests are compared when members are read.
        document: The manifest's bytes, which signatures are made of.
        signatures: The signatures' document; ``None`` if there is none.

    Raises:
        BundleError: The file is no bundle, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _opened(path)
        try:
            self._archive = tarfile.open(fileobj=_Bounded(self._file), mode="r:")  # noqa: SIM115
            self.document = self._next(MANIFEST_NAME, MANIFEST_LIMIT)
            self.manifest: Manifest = decode(self.document)
            self._waiting = self._member()
            self.signatures: bytes | None = None
            if self._waiting is not None and self._waiting.name == SIGNATURES_NAME:
                self.signatures = self._content(self._waiting, SIGNATURES_LIMIT)
                self._waiting = self._member()
        except BundleError as error:
            self.close()
            raise BundleError(f"{path}: {error}") from error
        except BaseException as error:
            self.close()
            if isinstance(error, (tarfile.TarError, OSError, EOFError, ValueError)):
                raise BundleError(f"{path}: is no bundle: {error}") from error
            raise

    def __enter__(self) -> BundleFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def contents(self) -> Iterator[tuple[Member, bytes | None]]:
        """Give every member of the manifest with its bytes; ``None`` where the bytes are others.

        Raises:
            BundleError: The file ends too early, or has members that the manifest does not name.
        """
        manifest = self.manifest
        wanted = [one for entry in manifest.entries for one in (entry.record, entry.library) if one]
        wanted += [member for _, member in manifest.toolchain]
        try:
            for number, member in enumerate(wanted):
                info = self._waiting if number == 0 else self._member()
                if info is None:
                    raise BundleError(f"ends after {number} of {len(wanted)} files")
                if info.name != str(number):
                    raise BundleError(f"has {info.name!r} where file {number} should be")
                if info.size != member.size:
                    yield member, None
                    continue
                content = self._content(info, member.size)
                matches = hashlib.sha256(content).hexdigest() == member.sha256
                yield member, content if matches else None
            end = self._member() if wanted else self._waiting
            if end is not None:
                raise BundleError(f"has a file {end.name!r} that its manifest does not name")
        except BundleError as error:
            raise BundleError(f"{self.path}: {error}") from error
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise BundleError(f"{self.path}: cannot be read to its end: {error}") from error

    def _member(self) -> tarfile.TarInfo | None:
        info = self._archive.next()
        if info is None:
            return None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
            raise BundleError(f"has {info.name!r}, which is no plain file")
        return info

    def _next(self, name: str, limit: int) -> bytes:
        info = self._member()
        if info is None or info.name != name:
            raise BundleError(f"does not begin with {name}")
        return self._content(info, limit)

    def _content(self, info: tarfile.TarInfo, limit: int) -> bytes:
        if info.size > limit:
            raise BundleError(f"has {info.size} bytes in {info.name!r}; at most {limit} are read")
        reader = self._archive.extractfile(info)
        assert reader is not None
        chunks, left = [], info.size
        while left:
            chunk = reader.read(min(left, _CHUNK))
            if not chunk:
                raise BundleError(f"ends in {info.name!r}")
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)


class _Bounded(io.RawIOBase):
    """A file whose reads are short: tarfile reads headers of any size that a file claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise BundleError(f"has a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _opened(path: Path) -> IO[Any]:
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        reason = "is no regular file" if error.errno == errno.ENXIO else error.strerror
        raise BundleError(f"{path}: cannot be read: {reason}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleError(f"{path}: is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
