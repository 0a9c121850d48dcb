"""Entries on local disk: find, publish, lock, verify, clear.

The store knows files, digests and locks; it decides no policy. It raises, and its caller decides
whether to warn, to go on or to raise. Layout under the root::

    v1/<environment>/<op>/<static|dynamic>/<key>/<target>/{entry.json, library.so, log}
    tmp/<host>-<pid>-<random>/        work in progress; a dead process's is removed by verify
    locks/<two hexadecimal digits>    lock files, shared by the keys that begin so; never deleted
    toolchain/                        precompiled headers of the compile worker
    verdicts/<processor>/<key>.json   times and checks; see ``_verdict``
    totals.json                       counters of all processes, for the command line

An entry is published by one rename of a directory, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import filelock

from ._entry import Entry, Library, Status, decode, encode
from ._environment import Environment
from ._key import KernelKey
from ._warnings import log
from .errors import (
    AotiEagerError,
    CacheFormatError,
    EntryDamagedError,
    LockTimeoutError,
    StoreError,
    StorePermissionError,
)

ENTRY_FILE = "entry.json"
LIBRARY_FILE = "library.so"
LOG_FILE = "log"

# A work directory of another host, whose processes we cannot ask about, is left alone this long.
_FOREIGN_WORK_AGE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry and the directory it was read from."""

    entry: Entry
    path: Path

    @property
    def library_path(self) -> Path:
        """Return where the kernel library lies."""
        return self.path / LIBRARY_FILE


@dataclass(frozen=True, slots=True)
class BadEntry:
    """A directory in an entry's place that cannot be used, and why.

    ``kind`` is ``"damaged"`` or ``"future"`` (written by a newer format).
    """

    path: Path
    kind: str
    problem: str


