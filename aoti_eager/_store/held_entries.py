"""What a store holds, and which entries go first: those that were not used for longest.

When an entry was used last is the time of its directory (``StoredEntries.note_use``), so finding
the entries opens none of their files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator

from .._base.data_class import dataclass
from .._base.handover import let_others_run
from .._base.store_format import children
from .._base.trusted_files import Directory
from ..errors import UntrustedFileError
from .entry import Entry, Status
from .entry_files import entry_directories, read_entry
from .limits import Amount, Limits
from .remembered import PERIOD_S


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

    Args:
        root: The store.
        empty: Is given the places of keys without an entry, which killed evictions have left.

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
        for above, name in entry_directories(v1, depth=3):
            let_others_run()
            place = (*above.path.parts[depth:], name)
            try:
                with above.directory(name) as key:
                    targets = list(children(key, *place))
                    found += (one for target in targets if (one := _held(key, target, place)))
                    if empty is not None and not targets and not key.names():
                        empty.append(place)
            except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
                continue  # Removed meanwhile, or nothing that is ever loaded.
    return sorted(found, key=lambda one: (one.used_at, one.place))


def _held(key: Directory, target: str, above: tuple[str, ...]) -> Held | None:
    """Return the entry of a key's open directory; ``None`` if it was removed meanwhile."""
    place = (*above, target)
    try:
        with key.directory(target) as directory:
            used_at = os.fstat(directory.fd).st_mtime
            names = children(directory, *place)
            return Held(place, used_at, sum(directory.status(name).st_size for name in names))
    except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
        return None


def total(found: Iterable[Held]) -> Amount:
    """Return what entries take together."""
    found = list(found)
    return Amount(sum(one.size_bytes for one in found), len(found))


def victims(
    found: list[Held],
    limits: Limits,
    *,
    share: float,
    stays: Callable[[Held], bool],
    incoming: Amount | None = None,
) -> Iterator[Held]:
    """Give the entries that must go until no more than ``share`` of the limits is held.

    Args:
        found: All entries; that used longest ago is first.
        limits: The limits.
        share: At most 1.
        stays: Whether an entry goes only when all entries for which this is false have gone.
        incoming: What is about to be added.
    """
    held = total(found).plus(incoming or Amount())
    staying = []
    for one in found:
        if not limits.are_passed(held, share):
            return
        if stays(one):
            staying.append(one)
            continue
        held = held.minus(one.amount)
        yield one
    for one in staying:
        if not limits.are_passed(held, share):
            return
        held = held.minus(one.amount)
        yield one


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
