"""Inductor's own precompiled headers, which full libraries need, and the records beside them.

Inductor compiles a header into its final place and later uses any file that it finds there. So a
header without a record, while no process makes headers, is a killed compiler's, and is removed.
Worker only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .._base.file_lock import locked
from .._base.recorded_files import are_recorded, write_record
from .._base.store_format import HEADERS_LOCK, children, is_inductor_header
from .._base.store_removal import remove
from .._base.trusted_files import Directory, open_directory

_PLACE = ("toolchain", "headers")

# Seconds to wait for another process, which makes two headers at most: half a minute's work.
_LOCK_TIMEOUT_S = 60.0


class OwnHeaders:
    """Inductor's headers in an open directory, while no other process makes headers."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def remove_damaged(self) -> bool:
        """Remove headers that do not match their record; return whether there were any."""
        names = self._names()
        stems = {name.partition(".")[0] for name in names}
        damaged = {stem for stem in stems if not self._is_whole(stem)}
        self._remove(name for name in names if name.partition(".")[0] in damaged)
        return bool(damaged)

    def remove_all(self) -> None:
        """Remove all headers."""
        self._remove(self._names())

    def has(self, header: str) -> bool:
        """Return whether the header at a path has its precompiled form."""
        return f"{Path(header).name}.gch" in self._directory.names()

    def keep(self, header: str) -> None:
        """Write the record of the header at a path, unless it has one.

        Raises:
            OSError: The header's precompiled form is missing, or the disk is full.
        """
        stem = Path(header).stem
        if not self._is_whole(stem):
            write_record(self._directory, _record(stem), _parts(stem))

    def _names(self) -> list[str]:
        found = children(self._directory, *_PLACE)
        return [name for name in found if is_inductor_header(name)]

    def _is_whole(self, stem: str) -> bool:
        return are_recorded(self._directory, _record(stem), _parts(stem))

    def _remove(self, names: Iterator[str] | list[str]) -> None:
        # The records first, by the order of their names: without them, other files are not used.
        for name in sorted(names, reverse=True):
            remove(self._directory, name, base=_PLACE)


@contextlib.contextmanager
def own_headers(headers: Path) -> Iterator[OwnHeaders]:
    """Give Inductor's headers in ``headers``, locked; the directory is made if it is missing.

    Raises:
        TimeoutError: Another process takes too long to make a header.
        OSError: The directory cannot be made, or others can write to it.
    """
    with (
        open_directory(headers, create=True) as directory,
        directory.directory("locks", create=True) as locks,
        locked(locks, HEADERS_LOCK, _LOCK_TIMEOUT_S),
    ):
        yield OwnHeaders(directory)


def _parts(stem: str) -> tuple[str, str]:
    return f"{stem}.h", f"{stem}.h.gch"


def _record(stem: str) -> str:
    return f"{stem}.h.gch.json"
