"""The kept queue: keys that processes wanted a kernel for and did not get, and how often.

A file of the store, ``wanted``, that a process reads at its first miss and writes at its end. The
first line is a header; each other line is a key::

    <digest> <calls> <tries> <last wanted> <op> {"key": ..., "schema": ..., "plan": ...}

What comes before the document is enough to know which keys are wanted most, so that a call pays for
no more than that. A document is looked at when its kernel is to be made, by then as one of a
workload would be. It has no function of the user's: its digest is in the key, and the process that
has the op brings the function. The file is advice: what cannot be read is not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ._base.at_exit import at_exit
from ._base.file_lock import locked
from ._base.store_format import WANTED_FILE, is_marked, remove
from ._base.trusted_files import Directory, open_directory
from ._guards import Guards
from ._key import KernelKey
from ._plan import Plan
from ._warnings import log
from ._workload import LONGEST_OP, OP, checked_key
from .config import config
from .errors import ConfigError, StoreError, WorkloadError

HEADER = b"aoti_eager wanted 1"

# What is kept: so many keys, the most called ones; so many bytes of each and of all together, which
# is what a call may have to read; and for so long since it was last called.
MOST_KEYS = 256
LONGEST_LINE = 1 << 16
LARGEST_FILE = 1 << 20
PERIOD_S = 30 * 24 * 3600
# A clock may be wrong by a time zone.
_AHEAD_S = 24 * 3600
# Compiles that were begun and came to nothing that the store remembers: cut off, out of memory.
# After so many, nobody begins another until the key is called again.
MOST_TRIES = 5
# Short: this runs at exit, and a lost count is better than a late end.
_TIMEOUT_S = 2.0
# What one process remembers before it is written, by root.
_MOST_HERE = 4096

_INDEX = re.compile(
    rb"(?P<digest>[0-9a-f]{64}) (?P<calls>[0-9]{1,15}) (?P<tries>[0-9]{1,6}) (?P<at>[0-9]{1,12}) "
    rb"(?P<op>\S+) (?P<document>\{.*\})"
)
# How the document of a rare key ends.
_RARE_END = b',"rare":true}'
# What is raised of a document that is something else.
NOT_WANTED = (
    WorkloadError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class WantedCall:
    """The call behind a wanted key, without its tensors.

    Attributes:
        key: With the thread count that it was made under.
        schema: The op's schema in words.
        plan: For a kernel for several sizes, of which this is one call.
        is_rare: Whether no kernel is asked for yet: its calls are counted.
    """

    key: KernelKey
    schema: str
    plan: Plan | None = None
    is_rare: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key in the kept queue.

    Attributes:
        digest: The key's; with a plan, that of the plan's pattern.
        op: Its op.
        calls: How often it was called and had no kernel, in all processes.
        tries: How many of them have begun to make its kernel in vain.
        at: When it was last called, seconds since 1970.
        document: The call as JSON.
    """

    digest: str
    op: str
    calls: int
    tries: int
    at: int
    document: bytes

    @property
    def is_rare(self) -> bool:
        """Return whether no process has asked for its kernel: only its calls are counted."""
        return self.document.endswith(_RARE_END)

    def call(self) -> WantedCall:
        """Return the call that the document describes.

        Raises:
            NOT_WANTED: It is something else.
        """
        document = json.loads(self.document)
        key, plan = checked_key(document["key"]), document["plan"]
        call = WantedCall(key, str(document["schema"]), None if plan is None else _plan(plan))
        if (_digest(call), key.op) != (self.digest, self.op):
            raise ValueError(f"is another call than {self.digest}")
        return call

    def is_call(self) -> bool:
        """Return whether the document describes a call, and that of the digest."""
        try:
            self.call()
        except NOT_WANTED:
            return False
        return True


