"""A process's side of the kept queue: read the store's, note wanted keys, write what is left.

The file is read at the first miss of a process and written at its end (``wanted_calls`` has its
format).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .._base.at_exit import at_exit
from .._base.data_class import dataclass
from .._base.file_lock import locked
from .._base.store_format import WANTED_FILE
from .._base.store_marker import is_marked
from .._base.store_removal import remove
from .._base.trusted_files import Directory, open_directory
from .._base.warn_once import log
from ..config import config
from ..errors import ConfigError, StoreError
from .wanted_calls import (
    LARGEST_FILE,
    NOT_WANTED,
    Wanted,
    WantedCall,
    decode,
    encode,
    merged,
    wanted,
    wanted_digest,
)

# Short: this runs at exit, and a lost count is better than a late end.
_TIMEOUT_S = 2.0
# Most keys that one process remembers for a store, before it writes them.
_MOST_HERE = 4096


# --- the file ------------------------------------------------------------------------------------


def read_wanted(root: Path | None) -> dict[str, Wanted]:
    """Return the kept queue of the store at ``root``; empty if none can be read."""
    if root is None:
        return {}
    try:
        with open_directory(root) as directory:
            return _read(directory)
    except OSError:
        return {}


def _read(directory: Directory) -> dict[str, Wanted]:
    try:
        return decode(directory.read(WANTED_FILE, LARGEST_FILE))[0]
    except OSError:
        return {}


def update_wanted(root: Path, change: Callable[[dict[str, Wanted]], Mapping[str, Wanted]]) -> None:
    """Replace the kept queue of the store at ``root``, which must exist, by ``change`` of it.

    A directory that is not marked as a cache is left alone.

    Raises:
        OSError: The kept queue cannot be written.
    """
    with (
        open_directory(root) as directory,
        directory.directory("locks", create=True) as locks,
        locked(locks, "wanted", _TIMEOUT_S),
    ):
        before = _read(directory)
        after = change(before)
        if after == before or not is_marked(directory):
            return
        if after:
            directory.write(WANTED_FILE, encode(after.values(), int(time.time())))
        else:
            remove(directory, WANTED_FILE)


def forget_wanted(root: Directory) -> None:
    """Remove the kept queue of an open store.

    Raises:
        OSError: The store cannot be written.
    """
    remove(root, WANTED_FILE)


# --- what this process wants ---------------------------------------------------------------------


def _none() -> int:
    return 0


@dataclass(slots=True)
class _Here:
    """A key that this process wants.

    Attributes:
        call: The key's call.
        calls: Returns how often the key was called until now.
        is_own: Whether this process has called the key; false if the process only goes on with the
            key for an earlier one.
        tries: How often a compile for the key was begun in vain.
        earlier: Calls that ``calls`` no longer counts.
    """

    call: WantedCall
    calls: Callable[[], int]
    is_own: bool
    tries: int = 0
    earlier: int = 0


class Record:
    """The keys that this process wants of one store, and those that earlier processes have left.

    Args:
        root: The store's directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._kept: dict[str, Wanted] | None = None
        self._here: dict[str, _Here] = {}
        self._decided: set[str] = set()
        self._lock = threading.RLock()

    @property
    def kept(self) -> Mapping[str, Wanted]:
        """Return the keys that earlier processes have left, by digest; the file is read once."""
        kept = self._kept
        if kept is None:
            with self._lock:
                kept = self._kept = read_wanted(self._root)
        return kept

    def calls_before(self, op: str, digest: str) -> int:
        """Return how often earlier processes have called a key without a kernel for it."""
        found = self.kept.get(digest)
        return found.calls if found is not None and found.op == op else 0

    def want(
        self,
        call: WantedCall,
        calls: Callable[[], int] | None = None,
    ) -> None:
        """Note that a key has no kernel yet; ``decided`` takes the note back.

        Args:
            call: The key's call.
            calls: Returns how often this process has called the key until now; ``None`` if the
                process goes on with the key for an earlier one.
        """
        digest = wanted_digest(call)
        with self._lock:
            before = self._here.get(digest)
            if before is None and len(self._here) >= _MOST_HERE:
                return
            here = _Here(call, calls or _none, calls is not None)
            if before is not None:
                here.tries, here.earlier = before.tries, before.earlier + before.calls()
                here.is_own = here.is_own or before.is_own
            self._here[digest] = here
            self._decided.discard(digest)

    def tried(self, digest: str, by: int = 1) -> None:
        """Note that a compile for a key has begun; with ``by=-1``, that it came to an end."""
        with self._lock:
            if digest in self._here:
                # Since the compile began, the key may have been decided on and wanted anew.
                self._here[digest].tries = max(0, self._here[digest].tries + by)

    def release(self, digest: str) -> None:
        """Drop the function that counts a key's calls: this process has finished with the key."""
        with self._lock:
            here = self._here.get(digest)
            if here is not None:
                here.earlier += here.calls()
                here.calls = _none

    def decided(self, digest: str) -> None:
        """Note that a key is decided on: the store has an entry or a failure for it."""
        with self._lock:
            self._here.pop(digest, None)
            # Beyond the limit, only keys that earlier processes have left must be noted: these have
            # to be taken out of the file.
            if len(self._decided) < _MOST_HERE or digest in self.kept:
                self._decided.add(digest)

    def is_own(self, digest: str) -> bool:
        """Return whether this process has called the key: its queue has the key, or had it."""
        found = self._here.get(digest)
        return found is not None and found.is_own

    def keep(self) -> None:
        """Write the keys that are still wanted to the store.

        Raises:
            OSError: The kept queue cannot be written.
        """
        now = int(time.time())
        with self._lock:
            more = []
            for one in self._here.values():
                calls = one.earlier + one.calls()
                # A key that this process did not call keeps the time of its last call.
                with contextlib.suppress(*NOT_WANTED):
                    more.append(wanted(one.call, calls, one.tries, now if calls else 0))
            decided = set(self._decided)
        # A store that has none of the decided keys need not be locked for them.
        if more or any(digest in self.kept for digest in decided):
            update_wanted(self._root, lambda kept: merged(kept, more, decided))


_records: dict[Path, Record] = {}
_pid = os.getpid()


def record_of(root: Path) -> Record:
    """Return this process's record of the store at ``root``."""
    record = _records.get(root)
    return record if record is not None else _records.setdefault(root, Record(root))


def calls_before(op: str, digest: str) -> int:
    """Return how often earlier processes have called a key of ``op`` without a kernel for it.

    The first call reads the file; later calls only look into a dict.

    Args:
        op: Qualified name of the overload.
        digest: The key's digest.
    """
    try:
        root = config.cache_dir
    except ConfigError:
        return 0
    return 0 if root is None else record_of(root).calls_before(op, digest)


_observers: list[Callable[[], None]] = []


def on_keep(observer: Callable[[], None]) -> None:
    """Call ``observer`` before the wanted keys are written, so that it can want more keys."""
    _observers.append(observer)


def _keep_all() -> None:
    """Write the wanted keys of all stores; a process that wants nothing leaves nothing."""
    if os.getpid() != _pid:
        return  # A forked child: its parent writes the keys from before the fork.
    for observer in _observers:
        observer()
    for root, record in list(_records.items()):
        try:
            if root.is_dir():
                record.keep()
        except (OSError, StoreError) as error:
            log.info("what is wanted is not kept: %s", error)


at_exit(_keep_all)


def _after_fork() -> None:
    _records.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
