"""The limits of a store: the account, what goes first, what stays. Nothing is compiled."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aoti_eager import cache
from aoti_eager._base.trusted_files import Directory, open_directory
from aoti_eager._store import held_entries as held_module
from aoti_eager._store import least_used, puts, stored_entries, usage
from aoti_eager._store.entry import Remembered, Status
from aoti_eager._store.held_entries import held_entries, total
from aoti_eager._store.limits import HIGH, LOW, Amount, Limits
from aoti_eager._store.puts import keep_limits
from aoti_eager._store.store import LIBRARY_FILE, Store, StoredEntry
from aoti_eager._store.stored_entries import COARSE_S
from aoti_eager._store.usage import Account, Usage, account, read_usage
from aoti_eager._store.verdict import Verdict, Verdicts
from aoti_eager.config import config
from aoti_eager.errors import (
    AotiEagerWarning,
    CacheFormatError,
    ConfigError,
    EntryDamagedError,
    StoreError,
)

from ..support.entries import (
    ENVIRONMENT,
    FEATURES,
    OTHER_ENVIRONMENT,
    files_below,
    make_entry,
    make_key,
    publish,
)

LIBRARY = b"\x7fELF" + b"x" * 9996
DAY_S = 24 * 3600.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def open_store(root: Path, **limits: Any) -> Store:
    return Store(root, lock_timeout_s=1.0, limits=Limits(**limits))


def put(store: Store, rows: int, *, days_ago: float | None = None, **fields: Any) -> StoredEntry:
    """Publish the entry of a key, and say when it was used last."""
    content = fields.pop("content", LIBRARY)
    entry = make_entry(key=make_key(rows=rows), **fields)
    stored = publish(store, entry, content=content)
    if days_ago is not None:
        age(stored, days_ago)
    return stored


def age(stored: StoredEntry, days_ago: float) -> None:
    at = time.time() - days_ago * DAY_S
    os.utime(stored.path, (at, at))


def failure(days_ago: float = 1.0, **fields: Any) -> dict[str, Any]:
    """Return the fields of an entry that remembers a failure."""
    met = Remembered(int(time.time() - days_ago * DAY_S), None)
    return {"status": Status.DECLINED, "reason": "does_not_trace", "remembered": met, **fields}


def rows_in(store: Store) -> set[int]:
    """Return the rows of the keys that the store has entries of."""
    found = set()
    for one in store.scan():
        assert isinstance(one, StoredEntry), one
        tensor: Any = dict(one.entry.key.arguments)["self"]
        found.add(tensor["sizes"][0])
    return found


def held(root: Path) -> Amount:
    with open_directory(root) as directory:
        return total(held_entries(directory))


def said(root: Path) -> Usage:
    with open_directory(root) as directory:
        return read_usage(directory)


def bytes_of(root: Path) -> int:
    return sum((root / name).stat().st_size for name in files_below(root) if name[:3] == "v1/")


# --- the account ---------------------------------------------------------------------------------


def test_the_account_says_what_the_store_holds(root: Path) -> None:
    store = open_store(root)
    for rows in range(5):
        put(store, rows)
    assert said(root).held == held(root) == Amount(bytes_of(root), 5)
    assert said(root).is_counted()
    put(store, 3)  # An equal entry is there: nothing is added.
    assert said(root).held == held(root)


def test_stores_without_limits_are_counted_too(root: Path) -> None:
    """Calls write to such stores; a worker that puts the next entry must know."""
    put(open_store(root), 1)
    put(Store(root, lock_timeout_s=1.0), 2)
    assert said(root).held == held(root) == Amount(bytes_of(root), 2)


@pytest.mark.parametrize("content", [None, b"", b"garbage\n", b"x" * 200, "one digit more"])
def test_a_missing_or_damaged_account_is_repaired_by_a_count(
    root: Path, content: bytes | str | None
) -> None:
    store = open_store(root)
    for rows in range(4):
        put(store, rows)
    path = root / "usage"
    line = path.read_bytes()
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_bytes(line.replace(b" 1 0", b" 1 9", 1))
    else:
        path.write_bytes(content)
    put(store, 4)
    assert said(root).held == held(root) == Amount(bytes_of(root), 5)
    assert path.stat().st_size == len(line)


def test_an_account_that_is_a_day_old_is_counted_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files have no locks, additions are lost, and nothing else would find out."""
    store = open_store(root)
    put(store, 1)
    with open_directory(root) as directory, account(directory) as opened:
        opened.write(Usage(Amount(1, 1), int(time.time() - 2 * DAY_S)))
    put(store, 2)
    assert said(root).held == held(root)


