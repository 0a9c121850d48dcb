"""Entries on local disk: publish, lock, quarantine, discard, clear; ``stored_entries`` finds them.

The store knows files, digests and locks; it decides no policy. It raises, and its caller decides
whether to warn, to go on or to raise. Layout under the root::

    CACHEDIR.TAG                      the marker: nothing is removed where it is missing
    v1/<environment>/<op>/<static|dynamic>/<key>/<target>/{entry.json, library.so, log}
    tmp/<host>-<pid>-<random>/        work in progress; see ``work_directories``
    locks/<two hexadecimal digits>    lock files, one for all keys that begin so; never deleted
    toolchain/                        precompiled headers of the compile worker, the C++ hit path
    verdicts/<processor>/<key>.json   times and checks; see ``verdict``
    usage                             how much all entries take together; see ``usage``
    wanted                            the kept queue; see ``wanted_calls``
    runs                              runs of scripts; see ``_workloads/left_out``
    totals.json                       counters of all processes, for the command line

An entry is published by one rename of a directory, so a reader sees all of it or nothing. Every
operation opens the root anew, checks it, and works relative to it; see ``_base/trusted_files``.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .._base.file_lock import FileLock
from .._base.late_import import importing
from .._base.store_format import (
    ENTRY_FILE,
    LIBRARY_FILE,
    LOG_FILE,
    USAGE_FILE,
    WANTED_FILE,
    children,
    is_entry,
)
from .._base.store_removal import remove
from .._base.trusted_files import Directory
from .._keys.kernel_key import KernelKey
from ..config import config
from ..errors import (
    CacheFormatError,
    EntryDamagedError,
    LockTimeoutError,
    StoreError,
)
from .entry import Entry, Status, encode
from .entry_files import (
    LOG_LIMIT,
    BadEntry,
    StoredEntry,
    path_below,
    read_entry,
    take_library,
)
from .store_root import names_below, store_error, store_errors
from .stored_entries import StoredEntries

if TYPE_CHECKING:
    from .limits import Limits

# An eviction may remove an empty directory that an entry is about to be renamed into; then the
# directory is made again.
_MOST_PLACINGS = 100

__all__ = ["ENTRY_FILE", "LIBRARY_FILE", "LOG_FILE", "BadEntry", "Store", "StoredEntry"]


class Store(StoredEntries):
    """The store at ``root``; nothing is read or created before the first use.

    Args:
        root: Its directory, an absolute path; ``None`` where this user has no home for one.
        lock_timeout_s: Seconds that ``locked`` waits for another process.
        preferred_target: The target whose entries ``find`` looks at first.
        limits: What ``publish`` evicts for. ``None``: ``publish`` only counts; for stores that
            calls write to, because no call evicts.
        longest_wait_s: Most seconds that ``publish`` waits for another process's eviction, if that
            is less than the 20 s of ``puts``.
    """

    def __init__(
        self,
        root: Path | None,
        *,
        lock_timeout_s: float,
        preferred_target: str = "",
        limits: Limits | None = None,
        longest_wait_s: float = math.inf,
    ) -> None:
        super().__init__(root, preferred_target=preferred_target)
        self.lock_timeout_s = lock_timeout_s
        self._limits = limits
        self._longest_wait_s = longest_wait_s

    def has_wanted(self) -> bool:
        """Return whether processes have left keys that they wanted (``kept_queue``)."""
        return os.path.lexists(self.root / WANTED_FILE)

    @contextlib.contextmanager
    def locked(self, key: KernelKey) -> Iterator[None]:
        """Hold the lock of ``key`` among processes. Locks are advisory and die with their holder.

        Raises:
            LockTimeoutError: Another process held it for longer than ``lock_timeout_s`` seconds.
            StoreError: The lock file cannot be created.
        """
        path = self.root / "locks" / key.digest[:2]
        with (
            self.writable() as root,
            store_errors(f"{path}: cannot be locked"),
            root.directory("locks", create=True) as locks,
        ):
            lock = FileLock(locks, path.name)
        try:
            try:
                lock.acquire(self.lock_timeout_s)
            except TimeoutError as error:
                raise LockTimeoutError(
                    f"{key.op}: another process has been compiling this key for more than "
                    f"{self.lock_timeout_s:g} s (lock {path})"
                ) from error
            except OSError as error:
                raise store_error(f"{path}: cannot be locked", error) from error
            yield
        finally:
            lock.close()

    def publish(
        self,
        entry: Entry,
        work: Path,
        library: Path | None,
        log: str,
        *,
        sha256: str | None = None,
    ) -> StoredEntry:
        """Publish ``entry`` with its files in one rename, and return it as stored.

        If another process published the same entry first, its copy stays and is returned. If the
        store is then larger than its limits, other entries are evicted (``puts``).

        Args:
            entry: Its ``library`` is filled in here.
            work: A directory of ``workspace``.
            library: The library's file, inside ``work``; ``None`` for an entry without one.
            log: What the compiler wrote.
            sha256: The digest of the library that was tried, if one was tried.

        Raises:
            CacheFormatError: A newer version has published the same entry; its copy stays.
            StoreError: The entry cannot be written; nothing of it is left behind.
        """
        with importing():
            from .limits import Amount
            from .puts import put

        final = self._entry_path(entry)
        stored: StoredEntry | None = None

        def install() -> bool:
            nonlocal stored
            stored = self._placed(root, entry, (working, staged))
            return stored.entry is entry

        with (
            self.writable() as root,
            store_errors(f"{final}: cannot be written"),
            root.descend("tmp", work.name) as working,
        ):
            staged = f"staged-{uuid.uuid4().hex[:8]}"
            with working.directory(staged, create=True) as directory:
                if library is not None:
                    taken = take_library(working, path_below(work, library), directory)
                    if sha256 not in (None, taken.sha256):
                        raise StoreError(f"{library}: is not the library that was tried")
                    entry = replace(entry, library=taken)
                size = 0 if entry.library is None else entry.library.size_bytes
                text = log.encode(errors="replace")[-LOG_LIMIT:]
                if text:
                    directory.write(LOG_FILE, text)
                document = encode(entry)
                directory.write(ENTRY_FILE, document)
            more = Amount(size + len(text) + len(document), 1)
            place = names_below(self.root, final)
            put(root, place, more, self._limits, install, self._longest_wait_s)
        assert stored is not None
        return stored

    def _placed(self, root: Directory, entry: Entry, staged: tuple[Directory, str]) -> StoredEntry:
        *above, target = names_below(self.root, self._entry_path(entry))
        for left in reversed(range(_MOST_PLACINGS)):
            try:
                with root.descend(*above, create=True) as parent:
                    return StoredEntry(*self._install(root, entry, staged, (parent, target)))
            except FileNotFoundError:
                if not left:
                    raise
        raise AssertionError

    def _install(
        self,
        root: Directory,
        entry: Entry,
        staged: tuple[Directory, str],
        final: tuple[Directory, str],
    ) -> tuple[Entry, Path]:
        (working, staged_name), (parent, target) = staged, final
        path = self._entry_path(entry)
        for _ in range(3):
            try:
                # Rename last: a reader must never see half an entry.
                os.rename(staged_name, target, src_dir_fd=working.fd, dst_dir_fd=parent.fd)
                return entry, path
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            try:
                theirs = read_entry(parent, target)
                if theirs.entry.library is not None:
                    self.check_library(theirs)
                if theirs.entry.status is entry.status:
                    return theirs.entry, path
            except (EntryDamagedError, FileNotFoundError):
                pass  # CacheFormatError is raised: another version's entry stays.
            if not remove(root, *names_below(self.root, path)):
                # The directory holds files that are not ours; these stay.
                with (
                    working.directory(staged_name) as directory,
                    parent.directory(target) as place,
                ):
                    # The record last: until it is there, the directory holds no entry.
                    for name in sorted(directory.names(), key=lambda one: one == ENTRY_FILE):
                        os.rename(name, name, src_dir_fd=directory.fd, dst_dir_fd=place.fd)
                return entry, path
        raise StoreError(f"{path}: other processes keep writing it")

    def quarantine(self, found: StoredEntry, reason: str, message: str) -> None:
        """Replace a stored entry by itself marked as wrong; its library is kept for inspection.

        A library that is missing or damaged is not kept, and the new entry names none.

        Raises:
            StoreError: The store cannot be written.
        """
        entry = replace(
            found.entry, status=Status.QUARANTINED, reason=reason, message=message, library=None
        )
        with self.workspace() as work:
            copy: Path | None = work / LIBRARY_FILE
            try:
                content = self.check_library(found).content
                assert copy is not None
                assert content is not None
                copy.write_bytes(content)
            except OSError:
                copy = None
            self.publish(entry, work, copy, message)

    def discard(self, path: Path) -> None:
        """Remove one entry's directory; missing or unremovable is no error of the caller's.

        Files that somebody else has put into the directory stay.

        Raises:
            StoreError: The store cannot be written, or ``path`` is no entry's directory in it.
        """
        parts = names_below(self.root, path)
        if not is_entry(parts):
            raise StoreError(f"{path}: is no entry's directory, so it is not removed")
        with self.writable() as root, store_errors(f"{path}: cannot be removed"):
            remove(root, *parts)

    def discard_if_unchanged(self, found: StoredEntry) -> None:
        """Remove an entry, unless another process has replaced it since it was read.

        Raises:
            StoreError: The store cannot be read or written.
        """
        try:
            again = self.read(found.path)
        except (FileNotFoundError, EntryDamagedError, CacheFormatError):
            return
        if again.entry == found.entry:
            self.discard(found.path)

    def clear(self) -> int:
        """Remove all entries of all environments, and return how many there were.

        Raises:
            StoreError: The store is not ours or has no marker, or cannot be written.
        """
        count = sum(1 for _ in self.scan())
        with self.marked() as root:
            if root is None:
                return 0
            with store_errors(f"{self.root}: its entries cannot be removed"):
                for environment in self._names(root, "v1"):
                    remove(root, "v1", environment)
                remove(root, USAGE_FILE)  # The next put counts.
        return count

    def _names(self, root: Directory, *names: str) -> list[str]:
        try:
            with root.descend(*names) as directory:
                return list(children(directory, *names))
        except (FileNotFoundError, NotADirectoryError):
            return []


def store_at(cache_dir: str | os.PathLike[str] | None) -> Store:
    """Return the store at ``cache_dir``; by default, the store of the settings.

    Raises:
        ConfigError: A setting has a wrong value.
    """
    root = config.cache_dir if cache_dir is None else Path(cache_dir).expanduser().absolute()
    return Store(root, lock_timeout_s=config.lock_timeout_s)
