"""Entries on local disk: find, publish, lock, verify, clear.

The store knows files, digests and locks; it decides no policy. It raises, and its caller decides
whether to warn, to go on or to raise. Layout under the root::

    CACHEDIR.TAG                      the marker: nothing is removed where it is missing
    v1/<environment>/<op>/<static|dynamic>/<key>/<target>/{entry.json, library.so, log}
    tmp/<host>-<pid>-<random>/        work in progress; see ``work_directories``
    locks/<two hexadecimal digits>    lock files, one for all keys that begin so; never deleted
    toolchain/                        precompiled headers of the compile worker, the C++ hit path
    verdicts/<processor>/<key>.json   times and checks; see ``verdict``
    wanted                            the kept queue; see ``wanted_calls``
    runs                              runs of scripts; see ``_workloads/left_out``
    totals.json                       counters of all processes, for the command line

An entry is published by one rename of a directory, so a reader sees all of it or nothing. Every
operation opens the root anew, checks it, and works relative to it; see ``_base/trusted_files``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .._base.file_lock import FileLock
from .._base.sealed_library import SealedLibrary
from .._base.store_format import ENTRY_FILE, LIBRARY_FILE, LOG_FILE, WANTED_FILE, children, is_entry
from .._base.store_removal import remove
from .._base.trusted_files import Directory
from .._base.warn_once import log
from .._keys.kernel_key import KernelKey
from ..errors import (
    CacheFormatError,
    EntryDamagedError,
    LockTimeoutError,
    StoreError,
    UntrustedFileError,
)
from .entry import Entry, Status, encode
from .entry_files import (
    LOG_LIMIT,
    BadEntry,
    StoredEntry,
    at,
    checked_library,
    entry_directories,
    op_path,
    path_below,
    read_entry,
    take_library,
)
from .environment import Environment
from .store_root import StoreRoot, store_error, store_errors

__all__ = ["ENTRY_FILE", "LIBRARY_FILE", "LOG_FILE", "BadEntry", "Store", "StoredEntry"]


class Store(StoreRoot):
    """The store at ``root``; nothing is read or created before the first use.

    Args:
        root: Its directory, an absolute path; ``None`` where this user has no home for one.
        lock_timeout_s: Seconds that ``locked`` waits for another process.
        preferred_target: The target whose entries ``find`` looks at first.
    """

    def __init__(
        self, root: Path | None, *, lock_timeout_s: float, preferred_target: str = ""
    ) -> None:
        super().__init__(root)
        self.lock_timeout_s = lock_timeout_s
        self._preferred_target = preferred_target

    # -- reading --

    def find(
        self, key: KernelKey, environment: Environment, features: frozenset[str]
    ) -> StoredEntry | None:
        """Return the entry under ``key`` that a CPU with ``features`` can run, or ``None``.

        Of several entries, the preferred target's is returned; else the best instruction set's.
        An entry whose directory was deleted is a miss, and so is an entry for an instruction set
        that the CPU lacks.

        Raises:
            EntryDamagedError: The entry is not what was published; its ``path`` tells which entry.
            CacheFormatError: A newer format wrote it.
            StoreError: The store cannot be read, or is not ours.
        """
        damaged: EntryDamagedError | CacheFormatError | None = None
        with self.below(*op_path(key.op, environment, dynamic=False), key.digest) as directory:
            for target in self._targets(directory):
                assert directory is not None
                path = directory.path / target
                try:
                    found = read_entry(directory, target)
                except FileNotFoundError:
                    continue  # Deleted between the listing and now: a miss.
                except (EntryDamagedError, CacheFormatError) as error:
                    damaged = error
                    continue
                if found.entry.key != key or found.entry.environment != environment:
                    damaged = at(EntryDamagedError("holds another key than its path says"), path)
                elif found.entry.requires <= features:
                    return found
        if damaged is not None:
            raise damaged
        return None

    def find_dynamic(
        self, op: str, environment: Environment, features: frozenset[str]
    ) -> list[StoredEntry]:
        """Return the op's dynamic specialisations that a CPU with ``features`` can run.

        Damaged entries are left out; ``verify`` removes them.

        Raises:
            StoreError: The store cannot be read, or is not ours.
        """
        found = []
        with self.below(*op_path(op, environment, dynamic=True)) as kind:
            for digest, directory in kind.directories() if kind else ():
                for target in self._targets(directory):
                    try:
                        stored = read_entry(directory, target)
                    except (FileNotFoundError, EntryDamagedError, CacheFormatError) as error:
                        log.info("%s: passed over: %s", directory.path / target, error)
                        continue
                    entry = stored.entry
                    if (
                        entry.guards is not None
                        and entry.key.op == op
                        and entry.environment == environment
                        and entry.requires <= features
                        and entry.digest == digest
                    ):
                        found.append(stored)
                        break
        return found

    def of_op(self, op: str, environment: Environment) -> Iterator[StoredEntry | BadEntry]:
        """Give every entry of an op in one environment, and every directory that should be one.

        Raises:
            StoreError: The store is not ours, or cannot be read.
        """
        with self.below(*op_path(op, environment, dynamic=False)[:-1]) as directory:
            yield from self._entries(directory, depth=2)

    def has_entries(self, environment: Environment) -> bool:
        """Return whether anything is stored for ``environment``."""
        with self.below("v1", environment.digest[:16]) as directory:
            return directory is not None and any(entry_directories(directory, depth=3))

    def has_wanted(self) -> bool:
        """Return whether processes have left keys that they wanted (``kept_queue``)."""
        return os.path.lexists(self.root / WANTED_FILE)

    def read(self, path: Path) -> StoredEntry:
        """Return the entry in the directory ``path``, which ``publish`` returned in any process.

        Raises:
            FileNotFoundError: The entry has been deleted.
            EntryDamagedError: The entry is not what was published.
            CacheFormatError: A newer format wrote it.
            StoreError: The store cannot be read, or is not ours.
        """
        *above, name = self.parts(path)
        with self.below(*above) as directory:
            if directory is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return read_entry(directory, name)

    def check_library(self, found: StoredEntry) -> StoredEntry:
        """Return ``found`` with its library's bytes, compared with the entry's size and digest.

        These bytes are loaded, and not the file: by then the file may be another one.

        Raises:
            EntryDamagedError: The library is missing, or not the file that was published.
        """
        with self.below(*self.parts(found.path)) as directory:
            if directory is None:
                raise at(EntryDamagedError("its library cannot be read: it is gone"), found.path)
            return checked_library(directory, found)

    def sealed_library(self, found: StoredEntry) -> SealedLibrary:
        """Return a private copy of an entry's library, to be opened and then closed.

        Raises:
            EntryDamagedError: The library is missing, or not the file that was published.
            StoreError: There is no memory for a copy.
        """
        if found.content is None:
            found = self.check_library(found)
        assert found.content is not None
        try:
            return SealedLibrary(found.content, found.library_path)
        except OSError as error:
            raise store_error(f"{found.library_path}: cannot be copied", error) from error

    def read_log(self, found: StoredEntry) -> str:
        """Return the last part of what the compiler wrote about an entry; empty if nothing.

        Raises:
            StoreError: The log cannot be read, or is not ours.
        """
        try:
            with self.below(*self.parts(found.path)) as directory:
                if directory is None:
                    return ""
                content = directory.read(LOG_FILE, LOG_LIMIT)
        except FileNotFoundError:
            return ""
        except UntrustedFileError as error:
            raise StoreError(str(error)) from error
        except OSError as error:
            raise store_error(f"{found.path / LOG_FILE}: cannot be read", error) from error
        return content.decode(errors="replace")

    def written_at(self, found: StoredEntry) -> float:
        """Return when an entry was written, in seconds since 1970; now if it has been deleted."""
        try:
            with self.below(*self.parts(found.path)) as directory:
                if directory is not None:
                    return directory.status(ENTRY_FILE).st_mtime
        except OSError:
            pass
        return time.time()

    def size_bytes(self, path: Path) -> int:
        """Return how many bytes the files in an entry's directory have; 0 if it is gone."""
        try:
            with self.below(*self.parts(path)) as directory:
                if directory is None:
                    return 0
                return sum(directory.status(name).st_size for name in directory.names())
        except OSError:
            return 0

    def scan(self) -> Iterator[StoredEntry | BadEntry]:
        """Give every entry of every environment, and every directory that should be one.

        Raises:
            StoreError: The store is not ours, or cannot be read.
        """
        with self.below("v1") as v1:
            yield from self._entries(v1, depth=4)

    def _entries(self, above: Directory | None, depth: int) -> Iterator[StoredEntry | BadEntry]:
        for directory, target in entry_directories(above, depth) if above else ():
            path = directory.path / target
            try:
                yield read_entry(directory, target)
            except FileNotFoundError:
                continue
            except EntryDamagedError as error:
                yield BadEntry(path, "damaged", str(error))
            except CacheFormatError as error:
                yield BadEntry(path, "future", str(error))

    # -- writing --

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

        If another process published the same entry first, its copy stays and is returned.

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
        final = self._entry_path(entry)
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
                if log:
                    directory.write(LOG_FILE, log.encode(errors="replace")[-LOG_LIMIT:])
                directory.write(ENTRY_FILE, encode(entry))
            *above, target = self.parts(final)
            with root.descend(*above, create=True) as parent:
                return StoredEntry(*self._install(root, entry, (working, staged), (parent, target)))

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
            if not remove(root, *self.parts(path)):
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

        Raises:
            StoreError: The store cannot be written.
        """
        entry = replace(found.entry, status=Status.QUARANTINED, reason=reason, message=message)
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
        parts = self.parts(path)
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
        return count

    # -- paths --

    def _entry_path(self, entry: Entry) -> Path:
        is_dynamic = entry.guards is not None
        above = op_path(entry.key.op, entry.environment, is_dynamic)
        return self.root.joinpath(*above, entry.digest, entry.target)

    def _names(self, root: Directory, *names: str) -> list[str]:
        try:
            with root.descend(*names) as directory:
                return list(children(directory, *names))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _targets(self, directory: Directory | None) -> list[str]:
        """Return the targets in a key's directory, in the order in which they are looked at."""
        if directory is None:
            return []
        # Best instruction set first: the names of the x86-64 levels sort so. Targets of a single
        # CPU come last.
        return sorted(
            directory.names(), key=lambda one: (one == self._preferred_target, one), reverse=True
        )