def test_a_put_goes_on_without_an_account(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that has the lock may be stopped."""
    store = open_store(root)
    put(store, 1)
    monkeypatch.setattr(puts, "TIMEOUT_S", 0.0)
    with open_directory(root) as directory, account(directory):
        put(store, 2)
    assert rows_in(store) == {1, 2}


def test_a_link_in_the_account_s_place_is_not_written_through(root: Path, tmp_path: Path) -> None:
    store = open_store(root)
    put(store, 1)
    precious = tmp_path / "precious"
    for link in (os.symlink, os.link):
        precious.write_bytes(b"precious")
        (root / "usage").unlink()
        link(precious, root / "usage")
        put(store, 2, content=b"another")
        assert precious.read_bytes() == b"precious"
        precious.unlink()
    assert held(root).entries == 2


@pytest.mark.parametrize("what", ["link", "mode", "fifo", "directory"])
def test_an_account_that_is_not_ours_alone_is_made_anew(
    root: Path, tmp_path: Path, what: str
) -> None:
    store = open_store(root)
    put(store, 1)
    path = root / "usage"
    if what == "mode":
        path.chmod(0o660)
    else:
        path.unlink()
        make = {"link": lambda: path.symlink_to(tmp_path), "fifo": lambda: os.mkfifo(path)}
        make.get(what, path.mkdir)()
    put(store, 2)
    assert said(root).held == held(root) == Amount(bytes_of(root), 2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_put_lists_no_directory_of_the_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count of ten thousand entries for each new one would take longer than the compile."""
    store = open_store(root, max_size=1 << 30, max_entries=10**6)
    for rows in range(30):
        put(store, rows)
    listed: list[str] = []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any = ".") -> Any:
            shown = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
            listed.append(os.path.relpath(shown, root))
            return function(path)

        return counted

    with monkeypatch.context() as patch:
        for name in ("listdir", "scandir"):
            patch.setattr(os, name, counting(getattr(os, name)))
        put(store, 30)
    # Its own work directory is removed with what is in it.
    assert all(one.startswith("tmp/") for one in listed), listed
    assert len(listed) <= 2
    assert said(root).held.entries == 31


# --- what goes -----------------------------------------------------------------------------------


def test_the_entries_that_were_not_used_for_longest_go_down_to_the_low_mark(root: Path) -> None:
    size = 10 * (len(LIBRARY) + 2000)
    store = open_store(root)
    for rows in range(20):
        put(store, rows, days_ago=rows % 7 + rows / 100)
    oldest_last = sorted(range(20), key=lambda rows: rows % 7 + rows / 100)
    put(open_store(root, max_size=size), 99)
    assert LOW * size - len(LIBRARY) - 2000 < bytes_of(root) <= LOW * size
    left = rows_in(store)
    assert left == {99, *oldest_last[: len(left) - 1]}
    assert said(root).held == held(root) == Amount(bytes_of(root), len(left))


def test_the_number_of_entries_is_limited(root: Path) -> None:
    store = open_store(root, max_entries=10)
    for rows in range(11):
        put(store, rows, days_ago=20 - rows)
    assert rows_in(store) == {2, 3, 4, 5, 6, 7, 8, 9, 10}


@pytest.mark.parametrize("limits", [{"max_size": 100}, {"max_entries": 1}])
def test_the_entry_that_was_just_put_stays_however_small_the_limit(
    root: Path, limits: dict[str, int]
) -> None:
    """Somebody is about to load it; without, a store with a small limit would never have a hit."""
    store = open_store(root, **limits)
    for rows in range(4):
        put(store, rows)
        assert rows_in(store) == {rows}


def test_nothing_goes_within_the_limits_or_without_any(root: Path) -> None:
    for store in (open_store(root, max_size=1 << 30, max_entries=8), open_store(root)):
        for rows in range(8):
            put(store, rows, days_ago=1000)
    assert len(rows_in(open_store(root))) == 8


def test_entries_of_all_environments_count(root: Path) -> None:
    store = open_store(root, max_entries=3)
    for rows in range(3):
        put(store, rows, environment=OTHER_ENVIRONMENT, days_ago=9 - rows)
    put(store, 3)
    assert rows_in(store) == {1, 2, 3}
    put(store, 4)
    assert rows_in(store) == {2, 3, 4}


