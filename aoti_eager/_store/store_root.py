"""A store's directory: opened and checked for each operation, made, marked, and swept.

Everything below is reached relative to the open directory, so nobody can replace the directory
between the check and the use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .._base.store_marker import is_marked, is_recognised, mark
from .._base.trusted_files import Directory, open_directory
from .._base.trusted_path import ADVICE
from ..errors import StoreError, StorePermissionError, UntrustedFileError
from .work_directories import (
    remove_stale_work,
    remove_work_of,
    stale_work,
    work_directory,
)

NO_HOME = (
    "this user has no home directory, so there is no place for the cache; "
    "set AOTI_EAGER_CACHE_DIR to a directory of your own"
)


class StoreRoot:
    """The directory at ``root``; nothing is read or created before the first use.

    Args:
        root: An absolute path; ``None`` where this user has no home for one.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """Return the store's directory.

        Raises:
            StoreError: There is none.
        """
        if self._root is None:
            raise StoreError(NO_HOME)
        return self._root

    def is_trusted(self) -> bool:
        """Return whether the directory exists and is ours alone to write; never raises."""
        try:
            with self.below() as root:
                return root is not None
        except StoreError:
            return False

    def require_marker(self) -> None:
        """Raise unless the store may be cleaned up: it is marked as ours, or is not there.

        Raises:
            StoreError: It is not ours, cannot be read, or has no marker.
        """
        with self.marked():
            pass

    def create(self) -> None:
        """Create the directory, if it is missing.

        Raises:
            StoreError: It cannot be created, or is not ours alone to write.
        """
        with self.writable():
            pass

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """Give a new empty directory on the store's file system; it is removed at the end.

        Raises:
            StoreError: It cannot be created: read-only, full, or not ours.
        """
        with self.writable() as root, contextlib.ExitStack() as stack:
            with store_errors(f"{root.path / 'tmp'}: no work directory can be created"):
                work = stack.enter_context(work_directory(root))
            yield work

    def stale_work(self) -> list[Path]:
        """Return the work directories whose process is dead.

        Raises:
            StoreError: The store is not ours, or cannot be read.
        """
        with self.below() as root, store_errors(f"{self.root}: cannot be read"):
            return [] if root is None else [root.path / "tmp" / name for name in stale_work(root)]

    def remove_stale_work(self) -> int:
        """Remove the work directories of dead processes and return how many there were.

        Raises:
            StoreError: The store is not ours or has no marker, or cannot be written.
        """
        with self.marked() as root, store_errors(f"{self.root}: cannot be written"):
            return 0 if root is None else remove_stale_work(root)

    def remove_work_of(self, pid: int) -> None:
        """Remove what a dead process of this machine was working on in the store."""
        with contextlib.suppress(StoreError), self.marked() as root:
            if root is not None:
                remove_work_of(pid, root)

    # -- the open directory --

    @contextlib.contextmanager
    def below(self, *names: str) -> Iterator[Directory | None]:
        """Give the open directory at ``names``; ``None`` if it does not exist.

        Raises:
            StoreError: The directory cannot be read.
            StorePermissionError: The directory is not ours alone to write.
        """
        with contextlib.ExitStack() as opened:
            found: Directory | None
            try:
                found = opened.enter_context(_opened(self.root))
                if names:
                    found = opened.enter_context(found.descend(*names))
            except FileNotFoundError:
                found = None
            except NotADirectoryError:
                # A stray file is in a directory's place. (For a root that is a file, ``_opened``
                # has raised StoreError.)
                found = None
            except UntrustedFileError as error:
                raise StorePermissionError(str(error)) from error
            except OSError as error:
                if isinstance(error, StoreError):
                    raise
                raise store_error(f"{self.root.joinpath(*names)}: cannot be read", error) from error
            yield found

    @contextlib.contextmanager
    def marked(self) -> Iterator[Directory | None]:
        """Give the open root to remove something in it; ``None`` if there is nothing of ours.

        Raises:
            StoreError: As for ``below``; or the root has no marker, so it may be somebody's
                project.
        """
        with self.below() as root:
            with store_errors(f"{self.root}: cannot be read"):
                marked = root is not None and is_marked(root)
                nothing = (
                    root is not None
                    and not marked
                    and is_recognised(root)
                    and not {"v1", "verdicts"} & set(root.names())
                )
                # Another process may have marked it between the two looks.
                marked = marked or (root is not None and not nothing and is_marked(root))
            if root is None or marked:
                yield root
            elif nothing:
                yield None
            else:
                raise StoreError(
                    f"{self.root}: nothing is removed, because no CACHEDIR.TAG says that it is a "
                    "cache of aoti_eager; name the cache's own directory (a cache of an older "
                    "version is marked when a script next uses it)"
                )

    @contextlib.contextmanager
    def writable(self) -> Iterator[Directory]:
        """Give the open root, made and marked if need be.

        Raises:
            StoreError: It cannot be made or marked, is not ours, or is somebody's project.
        """
        with contextlib.ExitStack() as opened:
            with store_errors(f"{self.root}: cannot be created"):
                root = opened.enter_context(_opened(self.root, create=True))
                if not is_marked(root):
                    # Another process may have marked it between the two looks.
                    if not is_recognised(root) and not is_marked(root):
                        raise StoreError(
                            f"{self.root}: is neither empty nor a cache of aoti_eager; {ADVICE}"
                        )
                    mark(root)
            yield root


def names_below(root: Path, path: Path) -> tuple[str, ...]:
    """Return the names that lead from a store's directory to ``path``.

    Raises:
        StoreError: ``path`` is not in the store.
    """
    try:
        return path.relative_to(root).parts
    except ValueError as error:
        raise StoreError(f"{path}: is not in the store {root}") from error


def _opened(root: Path, *, create: bool = False) -> Directory:
    """Return the open root; errors as for ``open_directory``, but for a file, a StoreError."""
    try:
        return open_directory(root, create=create)
    except NotADirectoryError as error:
        raise StoreError(f"{root}: is no directory; set AOTI_EAGER_CACHE_DIR to one") from error


def store_error(what: str, error: OSError) -> StoreError:
    return StoreError(error.errno, f"{what}: {error.strerror or error}")


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError that says what cannot be done."""
    try:
        yield
    except UntrustedFileError as error:
        raise StorePermissionError(str(error)) from error
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise store_error(what, error) from error
