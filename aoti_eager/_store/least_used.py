"""Evictions: entries that were not used for longest go, so that a store keeps its limits.

One process at a time evicts, the one that has the lock ``locks/evict``. Processes that load or put
entries meanwhile are not disturbed: an entry is renamed into the work directory of the evicting
process, and its files are deleted there. A reader that has looked the entry up finds it gone, or
has its files open and reads them to the end. What a killed process leaves in its work directory is
removed by the next eviction.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from .._base.file_lock import locked
from .._base.handover import let_others_run
from .._base.store_format import Names, children, names_at
from .._base.store_removal import remove, remove_empty, remove_work
from .._base.trusted_files import Directory, mount_id
from .._base.warn_once import log
from ..errors import CacheFormatError, UntrustedFileError
from .entry_files import read_entry
from .held_entries import FORBIDDEN, Held, held_entries, holds_back_a_compile, in_turn, total
from .limits import LOW, Amount, Limits
from .usage import Usage, account
from .work_directories import stale_work, work_directory

# Errors of a disk, or of a user's share of a disk, that is full.
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Eviction:
    """An eviction under way in an open store, under the lock.

    Args:
        root: The store.
        work: An empty work directory of this process; ``None`` where none can be made, as on a full
            disk: entries are emptied in their place.

    Attributes:
        refused: An entry that this user may not remove; ``None`` if there was none.
    """

    def __init__(self, root: Directory, work: Directory | None) -> None:
        self._root = root
        self._work = work
        self._moves = 0
        self.refused: Path | None = None

    def count(self) -> list[Held]:
        """Return all entries, as ``held_entries``, and correct the store's account.

        Empty directories go, and no verdicts: whoever left such a directory, another entry of its
        key may be in use. Verdicts without an entry go with ``prune``.

        Raises:
            TimeoutError: Another process has held the account's lock for too long.
            OSError: The store cannot be read.
        """
        root = self._root
        before = None
        with _where_possible(), account(root) as opened:
            before = opened.read()
        # Whatever was added to the account before is in its place, or its process is dead.
        empty: list[tuple[str, ...]] = []
        found = held_entries(root, empty)
        for place in empty:
            remove_empty(root, *place)
        if before is not None:
            with _where_possible(), account(root) as opened:
                # What was added since may have been found, too: then the account says too much.
                added = opened.read().held.minus(before.held)
                opened.write(Usage(total(found).plus(added), int(time.time())))
        return found

    def down_to(
        self,
        limits: Limits,
        *,
        incoming: Amount | None = None,
        spared: tuple[str, ...] | None = None,
    ) -> int:
        """Evict to ``LOW`` of the limits, if they are passed, and return how many entries went.

        For an entry that cannot be removed, the next one goes.

        Args:
            limits: The limits.
            incoming: What is about to be added; room is made for it, too.
            spared: The place of the entry that was just put, which stays. If this is not known and
                nothing is incoming, the entry that was used last stays.

        Raises:
            OSError: The store cannot be read or written.
        """
        found = self.count()
        left = total(found).plus(incoming or Amount())
        if not limits.are_passed(left):
            return 0
        if spared is None and incoming is None:
            spared = found[-1].place
        count = 0
        for one in in_turn(found, lambda one: holds_back_a_compile(self._root, one)):
            if not limits.are_passed(left, LOW):
                break
            # Somebody is about to use the entry that was just put, however large it is.
            if one.place != spared and self.remove(one, if_unused=True):
                left = left.minus(one.amount)
                count += 1
        return count

    def remove(self, one: Held, *, if_unused: bool = False) -> bool:
        """Remove an entry, and with the last one of its key, the key's verdicts.

        Files that somebody else has put into the entry's directory stay. An entry of a newer format
        with files of other names stays whole.

        Args:
            one: The entry.
            if_unused: Leave the entry if a process has used it since it was found.

        Returns:
            Whether the entry is gone.

        Raises:
            OSError: No entry can be removed: the store is read-only, or the device has failed.
        """
        let_others_run()
        root, place = self._root, one.place
        try:
            with root.descend(*place[:-1]) as parent:
                with parent.directory(place[-1]) as directory:
                    if if_unused and os.fstat(directory.fd).st_mtime != one.used_at:
                        return False
                    ours = names_at(*place)
                    is_ours = all(_is_ours(directory, name, ours) for name in directory.names())
                if not is_ours and _is_newer(parent, place[-1]):
                    return False
                is_moved = is_ours and self._moved(parent, place[-1])
                if not is_moved and not _emptied(root, place, ours):
                    return False
        except FileNotFoundError:
            pass  # Another process has removed the entry, and did not tell the account.
        except (NotADirectoryError, UntrustedFileError):
            return False
        except OSError as error:
            if error.errno in FORBIDDEN:
                self.refused = root.path.joinpath(*place)
                return False
            if error.errno != errno.EBUSY:
                raise
            return False  # Somebody has mounted something there.
        self._forget_key(place[:-1])
        with _where_possible(), account(root) as opened:
            opened.take(one.amount)
        return True

    def _forget_key(self, key: tuple[str, ...]) -> None:
        """Remove a key's directory, and its verdicts if no environment has an entry of the key.

        A verdict has the key's digest as its name, and the digest does not have the environment.
        """
        if remove_empty(self._root, *key) and not _is_in_any_environment(self._root, key):
            for processor in _processors(self._root):
                remove(self._root, "verdicts", processor, f"{key[-1]}.json")

    def _moved(self, parent: Directory, target: str) -> bool:
        """Rename an entry into the work directory, and delete it there.

        Returns:
            Whether that was done: false if the file system cannot rename the directory. An
            ``overlayfs`` cannot, if the directory lies in one of the lower layers.
        """
        if self._work is None:
            return False
        self._moves += 1
        name = str(self._moves)
        try:
            # Rename first: a reader must find all of an entry, or nothing.
            os.rename(target, name, src_dir_fd=parent.fd, dst_dir_fd=self._work.fd)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
        remove_work(self._work, name)
        return True


@contextlib.contextmanager
def _where_possible() -> Iterator[None]:
    """Let errors of the account pass: the account is advice, and a full disk needs an eviction."""
    try:
        yield
    except TimeoutError:
        raise  # Each entry would wait anew.
    except OSError as error:
        log.debug("the account of a store cannot be written: %s", error)


def _is_ours(directory: Directory, name: str, ours: Names) -> bool:
    """Return whether a name is one of an entry's files; a directory of that name is not ours."""
    return ours.find(name) is not None and not stat.S_ISDIR(directory.status(name).st_mode)