def test_an_entry_leaves_no_directory_behind_and_takes_its_verdicts_along(root: Path) -> None:
    store = open_store(root)
    gone, kept = put(store, 1, days_ago=9), put(store, 2)
    other = make_entry(key=make_key(rows=2), target="cpu-x86-64-v2")
    age(publish(store, other), 8)
    for stored in (gone, kept):
        Verdicts(root).put(stored.entry.digest, Verdict("a"))
        elsewhere = root / "verdicts" / "another-cpu" / f"{stored.entry.digest}.json"
        elsewhere.parent.mkdir(exist_ok=True, mode=0o700)
        elsewhere.write_text("{}")
    put(open_store(root, max_entries=2), 3)
    # Of the second key, the entry of one target has gone, and the other still has its verdicts.
    names = [name for name in files_below(root) if name.startswith("verdicts")]
    assert {Path(name).stem for name in names} == {kept.entry.digest}
    assert len(names) == 2
    assert not gone.path.parent.exists()
    cache.evict(op="*", cache_dir=root)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [
        *("locks", "tmp", "v1", "verdicts")
    ]
    assert list((root / "v1").iterdir()) == []
    assert said(root).held == Amount()


def verdict_names(root: Path) -> set[str]:
    return {Path(name).stem for name in files_below(root) if name.startswith("verdicts")}


def test_verdicts_stay_while_another_environment_has_an_entry_of_the_key(root: Path) -> None:
    """A verdict is named by the key alone, and an upgrade of torch leaves the keys as they are."""
    store = open_store(root)
    old = put(store, 1, environment=OTHER_ENVIRONMENT, days_ago=9)
    new = put(store, 1)
    assert old.entry.digest == new.entry.digest
    Verdicts(root).put(new.entry.digest, Verdict("a"))
    put(open_store(root, max_entries=2), 2)
    assert not old.path.exists()
    assert verdict_names(root) == {new.entry.digest}
    cache.evict(op="*", cache_dir=root)
    assert verdict_names(root) == set()


def test_an_empty_directory_of_a_key_is_no_reason_to_remove_its_verdicts(root: Path) -> None:
    """``prune --stale`` leaves such directories of keys that this environment has entries of."""
    store = open_store(root)
    kept = put(store, 1)
    alone = put(store, 2)
    for stored in (kept, alone):
        Verdicts(root).put(stored.entry.digest, Verdict("a"))
    stale = put(store, 1, environment=OTHER_ENVIRONMENT)
    store.discard(stale.path)
    store.discard(alone.path)  # A failure that has lapsed, say; its key is about to be made again.
    assert stale.path.parent.exists()
    (root / "usage").unlink()
    put(open_store(root, max_entries=100), 3)
    assert not stale.path.parent.exists()
    assert verdict_names(root) == {kept.entry.digest, alone.entry.digest}


def test_files_of_others_in_an_entry_stay(root: Path) -> None:
    store = open_store(root)
    with_file, with_directory = put(store, 1), put(store, 2)
    (with_file.path / "notes.txt").write_bytes(b"precious")
    (with_directory.path / "log").mkdir()
    (with_directory.path / "log" / "notes.txt").write_bytes(b"precious")
    cache.evict(op="*", cache_dir=root)
    assert {Path(name).name for name in files_below(root / "v1")} == {"notes.txt"}
    assert (with_directory.path / "log" / "notes.txt").read_bytes() == b"precious"


@pytest.mark.parametrize("has_new_file", [True, False])
def test_an_entry_of_a_newer_format_goes_whole_or_stays_whole(
    root: Path, has_new_file: bool
) -> None:
    store = open_store(root)
    newer = put(store, 1, days_ago=9)
    document = json.loads((newer.path / "entry.json").read_text())
    (newer.path / "entry.json").write_text(json.dumps({**document, "format": 10**6}))
    with pytest.raises(CacheFormatError):
        store.read(newer.path)
    if has_new_file:
        (newer.path / "guards.bin").write_bytes(b"new")
    before = files_below(newer.path)
    age(newer, 9)
    put(store, 2, days_ago=8)
    put(open_store(root, max_entries=2), 3)
    left = files_below(newer.path) if newer.path.exists() else []
    assert left == (before if has_new_file else [])
    assert held(root).entries == said(root).held.entries == 2


def test_a_directory_without_a_file_of_ours_is_no_entry(root: Path) -> None:
    store = open_store(root)
    theirs, empty = put(store, 1), put(store, 2)
    for path in (theirs.path, empty.path):
        for file in path.iterdir():
            file.unlink()
    (theirs.path / "notes.txt").write_bytes(b"precious")
    put(store, 3)
    assert held(root).entries == 1
    cache.trim(max_entries=5, cache_dir=root)
    assert said(root).held == held(root)
    assert not empty.path.parent.exists()
    assert files_below(theirs.path) == ["notes.txt"]


def test_a_failure_that_saves_a_compile_goes_last(root: Path) -> None:
    """Without it, the next process would compile in vain, or a library that was wrong anew."""
    store = open_store(root)
    put(store, 1, days_ago=9, content=None, **failure())
    put(store, 2, days_ago=8, **failure(status=Status.QUARANTINED, reason="mismatch"))
    put(store, 3, days_ago=7, content=None, **failure(days_ago=31))  # It has lapsed.
    put(store, 4, days_ago=6)
    put(store, 5, days_ago=5)
    cache.trim(max_entries=3, cache_dir=root)
    assert rows_in(store) == {1, 2, 5}
    cache.trim(max_entries=1, cache_dir=root)
    assert rows_in(store) == {2}


