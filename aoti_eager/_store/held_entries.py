"""What a store holds, and which entries go first: those that were not used for longest.

When an entry was used last is the time of its directory (``StoredEntries.note_use``), so finding
the entries opens none of their files.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator

from .._base.data_class import dataclass
from .._base.handover import let_others_run
from .._base.store_format import children
from .._base.trusted_files import Directory
from ..errors import UntrustedFileError
from .entry import Entry, Status
from .entry_files import entry_directories, read_entry
from .limits import Amount
from .remembered import PERIOD_S

# Errors for one directory that this user may not open, list or change: others can be.
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


@dataclass(frozen=True, slots=True)
class Held:
    """An entry that a store holds, as far as an eviction must know it.

    Attributes:
        place: The names that lead from the store's root to the entry's directory.
        used_at: When the entry was used last, in seconds since 1970.
        size_bytes: Bytes of its files.
    """

    place: tuple[str, ...]
    used_at: float
    size_bytes: int

    @property
    def amount(self) -> Amount:
        """Return what a store holds less without the entry."""
        return Amount(self.size_bytes, 1)


def held_entries(root: Directory, empty: list[tuple[str, ...]] | None = None) -> list[Held]:
    """Return all entries of an open store, of all environments; that used longest ago is first.

    A time of use in the future counts as the present. What this user may not read is left out.

    Args:
        root: The store.
        empty: Is given the places of empty directories of keys and entries, which processes that
            remove entries leave.

    Raises:
        OSError: The store cannot be read.
    """
    found: list[Held] = []
    try:
        v1 = root.directory("v1")
    except (FileNotFoundError, NotADirectoryError):
        return found
    depth = len(root.path.parts)
    with v1:
        for above, name in entry_directories(v1, depth=3, passed_over=FORBIDDEN):
            let_others_run()
            place = (*above.path.parts[depth:], name)
            try:
                with above.directory(name) as key:
                    targets = list(children(key, *place))
                    for target in targets:
                        if (one := _held(key, target, place, empty)) is not None:
                            found.append(one)
                    if empty is not None and not targets and not key.names():
                        empty.append(place)
            except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
                continue  # Removed meanwhile, or nothing that is ever loaded.
            except OSError as error:
                if error.errno not in FORBIDDEN:
                    raise
    now = time.time()
    return sorted(found, key=lambda one: (min(one.used_at, now), one.place))


def _held(
    key: Directory, target: str, above: tuple[str, ...], empty: list[tuple[str, ...]] | None
) -> Held | None:
    """Return the entry of a key's open directory; ``None`` if there is none, or not for us."""
    place = (*above, target)
    try:
        with key.directory(target) as directory:
            used_at = os.fstat(directory.fd).st_mtime
            names = directory.names()
            if not names and empty is not None:
                empty.append(place)
            found = [directory.status(name) for name in children(directory, *place)]
    except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
        return None
    except OSError as error:
        if error.errno not in FORBIDDEN:
            raise
        return None
    sizes = [one.st_size for one in found if not stat.S_ISDIR(one.st_mode)]
    return Held(place, used_at, sum(sizes)) if sizes else None


def total(found: Iterable[Held]) -> Amount:
    """Return what entries take together."""
    found = list(found)
    return Amount(sum(one.size_bytes for one in found), len(found))


def in_turn(found: Iterable[Held], stays: Callable[[Held], bool]) -> Iterator[Held]:
    """Give entries in the order in which they go.

    Args:
        found: The entries; that used longest ago is first.
        stays: Whether an entry goes only when all entries for which this is false have gone. Asked
            only of entries whose turn has come.
    """
    staying = []
    for one in found:
        if stays(one):
            staying.append(one)
        else:
            yield one
    yield from staying


def entry_at(root: Directory, one: Held) -> Entry | None:
    """Return the entry in full; ``None`` if it is gone, damaged, or of a newer format."""
    try:
        with root.descend(*one.place[:-1]) as parent:
            return read_entry(parent, one.place[-1]).entry
    except OSError:
        return None


def holds_back_a_compile(root: Directory, one: Held) -> bool:
    """Return whether an entry is a failure that keeps later processes from compiling its key.

    Such an entry saves a compile as a kernel does, or keeps a library that was wrong from being
    made again; and it is small. A failure lapses after 30 days (``remembered``).
    """
    entry = entry_at(root, one)
    if entry is None or entry.status is Status.READY:
        return False
    at = one.used_at if entry.remembered is None else float(entry.remembered.at)
    return abs(time.time() - at) <= PERIOD_S
