"""A file that the end of a long run writes: whether it can be is found out at the start."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import OutputFileError


class OutputFile:
    """A file to be written later, in one piece.

    Args:
        path: Where; what a relative one means is settled now, because a script may change the
            directory. A link is followed.

    Raises:
        OutputFileError: It cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.realpath(path))
        # Not by pathlib: it raises where a name is too long.
        if os.path.exists(self.path):
            # A device or a pipe would be replaced by a file.
            if not os.path.isfile(self.path):
                raise OutputFileError(f"{self.path}: cannot be written: is no regular file")
            if not os.access(self.path, os.W_OK):
                raise OutputFileError(f"{self.path}: cannot be written: Permission denied")
        # As much as can be known before there is a content, and what is there stays meanwhile.
        self._write_beside(b"").unlink()

    def write(self, content: bytes) -> None:
        """Write the file; readers see the old one or all of the new one.

        Raises:
            OutputFileError: It cannot be written; what was there before stays.
        """
        temporary = self._write_beside(content)
        try:
            os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._error(error) from error

    def _write_beside(self, content: bytes) -> Path:
        # In the same directory: a rename works within one file system only.
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(content)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise self._error(error) from error
        return temporary

    def _error(self, error: OSError) -> OutputFileError:
        return OutputFileError(f"{self.path}: cannot be written: {error.strerror}")