def test_damaged_entries_count_and_go(root: Path) -> None:
    store = open_store(root)
    damaged = put(store, 1, days_ago=9)
    (damaged.path / "entry.json").write_bytes(b"{")
    age(damaged, 9)
    put(open_store(root, max_entries=2), 2)
    assert held(root).entries == 2
    put(open_store(root, max_entries=2), 3)
    assert not damaged.path.exists()


def test_an_entry_that_is_used_while_others_go_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root)
    old = put(store, 1, days_ago=9)
    put(store, 2, days_ago=8)
    count = held_module.entry_directories

    def used_meanwhile(*args: Any, **kwargs: Any) -> Any:
        yield from count(*args, **kwargs)
        os.utime(old.path)  # All have been looked at.

    monkeypatch.setattr(held_module, "entry_directories", used_meanwhile)
    put(open_store(root, max_entries=2), 3)
    assert 1 in rows_in(store)


# --- entries that cannot be removed --------------------------------------------------------------


def refuse_moves(
    monkeypatch: pytest.MonkeyPatch, number: int, *entries: StoredEntry
) -> list[object]:
    """Let renames of entries into a work directory fail; of all entries if none is named."""
    rename, refused = os.rename, []
    keys = {str(one.path.parent) for one in entries}

    def refusing(source: str, target: str, **at: int) -> None:
        if target.isdigit():
            above = os.readlink(f"/proc/self/fd/{at['src_dir_fd']}")
            if not keys or above in keys:
                refused.append(above)
                raise OSError(number, os.strerror(number), source)
        rename(source, target, **at)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", refusing)
    return refused


