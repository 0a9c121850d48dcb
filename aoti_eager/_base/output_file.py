"""A file that is written at the end of a long run; the start of the run checks that it can be."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import AotiEagerError, OutputFileError

_PREFIX = ".aoti-eager-"


class OutputFile:
    """A file to be written later, in one piece.

    Other users may be able to write to the directory, so temporary files get random names: nobody
    can guess such a name and make a link of it beforehand.

    Args:
        path: The file. A relative path is resolved now, because a script may change its directory.
            A link is followed, unless another user has made it.
        pipes: Whether ``path`` may be a pipe or a device, which is then written to directly.

    Raises:
        OutputFileError: The file cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str], *, pipes: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self._is_direct = pipes and _is_pipe_or_device(self.path)
        if self._is_direct:
            return
        _refuse_links_of_others(self.path)
        self.path = Path(os.path.realpath(path))
        try:
            is_regular = stat.S_ISREG(os.stat(self.path).st_mode)
        except FileNotFoundError:
            is_regular = True  # ``write`` will make a regular file.
        except OSError as error:
            raise self._error(error) from error
        if not is_regular:  # A device or a pipe would be replaced by a file.
            raise OutputFileError(f"{self.path}: cannot be written: is no regular file")
        try:
            # All that can be checked before there is content; an existing file stays unchanged.
            _open_for_writing(path)
            self._new_mode = self._mode_of_new_files()
        except OSError as error:
            raise self._error(error) from error

    def write(self, content: bytes) -> None:
        """Write the file; readers see the old content or all of the new one.

        An existing file keeps its mode; a new file gets the mode of new files.

        Raises:
            OutputFileError: The file cannot be written; an old file stays as it was.
        """
        with self.stream() as file:
            file.write(content)

    @contextlib.contextmanager
    def stream(self) -> Iterator[IO[bytes]]:
        """Give a file to write to, which takes its name at the end of the block.

        An error in the block leaves an old file as it was, and is raised as it is if it is one of
        this package's. Raises: as ``write``.
        """
        if self._is_direct:
            try:
                with open(self.path, "wb", buffering=0) as stream:
                    yield stream
            except AotiEagerError:
                raise
            except OSError as error:
                raise self._error(error) from error
            return
        try:
            # In the same directory, because a rename works within one file system only.
            descriptor, temporary = tempfile.mkstemp(prefix=_PREFIX, dir=self.path.parent)
        except OSError as error:
            raise self._error(error) from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), self._mode())
                yield file
            os.replace(temporary, self.path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError) and not isinstance(error, AotiEagerError):
                raise self._error(error) from error
            raise

    def _mode_of_new_files(self) -> int:
        """Return the mode that the system gives to a file that ``open`` makes in the directory.

        This makes a file for a moment and reads its mode: the umask cannot be read without being
        changed, and the directory may have defaults of its own.
        """
        trial = self.path.with_name(f"{_PREFIX}{secrets.token_hex(8)}")
        descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            return stat.S_IMODE(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)
            os.unlink(trial)

    def _mode(self) -> int:
        try:
            # Read, write and execute bits only: a set-user-ID bit was given to the old content.
            return os.stat(self.path).st_mode & 0o777
        except OSError:
            return self._new_mode

    def _error(self, error: OSError) -> OutputFileError:
        return OutputFileError(f"{self.path}: cannot be written: {error.strerror}")


def _open_for_writing(path: str | os.PathLike[str]) -> None:
    """Open and close the file at ``path``, if there is one; nothing is made.

    The mode alone would not tell: the system may refuse links that others have made in /tmp.

    Raises:
        OSError: The file cannot be opened.
    """
    with contextlib.suppress(FileNotFoundError):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _is_pipe_or_device(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _refuse_links_of_others(path: Path) -> None:
    """Raise if ``path`` is a link that another user has made, or leads to one.

    Other users can make a link to this user's file wherever they can write.

    Raises:
        OutputFileError: Another user has made a link on the way.
    """
    for _ in range(40):
        try:
            status = os.lstat(path)
        except OSError:
            return
        if not stat.S_ISLNK(status.st_mode):
            return
        if status.st_uid not in (0, os.geteuid()):
            raise OutputFileError(
                f"{path}: cannot be written: is a link that user {status.st_uid} has made; name a "
                "file in a directory of your own"
            )
        path = Path(os.path.normpath(path.parent / os.readlink(path)))
