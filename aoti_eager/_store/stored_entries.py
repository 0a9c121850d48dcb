"""Finds and reads the entries of a store, each with its library and log.

Every operation opens the root anew, checks it, and works relative to it; see
``_base/trusted_files``.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from .._base.sealed_library import SealedLibrary
from .._base.store_format import ENTRY_FILE, LOG_FILE
from .._base.trusted_files import Directory
from .._base.warn_once import log
from .._keys.kernel_key import KernelKey
from ..errors import CacheFormatError, EntryDamagedError, StoreError, UntrustedFileError
from .entry import Entry
from .entry_files import (
    LOG_LIMIT,
    BadEntry,
    StoredEntry,
    at,
    checked_library,
    entry_directories,
    is_in_place,
    op_path,
    read_entry,
)
from .environment import Environment
from .store_root import StoreRoot, names_below, store_error

# Six hours: evictions compare days, and a write for each use would be one for each process.
COARSE_S = 6 * 3600.0


class StoredEntries(StoreRoot):
    """What is stored at ``root``; nothing is read before the first use.

    Args:
        root: The store's directory, an absolute path; ``None`` where this user has no home for one.
        preferred_target: The target whose entries ``find`` looks at first.

    More than 12 methods, because each reads one thing of an entry, or finds entries in one way.
    """

    def __init__(self, root: Path | None, *, preferred_target: str = "") -> None:
        super().__init__(root)
        self._preferred_target = preferred_target
        self._noted: set[Path] = set()

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
            for target in _targets(directory, self._preferred_target):
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
                for target in _targets(directory, self._preferred_target):
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
            yield from _entries(directory, depth=2)

    def has_entries(self, environment: Environment) -> bool:
        """Return whether anything is stored for ``environment``."""
        with self.below("v1", environment.digest[:16]) as directory:
            return directory is not None and any(entry_directories(directory, depth=3))

    def read(self, path: Path) -> StoredEntry:
        """Return the entry in the directory ``path``, which ``publish`` returned in any process.

        Raises:
            FileNotFoundError: The entry has been deleted.
            EntryDamagedError: The entry is not what was published.
            CacheFormatError: A newer format wrote it.
            StoreError: The store cannot be read, or is not ours.
        """
        *above, name = names_below(self.root, path)
        with self.below(*above) as directory:
            if directory is None:
                raise _gone(path)
            return read_entry(directory, name)

    def holds(self, entry: Entry) -> bool:
        """Return whether there is an entry where ``Store.publish`` would put one, of any status.

        A damaged entry counts as absent, an entry of a newer format as there.

        Raises:
            StoreError: The store cannot be read.
        """
        try:
            self.read(self._entry_path(entry))
        except (FileNotFoundError, EntryDamagedError):
            return False
        except CacheFormatError:
            pass
        return True

    def same_entry(self, entry: Entry) -> StoredEntry | None:
        """Return what lies where ``Store.publish`` would put an entry; ``None`` if it is unusable.

        Raises:
            StoreError: The store cannot be read.
        """
        try:
            return self.read(self._entry_path(entry))
        except (FileNotFoundError, EntryDamagedError, CacheFormatError):
            return None

    def check_library(self, found: StoredEntry) -> StoredEntry:
        """Return ``found`` with its library's bytes, compared with the entry's size and digest.

        These bytes are loaded, and not the file: by then the file may be another one.

        Raises:
            FileNotFoundError: The entry was evicted or deleted since it was found.
            EntryDamagedError: The library is missing, or not the file that was published.
        """
        *above, name = names_below(self.root, found.path)
        with self.below(*above) as parent, contextlib.ExitStack() as opened:
            if parent is None:
                raise _gone(found.path)
            try:
                directory = opened.enter_context(parent.directory(name))
            except (FileNotFoundError, NotADirectoryError):
                raise _gone(found.path) from None
            except UntrustedFileError as error:
                raise at(EntryDamagedError(f"{name} {error.problem}"), found.path) from error
            except OSError as error:
                raise store_error(f"{found.path}: cannot be read", error) from error
            try:
                return checked_library(directory, found)
            except EntryDamagedError:
                if is_in_place(parent, name, directory):
                    raise
                raise _gone(found.path) from None

    def sealed_library(self, found: StoredEntry) -> SealedLibrary:
        """Return a private copy of an entry's library, to be opened and then closed.

        Raises:
            FileNotFoundError: The entry was evicted or deleted since it was found.
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

    def note_use(self, found: StoredEntry) -> None:
        """Record that this process uses an entry, for evictions; never raises.

        The time is that of the entry's directory: its files are immutable. It is written at most
        once for each entry and process, and only if the recorded time is older than ``COARSE_S``
        seconds, or ahead of the clock by as much. A store that cannot be written is left alone.
        """
        now = time.time()
        if abs(now - found.used_at) < COARSE_S or found.used_at == math.inf:
            return
        if found.path in self._noted:
            return
        self._noted.add(found.path)
        with contextlib.suppress(OSError):
            # Its owner may set a directory's time even where the directory is read-only.
            if not os.access(self.root, os.W_OK) or not self.root.stat().st_mode & stat.S_IWUSR:
                return
            with self.below(*names_below(self.root, found.path)) as directory:
                if directory is not None and os.fstat(directory.fd).st_mode & stat.S_IWUSR:
                    os.utime(directory.fd, (now, now))

    def read_log(self, found: StoredEntry) -> str:
        """Return the last part of what the compiler wrote about an entry; empty if nothing.

        Raises:
            StoreError: The log cannot be read, or is not ours.
        """
        try:
            with self.below(*names_below(self.root, found.path)) as directory:
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
            with self.below(*names_below(self.root, found.path)) as directory:
                if directory is not None:
                    return directory.status(ENTRY_FILE).st_mtime
        except OSError:
            pass
        return time.time()

    def size_bytes(self, path: Path) -> int:
        """Return how many bytes the files in an entry's directory have; 0 if it is gone."""
        try:
            with self.below(*names_below(self.root, path)) as directory:
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
            yield from _entries(v1, depth=4)

    def _entry_path(self, entry: Entry) -> Path:
        is_dynamic = entry.guards is not None
        above = op_path(entry.key.op, entry.environment, is_dynamic)
        return self.root.joinpath(*above, entry.digest, entry.target)


def _gone(path: Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _entries(above: Directory | None, depth: int) -> Iterator[StoredEntry | BadEntry]:
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


def _targets(directory: Directory | None, preferred: str) -> list[str]:
    """Return the targets in a key's directory, in the order in which they are looked at."""
    if directory is None:
        return []
    # Best instruction set first: the names of the x86-64 levels sort so. Targets of a single CPU
    # come last.
    return sorted(directory.names(), key=lambda one: (one == preferred, one), reverse=True)