def test_an_entry_whose_directory_cannot_be_renamed_is_emptied_in_place(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlay file system renames no directory of its lower layers, as in an image."""
    store = open_store(root)
    for rows in range(6):
        put(store, rows, days_ago=9 - rows)
    refused = refuse_moves(monkeypatch, errno.EXDEV)
    put(open_store(root, max_entries=4), 6)
    assert len(refused) == 3
    assert rows_in(store) == {3, 4, 5, 6}
    assert said(root).held == held(root) == Amount(bytes_of(root), 4)
    assert len(files_below(root / "v1")) == 8
    assert ops(cache.trim(max_entries=1, cache_dir=root)) == ["aten::silu"] * 3


def test_an_entry_that_cannot_be_removed_at_all_stays_in_the_account(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one goes in its place, and what cannot be changed is not tried again and again."""
    store = open_store(root)
    stuck = put(store, 1, days_ago=9)
    put(store, 2, days_ago=8)
    refuse_moves(monkeypatch, errno.EXDEV, stuck)
    remove = least_used.remove

    def stopped(root: Directory, *place: str) -> bool:
        return place[-2:-1] != (stuck.entry.digest,) and remove(root, *place)

    monkeypatch.setattr(least_used, "remove", stopped)
    put(open_store(root, max_entries=2), 3)
    assert rows_in(store) == {1, 3}
    assert said(root).held == held(root)
    counts: list[object] = []
    count = held_module.entry_directories

    def counting(*args: Any, **kwargs: Any) -> Any:
        if kwargs["depth"] == 3:
            counts.append(args)
        return count(*args, **kwargs)

    monkeypatch.setattr(held_module, "entry_directories", counting)
    monkeypatch.setattr(least_used, "remove", lambda *_: False)
    refuse_moves(monkeypatch, errno.EXDEV)
    put(open_store(root, max_entries=1), 4)
    assert len(counts) == 2, "once to make room, once after the put"
    assert rows_in(store) == {1, 3, 4}
    assert said(root).held == held(root)
    refused = cache.trim(max_entries=1, cache_dir=root)
    assert (refused.entries, refused.left) == ((), 3)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("has_tmp", [True, False])
def test_a_full_disk_can_be_trimmed(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int, has_tmp: bool
) -> None:
    store = open_store(root)
    for rows in range(4):
        put(store, rows, days_ago=9 - rows)
    if not has_tmp:
        (root / "tmp").rmdir()

    def full(name: Any, *_: object, dir_fd: int | None = None) -> None:
        if isinstance(name, str) and name in os.listdir(dir_fd):
            raise FileExistsError(name)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        for name in ("mkdir", "pwrite"):
            patch.setattr(os, name, full)
        report = cache.trim(max_entries=1, cache_dir=root)
    assert (len(report.entries), report.left) == (3, 1)
    assert rows_in(store) == {3}
    assert len(files_below(root / "v1")) == 2
    put(open_store(root, max_entries=2), 5)  # The account is corrected when there is room.
    assert rows_in(store) == {3, 5}
    assert said(root).held == held(root)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_an_entry_that_this_user_may_not_remove_does_not_keep_others_from_going(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = open_store(root)
    theirs = put(store, 1, days_ago=9)
    put(store, 2, days_ago=8)
    refuse_moves(monkeypatch, number, theirs)
    put(open_store(root, max_entries=2), 3)
    assert rows_in(store) == {1, 3}
    with pytest.warns(AotiEagerWarning, match="may not remove some of them, such as .*x86-64-v3"):
        put(open_store(root, max_entries=1), 4)
    put(open_store(root, max_entries=1), 5)  # One warning is enough.
    assert rows_in(store) == {1, 5}
    with pytest.warns(AotiEagerWarning, match="this user may not remove the entry, so it stays"):
        report = cache.evict(op="*", cache_dir=root)
    assert (len(report.entries), report.left) == (1, 1)


@pytest.mark.parametrize("part", ["op", "key", "entry"])
def test_a_directory_that_this_user_may_not_read_does_not_stop_evictions(
    root: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    store = open_store(root)
    theirs = publish(store, make_entry(key=make_key("aten::mul")))
    for rows in range(3):
        put(store, rows, days_ago=9 - rows)
    path = theirs.path
    closed = {"op": path.parents[2], "key": path.parent, "entry": path}[part]
    opened = Directory.directory

    def refusing(self: Directory, name: str, **options: bool) -> Directory:
        if self.path / name == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(closed))
        return opened(self, name, **options)

    monkeypatch.setattr(Directory, "directory", refusing)
    put(open_store(root, max_entries=2), 3)
    monkeypatch.undo()
    assert rows_in(store) == {8, 2, 3}
    assert theirs.path.exists()


def test_leftovers_that_this_user_may_not_remove_do_not_stop_evictions(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root)
    put(store, 1)
    left = root / "tmp" / f"{os.uname().nodename}-4194304-0123456789ab"
    left.mkdir()
    rmdir = os.rmdir

    def refusing(name: str, **at: int) -> None:
        if name == left.name:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        rmdir(name, **at)

    monkeypatch.setattr(os, "rmdir", refusing)
    put(open_store(root, max_entries=1), 2)
    assert rows_in(store) == {2}


@pytest.mark.parametrize("others", ["ahead", "equal"])
def test_the_entry_that_was_just_put_stays_whatever_time_the_others_have(
    root: Path, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    store = open_store(root)
    for rows in range(20):
        put(store, rows, days_ago=-3, content=None)
    if others == "equal":
        install = Store._install

        def installing(self: Store, *args: Any) -> Any:
            entry, path = install(self, *args)
            for one in store.scan():
                os.utime(one.path, (1e9, 1e9))
            return entry, path

        monkeypatch.setattr(Store, "_install", installing)
    first = min(range(100, 300), key=lambda rows: make_key(rows=rows).digest)  # The first place.
    # Less than 5 % past the limit: no room is made before the put.
    put(open_store(root, max_entries=20), first, content=None)
    assert first in rows_in(store)
    assert held(root).entries == LOW * 20


def test_what_was_not_added_to_the_account_is_not_subtracted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root)
    put(store, 1), put(store, 2)
    write, tries = Account.write, []

    def failing_once(self: Account, usage: Usage) -> None:
        tries.append(usage)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, usage)

    monkeypatch.setattr(Account, "write", failing_once)
    put(store, 2)  # An equal entry is there.
    assert said(root).held == held(root)


def test_only_one_process_evicts_and_the_others_do_not_wait(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root, max_entries=100)
    for rows in range(101 - 5):
        put(store, rows, content=None)
    with open_directory(root) as directory, puts.evicting(directory, 0.0):
        for rows in range(200, 209):  # Up to the limit, and less than 5 % past it.
            put(store, rows, content=None)
        assert held(root).entries == 105
        assert held(root).entries <= HIGH * 100
        # Past that, a put waits for the eviction, but not for good.
        monkeypatch.setattr(puts, "LONGEST_WAIT_S", 0.01)
        put(store, 300, content=None)
        assert held(root).entries == 106
    put(store, 301, content=None)
    assert held(root).entries <= LOW * 100
    assert {300, 301} & rows_in(store)


def test_a_put_far_past_the_limits_waits_for_the_eviction_under_way(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root, max_entries=20)
    for rows in range(20):
        put(store, rows, content=None)
    waits = threading.Event()
    evicting = puts.evicting

    def noting(directory: Directory, timeout_s: float) -> Any:
        if timeout_s > 0:
            waits.set()
        return evicting(directory, timeout_s)

    monkeypatch.setattr(puts, "evicting", noting)
    with ThreadPoolExecutor(1) as executor, open_directory(root) as directory:
        with evicting(directory, 0.0):
            put(store, 100, content=None)  # 5 % past the limit.
            assert not waits.is_set()
            done = executor.submit(put, store, 101, content=None)
            assert waits.wait(60)
            assert held(root).entries == 21
        assert done.result(60).path.exists()
    assert held(root).entries == LOW * 20


def test_a_put_waits_in_vain_only_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever evicts may be stopped, and a worker that puts holds its key's lock."""
    store = Store(root, lock_timeout_s=1.0, limits=Limits(None, 10), longest_wait_s=0.01)
    for rows in range(10):
        put(store, rows, content=None)
    waits: list[bool] = []
    evicting = puts.evicting

    def noting(directory: Directory, timeout_s: float) -> Any:
        if timeout_s > 0:
            assert timeout_s <= 0.01
            waits.append(True)
        return evicting(directory, timeout_s)

    monkeypatch.setattr(puts, "evicting", noting)
    with open_directory(root) as directory, evicting(directory, 0.0):
        for rows in range(20, 24):
            put(store, rows, content=None)
        assert waits == [True]
    put(store, 30, content=None)
    assert held(root).entries <= 10
    assert waits == [True]
    put(store, 31, content=None)
    with open_directory(root) as directory, evicting(directory, 0.0):
        put(store, 32, content=None)
        assert waits == [True, True], "the lock was free meanwhile"


def test_a_put_far_past_the_limits_makes_room_first(root: Path) -> None:
    store = open_store(root)
    for rows in range(10):
        put(store, rows, days_ago=20 - rows)
    limits = {"max_size": bytes_of(root) + 100}
    before = held(root)
    large = put(open_store(root, **limits), 99, content=b"x" * (before.size_bytes // 2))
    assert large.path.exists()
    assert bytes_of(root) <= LOW * limits["max_size"]


def test_a_directory_that_an_eviction_has_just_removed_is_made_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename into it would fail, and a kernel that took seconds would be lost."""
    store = open_store(root)
    first = publish(store, make_entry(target="cpu-x86-64-v2"))
    install = Store._install
    removed: list[Path] = []

    def removing(self: Store, *args: Any) -> Any:
        if not removed:
            removed.append(first.path.parent)
            cache.evict(op="*", cache_dir=root)
            assert not first.path.parent.exists()
        return install(self, *args)

    monkeypatch.setattr(Store, "_install", removing)
    # Evictions wait for the lock of the account, which the put has; here it is one thread.
    monkeypatch.setattr(usage, "locked", lambda *_: contextlib.nullcontext())
    stored = publish(store)
    assert removed
    assert store.check_library(stored).content is not None


def test_what_calls_have_put_is_evicted_for_later(root: Path) -> None:
    in_call = Store(root, lock_timeout_s=1.0)
    for rows in range(6):
        put(in_call, rows, days_ago=9 - rows)
    assert len(rows_in(in_call)) == 6
    with config.scope(max_entries=3):
        keep_limits(in_call)
        assert rows_in(in_call) == {3, 4, 5}
        keep_limits(Store(root / "absent", lock_timeout_s=1.0))
    assert not (root / "absent").exists()


def test_leftovers_of_dead_processes_go_with_the_next_eviction(root: Path) -> None:
    store = open_store(root, max_entries=1)
    put(store, 1)
    left = root / "tmp" / f"{os.uname().nodename}-4194304-0123456789ab"
    left.mkdir()
    (left / "1").mkdir()
    (left / "1" / LIBRARY_FILE).write_bytes(LIBRARY)
    put(store, 2)
    assert list((root / "tmp").iterdir()) == []


# --- the time of use -----------------------------------------------------------------------------


def find(store: Store, rows: int = 8) -> StoredEntry | None:
    return store.find(make_key(rows=rows), ENVIRONMENT, FEATURES)


def test_a_use_is_recorded_once_and_only_if_the_last_one_was_long_ago(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root)
    stored = publish(store)
    written: list[object] = []
    utime = os.utime

    def noting(path: Any, times: Any) -> None:
        written.append(path)
        utime(path, times)

    monkeypatch.setattr(stored_entries.os, "utime", noting)

    def use(store: Store) -> None:
        found = find(store)
        assert found is not None
        store.note_use(found)

    use(store)
    utime(stored.path, (time.time() - COARSE_S + 60,) * 2)
    use(store)
    assert written == [], "the last use was not long ago"
    utime(stored.path, (time.time() - COARSE_S - 60,) * 2)
    use(store)
    assert len(written) == 1
    assert time.time() - stored.path.stat().st_mtime < COARSE_S
    utime(stored.path, (1.0, 1.0))
    use(store)
    assert len(written) == 1, "once for each entry and process"
    use(open_store(root))
    assert len(written) == 2, "a new process"
    utime(stored.path, (time.time() + 1e6,) * 2)
    use(open_store(root))
    assert abs(time.time() - stored.path.stat().st_mtime) < COARSE_S, "a clock was wrong"


@pytest.mark.parametrize("part", ["root", "entry"])
def test_a_read_only_store_gets_no_time_of_use(root: Path, part: str) -> None:
    """Its owner could set the time even so."""
    store = open_store(root)
    stored = publish(store)
    os.utime(stored.path, (1000.0, 1000.0))
    path = root if part == "root" else stored.path
    path.chmod(0o500)
    try:
        found = find(store)
        assert found is not None
        store.note_use(found)
        assert stored.path.stat().st_mtime == 1000.0
    finally:
        path.chmod(0o700)


def test_an_entry_s_files_keep_their_times(root: Path) -> None:
    """A failure of an older version has the time of its file."""
    store = open_store(root)
    stored = publish(store)
    os.utime(stored.path, (1000.0, 1000.0))
    os.utime(stored.path / "entry.json", (2000.0, 2000.0))
    found = find(store)
    assert found is not None
    store.note_use(found)
    assert (stored.path / "entry.json").stat().st_mtime == 2000.0
    assert store.written_at(found) == 2000.0


# --- readers meanwhile ---------------------------------------------------------------------------


def test_an_entry_that_goes_between_lookup_and_load_is_missed_cleanly(root: Path) -> None:
    store = open_store(root)
    publish(store)
    found = find(store)
    assert found is not None
    cache.evict(op="*", cache_dir=root)
    with pytest.raises(FileNotFoundError):
        store.check_library(found)
    with pytest.raises(FileNotFoundError):
        store.sealed_library(found)
    assert find(store) is None


def test_an_entry_that_was_read_before_is_loaded_whole(root: Path) -> None:
    store = open_store(root)
    publish(store, content=LIBRARY)
    found = find(store)
    assert found is not None
    checked = store.check_library(found)
    cache.evict(op="*", cache_dir=root)
    with store.sealed_library(checked) as library:
        assert Path(library.name).read_bytes() == LIBRARY


@pytest.mark.parametrize("left", [{"library.so"}, {"entry.json"}, {"library.so", "log"}, set()])
def test_a_half_deleted_entry_in_a_work_directory_is_no_damaged_one(
    root: Path, left: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that has the directory open sees the files go one by one."""
    store = open_store(root)
    stored = publish(store, log="text")
    found = find(store)
    assert found is not None

    def half_evicted(*args: Any, **kwargs: Any) -> bytes:
        monkeypatch.undo()
        shutil.move(stored.path, root / "tmp" / "1")
        for name in {"entry.json", "library.so", "log"} - left:
            (root / "tmp" / "1" / name).unlink()
        return read(*args, **kwargs)

    read: Any = Directory.read
    if "entry.json" not in left:
        monkeypatch.setattr(Directory, "read", half_evicted)
        assert find(store) is None
    else:
        read = Directory.open
        monkeypatch.setattr(Directory, "open", half_evicted)
        with pytest.raises(FileNotFoundError):
            store.check_library(found)


def test_a_library_that_is_missing_in_its_place_is_damage_all_the_same(root: Path) -> None:
    store = open_store(root)
    stored = publish(store)
    (stored.path / LIBRARY_FILE).unlink()
    with pytest.raises(EntryDamagedError):
        store.check_library(stored)
    (stored.path / LIBRARY_FILE).write_bytes(b"another")
    with pytest.raises(EntryDamagedError):
        store.check_library(stored)


def test_listing_a_directory_that_is_removed_meanwhile_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir(mode=0o700)
    with open_directory(tmp_path / "gone") as directory:
        (tmp_path / "gone").rmdir()
        assert directory.names() == []


# --- evict and trim ------------------------------------------------------------------------------


@pytest.fixture
def filled(root: Path) -> Store:
    store = open_store(root)
    for op, days in (("aten::silu", 1), ("aten::add.Tensor", 8), ("aten::add.Scalar", 2)):
        age(publish(store, make_entry(key=make_key(op)), content=LIBRARY), days)
    return store


def ops(report: cache.EvictReport) -> list[str]:
    return [one.op for one in report.entries]


@pytest.mark.parametrize(
    ("chosen", "gone"),
    [
        ({"older_than": "7d"}, ["aten::add.Tensor"]),
        ({"older_than": 1.5 * DAY_S}, ["aten::add.Tensor", "aten::add.Scalar"]),
        ({"op": "aten::silu"}, ["aten::silu"]),
        ({"op": "aten::add"}, ["aten::add.Tensor", "aten::add.Scalar"]),
        ({"op": "aten::add.S*"}, ["aten::add.Scalar"]),
        ({"op": "aten::a*", "older_than": "7d"}, ["aten::add.Tensor"]),
        ({"op": "ATEN::*"}, []),
        ({"older_than": "12h"}, ["aten::add.Tensor", "aten::add.Scalar", "aten::silu"]),
    ],
)
def test_evict_removes_by_age_and_op(
    root: Path, filled: Store, chosen: dict[str, Any], gone: list[str]
) -> None:
    before = held(root)
    would = cache.evict(**chosen, dry_run=True, cache_dir=root)
    assert held(root) == before
    report = cache.evict(**chosen, cache_dir=root)
    assert ops(report) == ops(would) == gone
    assert (would.dry_run, report.dry_run) == (True, False)
    assert report.size_bytes == before.size_bytes - bytes_of(root)
    assert (report.left, report.left_bytes) == (3 - len(gone), bytes_of(root))
    assert (would.left, would.left_bytes) == (report.left, report.left_bytes)
    assert said(root).held == held(root)


def test_trim_removes_the_least_recently_used_until_the_rest_fits(
    root: Path, filled: Store
) -> None:
    assert ops(cache.trim(max_size="1G", cache_dir=root)) == []
    size = bytes_of(root)
    would = cache.trim(max_size=size - 1, dry_run=True, cache_dir=root)
    assert ops(would) == ["aten::add.Tensor"]
    assert held(root).entries == 3
    assert ops(cache.trim(max_size=size - 1, cache_dir=root)) == ["aten::add.Tensor"]
    assert ops(cache.trim(max_entries=1, max_size="1G", cache_dir=root)) == ["aten::add.Scalar"]
    assert ops(cache.trim(max_size=0, cache_dir=root)) == ["aten::silu"]
    assert said(root).held == held(root) == Amount()


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        (cache.evict, {}, "nothing to remove: choose an age"),
        (cache.evict, {"older_than": "7"}, "older_than: got '7'; wants an age such as 30m"),
        (cache.trim, {}, "nothing to trim to"),
        (cache.trim, {"max_size": "5X"}, "max_size: got '5X'; wants bytes, or text"),
        (cache.trim, {"max_entries": -1}, "max_entries: got -1; wants a whole number"),
        (cache.trim, {"max_entries": True}, "max_entries: got True; wants a whole number"),
    ],
)
def test_a_wrong_use_says_what_is_wanted(
    root: Path, verb: Callable[..., object], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        verb(**arguments, cache_dir=root)


def test_an_absent_store_has_nothing_to_evict_and_is_not_made(root: Path) -> None:
    for dry_run in (True, False):
        report = cache.evict(op="*", dry_run=dry_run, cache_dir=root)
        assert (report.entries, report.left, report.left_bytes) == ((), 0, 0)
    assert not root.exists()


def test_a_dry_run_writes_nothing(root: Path, filled: Store) -> None:
    def written() -> dict[str, float]:
        return {name: (root / name).stat().st_ctime for name in files_below(root)}

    before = written()
    cache.evict(op="*", dry_run=True, cache_dir=root)
    cache.trim(max_size=0, dry_run=True, cache_dir=root)
    cache.prune(declined=True, stale=True, dry_run=True, cache_dir=root)
    assert written() == before


def test_nothing_is_evicted_where_work_lies_on_another_file_system(
    root: Path, filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing could be renamed there, and the work directory could not be removed."""
    monkeypatch.setattr(
        "aoti_eager._store.least_used.mount_id", lambda fd: os.readlink(f"/proc/self/fd/{fd}")
    )
    before = sorted((root / "tmp").iterdir())
    with pytest.raises(StoreError, match="tmp: is another file system's, so nothing is evicted"):
        cache.evict(op="*", cache_dir=root)
    assert sorted((root / "tmp").iterdir()) == before
    assert held(root).entries == 3


def test_an_error_of_an_eviction_does_not_reach_the_put(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    store = open_store(root, max_entries=1)
    put(store, 1)
    monkeypatch.setattr("aoti_eager._store.least_used.remove_work", refuse)
    with caplog.at_level(logging.INFO, "aoti_eager"):
        put(store, 2)
    assert "nothing more is evicted" in caplog.text
    assert rows_in(store) == {2}
    monkeypatch.undo()
    put(store, 3)
    assert list((root / "tmp").iterdir()) == []


def test_the_account_is_private_and_in_place(root: Path) -> None:
    store = open_store(root)
    put(store, 1)
    before = (root / "usage").stat()
    put(store, 2)
    after = (root / "usage").stat()
    assert after.st_ino == before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o600
    assert isinstance(Account(-1), Account)