def _is_newer(parent: Directory, target: str) -> bool:
    """Return whether an entry is of a newer format: then files that we do not know are its own."""
    try:
        read_entry(parent, target)
    except CacheFormatError:
        return True
    except OSError:
        pass
    return False


def _emptied(root: Directory, place: tuple[str, ...], ours: Names) -> bool:
    """Remove the files that are ours from an entry's directory; return whether all are gone."""
    remove(root, *place)
    try:
        with root.descend(*place) as directory:
            return not any(ours.find(name) for name in directory.names())
    except FileNotFoundError:
        return True


def _is_in_any_environment(root: Directory, key: tuple[str, ...]) -> bool:
    """Return whether a key has a directory in any environment; true if that cannot be seen."""
    try:
        with root.directory(key[0]) as v1:
            environments = list(children(v1, key[0]))
    except OSError:
        return True
    for environment in environments:
        try:
            with root.descend(key[0], environment, *key[2:]):
                return True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return True
    return False


def _processors(root: Directory) -> list[str]:
    """Return the processors that have verdicts in the store."""
    try:
        with root.directory("verdicts") as verdicts:
            return list(children(verdicts, "verdicts"))
    except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
        return []


def _check_place_of_work(root: Directory) -> None:
    """Raise if ``tmp`` lies on another mount: nothing could be renamed there, or removed there.

    Raises:
        UntrustedFileError: It does, or is a link.
    """
    try:
        tmp = root.directory("tmp", create=True)
    except OSError as error:
        if error.errno in _FULL:
            return  # There is none, and none can be made.
        raise
    with tmp:
        if mount_id(tmp.fd) != mount_id(root.fd):
            raise UntrustedFileError(tmp.path, "is another file system's, so nothing is evicted")


def _sweep(root: Directory) -> None:
    """Remove the work directories of dead processes, as far as this user may."""
    for name in stale_work(root):
        try:
            remove(root, "tmp", name)
        except OSError as error:
            if error.errno not in FORBIDDEN:
                raise


@contextlib.contextmanager
def evicting(root: Directory, timeout_s: float) -> Iterator[Eviction]:
    """Hold the lock of evictions, and give an eviction; first remove what killed ones have left.

    Raises:
        TimeoutError: Another process evicts, and did not end within ``timeout_s`` seconds.
        UntrustedFileError: ``tmp`` is a link, or lies on another mount.
        OSError: The store cannot be written.
    """
    with (
        root.directory("locks", create=True) as locks,
        locked(locks, "evict", timeout_s),
    ):
        _check_place_of_work(root)
        _sweep(root)
        with contextlib.ExitStack() as opened:
            work = None
            try:
                path = opened.enter_context(work_directory(root))
                work = opened.enter_context(root.descend("tmp", path.name))
            except OSError as error:
                if error.errno not in _FULL:
                    raise
            yield Eviction(root, work)