class Store:
    """The store at ``root``; nothing is read or created before the first use.

    Args:
        root: Its directory.
        lock_timeout_s: Seconds that ``locked`` waits for another process.
        preferred_target: The target whose entries ``find`` looks at first.
    """

    def __init__(self, root: Path, *, lock_timeout_s: float, preferred_target: str = "") -> None:
        self.root = root
        self.lock_timeout_s = lock_timeout_s
        self._preferred_target = preferred_target

    # -- reading --

    def find(
        self, key: KernelKey, environment: Environment, features: frozenset[str]
    ) -> StoredEntry | None:
        """Return the entry under ``key`` that a CPU with ``features`` can run, or ``None``.

        Of several, the preferred target's; else that of the best instruction set.
        An entry whose directory was deleted is a miss, and so is one of another instruction set.

        Raises:
            EntryDamagedError: The entry is not what was published; ``path`` tells which.
            CacheFormatError: A newer format wrote it.
            StoreError: The store cannot be read, or is not ours.
        """
        if not self._trust():
            return None
        damaged: EntryDamagedError | CacheFormatError | None = None
        static = self._op_path(key.op, environment, dynamic=False)
        for path in self._targets(static / key.digest):
            try:
                found = self._read(path)
            except FileNotFoundError:
                continue  # Deleted between the listing and now: a miss.
            except (EntryDamagedError, CacheFormatError) as error:
                damaged = error
                continue
            if found.entry.key != key or found.entry.environment != environment:
                damaged = _at(EntryDamagedError("holds another key than its path says"), path)
            elif found.entry.requires <= features:
                return found
        if damaged is not None:
            raise damaged
        return None

    def find_dynamic(
        self, op: str, environment: Environment, features: frozenset[str]
    ) -> list[StoredEntry]:
        """Return the op's dynamic specialisations that a CPU with ``features`` can run.

        What is damaged is left out, for ``verify`` to remove.

        Raises:
            StoreError: The store cannot be read, or is not ours.
        """
        if not self._trust():
            return []
        found = []
        for directory in self._targets(self._op_path(op, environment, dynamic=True)):
            for path in self._targets(directory):
                try:
                    stored = self._read(path)
                except (FileNotFoundError, EntryDamagedError, CacheFormatError) as error:
                    log.info("%s: passed over: %s", path, error)
                    continue
                entry = stored.entry
                if (
                    entry.guards is not None
                    and entry.key.op == op
                    and entry.environment == environment
                    and entry.requires <= features
                    and self._entry_path(entry) == directory
                ):
                    found.append(stored)
                    break
        return found

    def has_entries(self, environment: Environment) -> bool:
        """Return whether anything is stored for ``environment``."""
        return self._trust() and any((self.root / "v1" / environment.digest[:16]).glob("*/*/*/*"))

    def is_trusted(self) -> bool:
        """Return whether the directory is there and ours alone to write; never raises."""
        try:
            return self._trust()
        except StoreError:
            return False

    def read(self, path: Path) -> StoredEntry:
        """Return the entry in one directory, which ``publish`` has returned to somebody.

        Raises:
            FileNotFoundError: It has been deleted.
            EntryDamagedError: It is not what was published.
            CacheFormatError: A newer format wrote it.
            StoreError: The store cannot be read, or is not ours.
        """
        self._trust()
        return self._read(path)

    def check_library(self, found: StoredEntry) -> None:
        """Compare the library's bytes with the entry's digest; call it before every load.

        Raises:
            EntryDamagedError: It is missing, or not the file that was published.
        """
        library = found.entry.library
        if library is None:
            raise _at(EntryDamagedError("has no kernel library"), found.path)
        try:
            content = found.library_path.read_bytes()
        except OSError as error:
            raise _unreadable("its library cannot be read", found.path, error) from error
        if hashlib.sha256(content).hexdigest() != library.sha256:
            raise _at(EntryDamagedError("its library is not the file that was stored"), found.path)

    def scan(self) -> Iterator[StoredEntry | BadEntry]:
        """Give every entry of every environment, and every directory that should be one.

        Raises:
            StoreError: The store is not ours, or cannot be read.
        """
        if not self._trust():
            return
        for path in sorted((self.root / "v1").glob("*/*/*/*/*")):
            try:
                yield self._read(path)
            except FileNotFoundError:
                if path.is_dir() and not (path / ENTRY_FILE).exists():
                    yield BadEntry(path, "damaged", f"has no {ENTRY_FILE}")
            except EntryDamagedError as error:
                yield BadEntry(path, "damaged", str(error))
            except CacheFormatError as error:
                yield BadEntry(path, "future", str(error))

    # -- writing --

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """Give a new empty directory on the store's file system; it is removed at the end.

        Raises:
            StoreError: It cannot be created: read-only, full, or not ours.
        """
        self.create()
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        path = self.root / "tmp" / name
        try:
            make_private(path)
        except OSError as error:
            raise _store_error(f"{path}: cannot be created", error) from error
        try:
            yield path
        finally:
            # A cleanup error loses nothing: verify removes what is left.
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, key: KernelKey) -> Iterator[None]:
        """Hold the lock of ``key`` among processes. Locks are advisory and die with their holder.

        Raises:
            LockTimeoutError: Another process held it for longer than ``lock_timeout_s`` seconds.
            StoreError: The lock file cannot be created.
        """
        self.create()
        path = self.root / "locks" / key.digest[:2]
        try:
            make_private(path.parent)
            lock = filelock.FileLock(path, timeout=self.lock_timeout_s, thread_local=False)
            lock.acquire()
        except filelock.Timeout as error:
            raise LockTimeoutError(
                f"{key.op}: another process has been compiling this key for more than "
                f"{self.lock_timeout_s:g} s (lock {path})"
            ) from error
        except NotImplementedError:
            # No locks on this file system: two processes may compile one key; both are right.
            lock = None
        except OSError as error:
            raise _store_error(f"{path}: cannot be locked", error) from error
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def publish(self, entry: Entry, work: Path, library: Path | None, log: str) -> StoredEntry:
        """Publish ``entry`` with its files in one rename, and return it as stored.

        If another process published the same entry first, its copy stays and is returned.

        Args:
            entry: Its ``library`` is filled in here.
            work: A directory of ``workspace``.
            library: The library's file, inside ``work``; ``None`` for an entry without one.
            log: What the compiler wrote.

        Raises:
            CacheFormatError: A newer version has published the same entry; its copy stays.
            StoreError: It cannot be written; nothing of it is left behind.
        """
        staged = work / f"staged-{uuid.uuid4().hex[:8]}"
        final = self._entry_path(entry) / entry.target
        try:
            staged.mkdir(mode=0o700)
            if library is not None:
                content = library.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                entry = replace(entry, library=Library(len(content), digest))
                # Moved, not copied: a mapping of it that is in use stays valid.
                library.rename(staged / LIBRARY_FILE)
            if log:
                (staged / LOG_FILE).write_text(log, encoding="utf-8")
            (staged / ENTRY_FILE).write_bytes(encode(entry))
            make_private(final.parent)
        except OSError as error:
            raise _store_error(f"{final}: cannot be written", error) from error
        return StoredEntry(*self._install(entry, staged, final))

    def _install(self, entry: Entry, staged: Path, final: Path) -> tuple[Entry, Path]:
        for _ in range(3):
            try:
                # Rename last: a reader must never see half an entry.
                staged.rename(final)
                return entry, final
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise _store_error(f"{final}: cannot be written", error) from error
            try:
                theirs = self._read(final)
                if theirs.entry.library is not None:
                    self.check_library(theirs)
                if theirs.entry.status is entry.status:
                    return theirs.entry, theirs.path
            except (EntryDamagedError, FileNotFoundError):
                pass  # A newer format's entry is raised: it is another version's, and stays.
            self.discard(final)
        raise StoreError(f"{final}: other processes keep writing it")

    def quarantine(self, found: StoredEntry, reason: str, message: str) -> None:
        """Replace a stored entry by the same one marked as wrong; its library is kept for a look.

        Raises:
            StoreError: The store cannot be written.
        """
        entry = replace(found.entry, status=Status.QUARANTINED, reason=reason, message=message)
        with self.workspace() as work:
            copy = work / LIBRARY_FILE
            try:
                shutil.copyfile(found.library_path, copy)
            except OSError:
                copy = None  # type: ignore[assignment]
            self.publish(entry, work, copy, message)

    def discard(self, path: Path) -> None:
        """Remove one entry's directory; missing or unremovable is no error of the caller's.

        Raises:
            StoreError: The store cannot be written.
        """
        with self.workspace() as work:
            try:
                # Moved away first: a half-deleted entry must never be seen under its own name.
                path.rename(work / "discarded")
            except FileNotFoundError:
                return
            except OSError as error:
                raise _store_error(f"{path}: cannot be removed", error) from error

    def clear(self) -> int:
        """Remove all entries of all environments and return how many there were.

        Raises:
            StoreError: The store is not ours, or cannot be written.
        """
        count = sum(1 for _ in self.scan())
        if not self._trust():
            return 0
        with self.workspace() as work:
            for path in (self.root / "v1").glob("*"):
                try:
                    path.rename(work / path.name)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise _store_error(f"{path}: cannot be removed", error) from error
        return count

    def stale_work(self) -> list[Path]:
        """Return the work directories whose process is dead."""
        host, now = socket.gethostname(), time.time()
        stale = []
        for path in sorted((self.root / "tmp").glob("*")):
            owner, _, rest = path.name.rpartition("-")
            owner, _, pid = owner.rpartition("-")
            if owner == host and pid.isdecimal():
                gone = not _is_alive(int(pid))
            else:
                try:
                    gone = now - path.lstat().st_mtime > _FOREIGN_WORK_AGE_S
                except FileNotFoundError:
                    continue  # Its owner has just removed it.
            if gone and rest:
                stale.append(path)
        return stale

    def remove_stale_work(self) -> int:
        """Remove the work directories of dead processes and return how many there were."""
        stale = self.stale_work()
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)

    # -- paths and trust --

    def _entry_path(self, entry: Entry) -> Path:
        is_dynamic = entry.guards is not None
        return self._op_path(entry.key.op, entry.environment, is_dynamic) / entry.digest

    def _op_path(self, op: str, environment: Environment, dynamic: bool) -> Path:
        kind = "dynamic" if dynamic else "static"
        return self.root / "v1" / environment.digest[:16] / op.replace("::", ".") / kind

    def _targets(self, path: Path) -> list[Path]:
        try:
            # Best instruction set first: the level's name sorts so; those of one CPU come last.
            return sorted(
                path.iterdir(),
                key=lambda one: (one.name == self._preferred_target, one.name),
                reverse=True,
            )
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _store_error(f"{path}: cannot be read", error) from error

    def _read(self, path: Path) -> StoredEntry:
        try:
            document = (path / ENTRY_FILE).read_bytes()
        except FileNotFoundError:
            if path.is_dir():
                raise _at(EntryDamagedError(f"has no {ENTRY_FILE}"), path) from None
            raise
        except OSError as error:
            raise _unreadable("cannot be read", path, error) from error
        try:
            return StoredEntry(decode(document), path)
        except (EntryDamagedError, CacheFormatError) as error:
            raise _at(error, path) from error

    def _trust(self) -> bool:
        """Return whether the root exists; raise unless it is ours alone to write."""
        # Every time: a cleaner of /tmp may have deleted it, and someone else made it again.
        try:
            status = self.root.stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _store_error(f"{self.root}: cannot be read", error) from error
        if not stat.S_ISDIR(status.st_mode):
            raise StoreError(f"{self.root}: is no directory; set AOTI_EAGER_CACHE_DIR to one")
        if os.name == "posix":
            if status.st_uid != os.geteuid():
                raise StorePermissionError(
                    f"{self.root}: belongs to user {status.st_uid}, not to us ({os.geteuid()}); "
                    "kernels are code, so set AOTI_EAGER_CACHE_DIR to a directory of your own"
                )
            if status.st_mode & 0o022:
                raise StorePermissionError(
                    f"{self.root}: others can write to it (mode {status.st_mode & 0o777:o}); "
                    f"kernels are code, so run: chmod 700 {self.root}"
                )
        return True

    def create(self) -> None:
        """Create the directory, if it is missing.

        Raises:
            StoreError: It cannot be created, or is not ours alone to write.
        """
        if self._trust():
            return
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _store_error(f"{self.root}: cannot be created", error) from error
        self._trust()


def remove_work_of(pid: int, root: Path) -> None:
    """Remove what a process of this machine, which is dead, was working on in the store."""
    for path in (root / "tmp").glob(f"{socket.gethostname()}-{pid}-*"):
        shutil.rmtree(path, ignore_errors=True)


def make_private(path: Path) -> None:
    """Create a directory and those above it that are missing, each 0700.

    ``mkdir(parents=True)`` gives its mode to the last one only, and a group that can write to one
    above can put its own library in.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # Another user's, or no pid at all: not known to be dead.
    return True


def _at(error: AotiEagerError, path: Path) -> EntryDamagedError | CacheFormatError:
    located = type(error)(f"{path}: {error}")
    located.path = path  # type: ignore[attr-defined]
    return located  # type: ignore[return-value]


# What says nothing about a file that cannot be read.
_PASSING_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}


def _unreadable(what: str, path: Path, error: OSError) -> AotiEagerError:
    if error.errno in _PASSING_ERRORS:
        return _store_error(f"{path}: {what}", error)
    return _at(EntryDamagedError(f"{what}: {error.strerror}"), path)


def _store_error(what: str, error: OSError) -> StoreError:
    return StoreError(error.errno, f"{what}: {error.strerror or error}")
