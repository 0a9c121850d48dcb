"""The courier: one thread that asks remote tiers for kernels and takes new kernels to them.

A call only leaves a note of what it lacks. What the courier finds goes into the cache directory
first, as an entry that nobody has checked or measured here, and is then found like any other.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .._base.handover import beside_script
from .._base.late_import import importing
from .._base.tier_names import TierName
from .._base.warn_once import log, warn_once
from .._store.store import Store, StoredEntry
from ..errors import AotiEagerError, RemoteTierError
from .lacking import Lacking

if TYPE_CHECKING:
    from .remote_store import RemoteStore

# So many notes wait at most; further ones are dropped: their keys are compiled here.
MOST_NOTES = 256
# That no tier has a key is remembered for so many seconds, and for so many keys.
ABSENT_S, _MOST_ABSENT = 600.0, 4096
# After an error, a note is tried again after so many seconds each.
_AGAIN_S = (1.0, 4.0)


class Courier:
    """The thread and its notes; nothing starts before the first note.

    Args:
        store: The cache directory's store.
        names: The remote tiers, in order.
        clock: Gives seconds.
        open_store: Opens a tier.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[TierName],
        *,
        clock: Callable[[], float] = time.monotonic,
        open_store: Callable[[TierName], RemoteStore] | None = None,
    ) -> None:
        self._store, self._names, self._clock = store, tuple(names), clock
        self._open_store = open_store
        self._stores: list[RemoteStore] = []
        self._notes: deque[tuple[Lacking | StoredEntry, int, float]] = deque()
        self._absent: dict[str, float] = {}  # digest of a key, or an op -> until when
        self._is_busy = False
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    # -- in a call --

    def ask(self, lacking: Lacking) -> bool:
        """Leave a note of what a call lacks; return false if it is not looked for now."""
        digest = lacking.keys[0].digest
        now = self._clock()
        with self._changed:
            if self._absent.get(digest, 0.0) > now:
                return False
            if len(self._absent) >= _MOST_ABSENT:
                self._absent.clear()
            is_left = self._leave(lacking)
            if is_left:  # Else a later call leaves the note.
                self._absent[digest] = now + ABSENT_S
            return is_left

    def give(self, found: StoredEntry) -> bool:
        """Leave a note of a new kernel, for the writable tiers."""
        with self._changed:
            return any(one.is_writable for one in self._names) and self._leave(found)

    def _leave(self, note: Lacking | StoredEntry) -> bool:
        if len(self._notes) >= MOST_NOTES:
            return False
        self._notes.append((note, 0, 0.0))
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, name="aoti_eager-courier", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError as error:  # The system has no thread for us, or Python ends.
                log.info("no thread for remote tiers: %s", error)
                self._thread = None
                self._notes.clear()
                return False
        self._changed.notify_all()
        return True

    # -- beside the calls --

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until no note is left; return whether none is."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._notes or self._is_busy), timeout_s)

    @property
    def stores(self) -> Sequence[RemoteStore]:
        """Return the tiers; none before the first note."""
        return tuple(self._stores)

    def _serve(self) -> None:
        with beside_script():
            while True:
                note, tries = self._next()
                again = False
                try:
                    again = self._carry(note)
                except Exception:  # noqa: BLE001 - otherwise no later note would be seen
                    log.exception("a note for remote tiers failed")
                with self._changed:
                    self._is_busy = False
                    if again and tries < len(_AGAIN_S):
                        at = self._clock() + _AGAIN_S[tries]
                        self._notes.append((note, tries + 1, at))
                    self._changed.notify_all()

    def _next(self) -> tuple[Lacking | StoredEntry, int]:
        with self._changed:
            while True:
                now = self._clock()
                for number, (note, tries, at) in enumerate(self._notes):
                    if at <= now:
                        del self._notes[number]
                        self._is_busy = True
                        return note, tries
                next_at = min((at for _, _, at in self._notes), default=None)
                self._changed.wait(None if next_at is None else max(0.0, next_at - now))

    def _carry(self, note: Lacking | StoredEntry) -> bool:
        """Do what a note asks for; return whether to try again."""
        if not self._stores:
            with importing():
                from .remote_store import RemoteStore
            make = self._open_store or RemoteStore
            self._stores = [make(name) for name in self._names]
        if isinstance(note, StoredEntry):
            has_failed = False
            for one in self._stores:
                has_failed |= one.name.is_writable and self._given(one, note)
            return has_failed
        has_failed = False
        for one in self._stores:
            try:
                if self._fetched(one, note):
                    return False
            except RemoteTierError as error:
                has_failed = True
                log.info("tier %s: %s", one.name.text, error)
        if has_failed:
            with self._changed:  # Nobody knows what the tier has.
                self._absent.pop(note.keys[0].digest, None)
        return has_failed

    def _fetched(self, remote: RemoteStore, note: Lacking) -> bool:
        """Return whether a tier has given a kernel.

        Raises:
            RemoteTierError: The tier gives no answer.
        """
        with importing():
            from .fetch import dynamic_kernels, static_kernel

        for key in note.keys:
            stored = static_kernel(remote, self._store, key, note)
            if stored is not None:
                note.arrived(stored)
                return True
        op = note.keys[0].op
        if note.is_dynamic and self._absent.get(f"{remote.name.text} {op}", 0.0) <= self._clock():
            taken = dynamic_kernels(remote, self._store, op, note)
            self._absent[f"{remote.name.text} {op}"] = self._clock() + ABSENT_S
            for stored in taken:
                note.arrived(stored)
            return bool(taken)
        return False

    def _given(self, remote: RemoteStore, found: StoredEntry) -> bool:
        """Take a new kernel to a writable tier; return whether to try again."""
        with importing():
            from .fetch import give

        try:
            give(remote, self._store, found, self._key())
        except RemoteTierError:
            return True
        except AotiEagerError as error:
            warn_once("remote:give", f"{error}; new kernels are not taken to remote tiers")
        return False

    def _key(self) -> Any:
        """Return the key that signs what is given; ``None`` if this user has none.

        Raises:
            SigningError: There is a key that cannot be used.
        """
        from .._bundles.signing import has_own_key, key_path, read_key

        return read_key(key_path()) if has_own_key() else None


_couriers: dict[tuple[Any, ...], Courier] = {}
_lock = threading.RLock()


def courier_of(store: Store, names: Sequence[TierName]) -> Courier:
    """Return the courier between a cache directory and its remote tiers."""
    place = (store.root, *(one.text for one in names))
    with _lock:
        if place not in _couriers:
            _couriers[place] = Courier(store, names)
        return _couriers[place]


def wait(timeout_s: float | None = None) -> bool:
    """Wait until no courier has anything left to do; return whether that is so."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with _lock:
        found = list(_couriers.values())
    return all(
        one.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        for one in found
    )


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _couriers.clear()  # The threads are the parent's.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