def wanted(call: WantedCall, calls: int, tries: int, at: int) -> Wanted:
    """Return a call as a key of the kept queue."""
    plan = None if call.plan is None else call.plan.to_json() | {"family": call.plan.family}
    document: dict[str, Any] = {"key": call.key.to_json(), "schema": call.schema, "plan": plan}
    if call.is_rare:
        document["rare"] = True
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Wanted(_digest(call), call.key.op, calls, tries, at, text.encode())


def _digest(call: WantedCall) -> str:
    return call.key.digest if call.plan is None else call.plan.pattern.digest


def _plan(document: Mapping[str, Any]) -> Plan:
    return Plan(
        str(document["family"]),
        tuple((int(slot), int(dim)) for slot, dim in document["dims"]),
        tuple(map(str, document["numbers"])),
        KernelKey.from_json(document["pattern"]),
        Guards.from_json(document["guards"]),
    )


# --- the file ------------------------------------------------------------------------------------


def decode(content: bytes) -> tuple[dict[str, Wanted], int]:
    """Return the wanted keys of a file by digest, and how many of its lines are none.

    Nothing is raised: a file of another kind or format has none, and one line that is damaged.
    """
    lines = content.split(b"\n")
    if lines[0] != HEADER or len(content) > LARGEST_FILE:
        return {}, 1
    found: dict[str, Wanted] = {}
    damaged = 0
    ops: dict[bytes, str | None] = {}  # None for what is no name: each is looked at once
    for line in filter(None, lines[1:]):
        match = _INDEX.fullmatch(line) if len(line) <= LONGEST_LINE else None
        name = b"" if match is None else match["op"]
        if name not in ops:
            text = name.decode("ascii", "replace")
            ops[name] = text if re.fullmatch(OP, text) and len(text) <= LONGEST_OP else None
        op = ops[name]
        if match is None or op is None:
            damaged += 1
            continue
        digest = match["digest"].decode()
        calls, tries, at = map(int, match.group("calls", "tries", "at"))
        found[digest] = Wanted(digest, op, calls, tries, at, match["document"])
    return found, damaged


def encode(keys: Iterable[Wanted], now: int) -> bytes:
    """Return the file that keeps ``keys``, as far as there is room: the most called ones.

    Args:
        keys: In any order.
        now: The time, seconds since 1970; what is too old is left out.
    """
    lines = [HEADER]
    size = len(HEADER) + 1
    fresh = [one for one in keys if -_AHEAD_S <= now - one.at <= PERIOD_S]
    for one in sorted(fresh, key=_order)[:MOST_KEYS]:
        index = f"{one.digest} {one.calls} {one.tries} {one.at} {one.op} ".encode()
        line = index + one.document
        if len(line) > LONGEST_LINE or size + len(line) + 1 > LARGEST_FILE:
            continue
        lines.append(line)
        size += len(line) + 1
    return b"\n".join([*lines, b""])


def _order(one: Wanted) -> tuple[bool, int, int, str]:
    return one.is_rare, -one.calls, -one.at, one.digest


def merged(
    kept: Mapping[str, Wanted], more: Iterable[Wanted], decided: Iterable[str]
) -> dict[str, Wanted]:
    """Return what is wanted after a process has called ``more`` and decided on some keys.

    Calls and tries are those of this process, and are added to what is kept.
    """
    result = dict(kept)
    for one in more:
        before = result.get(one.digest)
        if before is not None:
            calls, tries = before.calls + one.calls, before.tries + one.tries
            one = replace(one, calls=calls, tries=tries, at=max(before.at, one.at))
            if one.is_rare:  # An earlier process may have asked for its kernel.
                one = replace(one, document=before.document)
        result[one.digest] = one
    for digest in decided:
        result.pop(digest, None)
    return result


def read_wanted(root: Path | None) -> dict[str, Wanted]:
    """Return the kept queue of the store at ``root``; empty where there is none to be read."""
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
    """Replace the kept queue of the store at ``root``, which must exist, by what ``change`` gives.

    A directory that is not marked as a cache is left alone.

    Raises:
        OSError: It cannot be written.
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
        call: What it is.
        calls: Returns how often it was called until now.
        is_own: Whether this process has called it, and not only gone on with it.
        tries: How often its kernel was begun in vain.
        earlier: Calls that are not in ``calls`` any more.
    """

    call: WantedCall
    calls: Callable[[], int]
    is_own: bool
    tries: int = 0
    earlier: int = 0


class Record:
    """What this process wants of one store, and what earlier ones have left.

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
        """Return what earlier processes have left, by digest; it is read once."""
        kept = self._kept
        if kept is None:
            with self._lock:
                kept = self._kept = read_wanted(self._root)
        return kept

    def calls_before(self, op: str, digest: str) -> int:
        """Return how often earlier processes have called a key and had no kernel for it."""
        found = self.kept.get(digest)
        return found.calls if found is not None and found.op == op else 0

    def want(
        self,
        call: WantedCall,
        calls: Callable[[], int] | None = None,
    ) -> None:
        """Note that a key has no kernel yet; to be taken back by ``decided``.

        Args:
            call: What it is.
            calls: Returns how often this process has called it until now; ``None`` for a key that
                it goes on with for an earlier one.
        """
        digest = _digest(call)
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
        """Note that the kernel of a key has been begun; ``by=-1``: that it came to an end."""
        with self._lock:
            if digest in self._here:
                # It may have been decided on, and be wanted anew, since it was begun.
                self._here[digest].tries = max(0, self._here[digest].tries + by)

    def release(self, digest: str) -> None:
        """Let go of what counts a key's calls: this process does nothing for it any more."""
        with self._lock:
            here = self._here.get(digest)
            if here is not None:
                here.earlier += here.calls()
                here.calls = _none

    def decided(self, digest: str) -> None:
        """Note that the store has what decides on a key: an entry, or a failure."""
        with self._lock:
            self._here.pop(digest, None)
            # Of more, only what an earlier process has left has to be taken out of the file.
            if len(self._decided) < _MOST_HERE or digest in self.kept:
                self._decided.add(digest)

    def is_own(self, digest: str) -> bool:
        """Return whether this process has called the key: it is in its queue, or has been."""
        found = self._here.get(digest)
        return found is not None and found.is_own

    def keep(self) -> None:
        """Write down what is wanted still.

        Raises:
            OSError: It cannot be written.
        """
        now = int(time.time())
        with self._lock:
            more = []
            for one in self._here.values():
                calls = one.earlier + one.calls()
                # What nobody has called is no younger for having been looked at.
                with contextlib.suppress(*NOT_WANTED):
                    more.append(wanted(one.call, calls, one.tries, now if calls else 0))
            decided = set(self._decided)
        # A store without any of these keys need not be locked for them.
        if more or any(digest in self.kept for digest in decided):
            update_wanted(self._root, lambda kept: merged(kept, more, decided))


_records: dict[Path, Record] = {}
_pid = os.getpid()


def record_of(root: Path) -> Record:
    """Return this process's record of the store at ``root``."""
    record = _records.get(root)
    return record if record is not None else _records.setdefault(root, Record(root))


def calls_before(op: str, digest: str) -> int:
    """Return how often earlier processes have called a key of ``op`` and had no kernel for it.

    A look into a dict, once the file was read: at the first call of this function.

    Args:
        op: Qualified name of the overload.
        digest: The key's.
    """
    try:
        root = config.cache_dir
    except ConfigError:
        return 0
    return 0 if root is None else record_of(root).calls_before(op, digest)


_observers: list[Callable[[], None]] = []


def on_keep(observer: Callable[[], None]) -> None:
    """Call ``observer`` before what is wanted is written down, to want more."""
    _observers.append(observer)


def _keep_all() -> None:
    """Write down what is wanted in all stores; a process that wants nothing leaves nothing."""
    if os.getpid() != _pid:
        return  # A forked child: its parent writes what they had in common.
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
