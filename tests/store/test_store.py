"""The store: what was published is found by whom it may be; all else is a miss, or raises."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoti_eager import cache
from aoti_eager._store.entry import (
    Library,
    Status,
    decode,
    encode,
)
from aoti_eager._store.store import (
    ENTRY_FILE,
    LIBRARY_FILE,
    LOG_FILE,
    BadEntry,
    Store,
    StoredEntry,
)
from aoti_eager.errors import (
    CacheFormatError,
    EntryDamagedError,
    LockTimeoutError,
    StoreError,
    StorePermissionError,
)

from ..support import forked_python
from ..support.entries import (
    ENVIRONMENT,
    FEATURES,
    OTHER_ENVIRONMENT,
    files_below,
    make_entry,
    make_key,
    publish,
)

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store is to be; it does not exist yet."""
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root, lock_timeout_s=0.05)


def find(store: Store, entry_key: object = None) -> StoredEntry | None:
    return store.find(entry_key or make_key(), ENVIRONMENT, FEATURES)  # type: ignore[arg-type]


# --- find ----------------------------------------------------------------------------------------


def test_what_was_published_is_found(store: Store) -> None:
    published = publish(store, content=b"machine code", log="from the compiler")
    found = find(store)
    assert found == published
    assert found.entry == make_entry(library=found.entry.library)
    assert found.entry.library == Library(12, found.entry.library.sha256)
    assert found.library_path.read_bytes() == b"machine code"
    assert (found.path / LOG_FILE).read_text() == "from the compiler"
    store.check_library(found)


def test_an_entry_of_this_host_is_found_by_a_new_store_object(store: Store, root: Path) -> None:
    """On the host that stored an entry, a new process hits."""
    published = publish(store)
    assert find(Store(root, lock_timeout_s=1.0)) == published


def test_an_entry_lies_where_the_design_says(store: Store, root: Path) -> None:
    found = publish(store, log="text")
    key, environment = make_key().digest, ENVIRONMENT.digest[:16]
    path = root / "v1" / environment / "aten.silu" / "static" / key / "cpu-x86-64-v3"
    assert found.path == path
    assert sorted(os.listdir(path)) == sorted([ENTRY_FILE, LIBRARY_FILE, LOG_FILE])


def test_nothing_is_found_in_a_store_that_does_not_exist(store: Store, root: Path) -> None:
    assert find(store) is None
    assert list(store.scan()) == []
    assert not store.has_entries(ENVIRONMENT)
    assert store.clear() == 0
    assert not root.exists()


@pytest.mark.parametrize(
    "key",
    [
        make_key("aten::gelu"),
        make_key(rows=9),
        make_key(threads=3),
        make_key(threads="any"),
    ],
)
def test_another_key_is_a_miss(store: Store, key: object) -> None:
    """A call never gets the kernel of another call."""
    publish(store)
    assert find(store, key) is None


def test_another_environment_is_a_miss(store: Store) -> None:
    """An entry of another torch version is never opened."""
    publish(store)
    assert store.find(make_key(), OTHER_ENVIRONMENT, FEATURES) is None
    assert store.has_entries(ENVIRONMENT)
    assert not store.has_entries(OTHER_ENVIRONMENT)


@pytest.mark.parametrize("features", [set(), {"avx2"}, {"fma", "avx512f"}])
def test_an_instruction_set_that_the_host_lacks_is_a_miss(store: Store, features: set[str]) -> None:
    """The code would be illegal here."""
    publish(store)
    assert store.find(make_key(), ENVIRONMENT, frozenset(features)) is None


def test_more_features_than_an_entry_needs_are_a_hit(store: Store) -> None:
    """A check that asks for equal features would never hit."""
    publish(store)
    for features in ({"avx2", "fma"}, {"avx2", "fma", "amx"}):
        assert store.find(make_key(), ENVIRONMENT, frozenset(features)) is not None


def test_the_best_instruction_set_that_the_host_has_is_found(store: Store) -> None:
    v4 = make_entry(target="cpu-x86-64-v4", requires=frozenset({"avx2", "fma", "avx512f"}))
    publish(store, v4, content=b"v4")
    publish(store, content=b"v3")
    found = find(store)
    assert found is not None
    assert found.entry.target == "cpu-x86-64-v4"
    without = store.find(make_key(), ENVIRONMENT, FEATURES - {"avx512f"})
    assert without is not None
    assert without.entry.target == "cpu-x86-64-v3"


@pytest.mark.parametrize(
    ("preferred", "expected"),
    [
        ("cpu-x86-64-v3", "cpu-x86-64-v3"),
        ("cpu-0123456789ab", "cpu-0123456789ab"),
        ("cpu-x86-64-v4", "cpu-x86-64-v3"),  # This host cannot run it.
        ("cpu-x86-64-v5", "cpu-x86-64-v3"),
    ],
)
def test_the_target_that_is_set_is_preferred_and_then_the_best(
    root: Path, preferred: str, expected: str
) -> None:
    store = Store(root, lock_timeout_s=0.05, preferred_target=preferred)
    features = FEATURES - {"avx512f"}
    for name, requires in (
        ("cpu-x86-64-v4", features | {"avx512f"}),
        ("cpu-x86-64-v3", frozenset({"avx2"})),
        ("cpu-x86-64-v2", frozenset()),
        ("cpu-0123456789ab", features),
    ):
        publish(store, make_entry(target=name, requires=requires), content=name.encode())
    found = store.find(make_key(), ENVIRONMENT, features)
    assert found is not None
    assert found.entry.target == expected


def test_declined_and_quarantined_entries_are_found_as_what_they_are(store: Store) -> None:
    declined = make_entry(status=Status.DECLINED, reason="compile_failed", message="no")
    publish(store, declined, content=None, log="error: no")
    found = find(store)
    assert found is not None
    assert found.entry == declined
    assert not found.library_path.exists()
    with pytest.raises(EntryDamagedError, match="has no kernel library"):
        store.check_library(found)


# --- damage --------------------------------------------------------------------------------------


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [garble, truncate, empty, remove, make_directory]


@pytest.fixture
def other(store: Store) -> StoredEntry:
    """Another entry, that stays good."""
    return publish(store, make_entry(key=make_key(rows=1)), content=b"another")


def assert_still_good(store: Store, other: StoredEntry) -> None:
    found = find(store, other.entry.key)
    assert found == other
    store.check_library(found)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_record_raises_for_that_entry_alone(
    store: Store, other: StoredEntry, damage: Callable[[Path], None]
) -> None:
    """One bad entry must not spoil the others."""
    path = publish(store).path
    damage(path / ENTRY_FILE)
    with pytest.raises(EntryDamagedError) as caught:
        find(store)
    assert caught.value.path == path  # type: ignore[attr-defined]
    assert str(path) in str(caught.value)
    assert_still_good(store, other)
    kinds = [one.kind if isinstance(one, BadEntry) else "good" for one in store.scan()]
    assert sorted(kinds) == ["damaged", "good"]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_library_raises_for_that_entry_alone(
    store: Store, other: StoredEntry, damage: Callable[[Path], None]
) -> None:
    """The digest is compared before a load."""
    found = publish(store, content=b"x" * 1000)
    damage(found.library_path)
    again = find(store)
    assert again is not None
    with pytest.raises(EntryDamagedError) as caught:
        store.check_library(again)
    assert caught.value.path == found.path  # type: ignore[attr-defined]
    assert_still_good(store, other)


def test_a_longer_library_with_the_same_start_is_damaged(store: Store) -> None:
    found = publish(store)
    with found.library_path.open("ab") as library:
        library.write(b"more")
    with pytest.raises(EntryDamagedError, match="not the file that was stored"):
        store.check_library(found)


def test_an_entry_under_the_path_of_another_key_is_damaged(store: Store) -> None:
    """The full key is compared, not only its digest in the path."""
    elsewhere = publish(store, make_entry(key=make_key(rows=1)))
    path = publish(store).path
    shutil.rmtree(path)
    shutil.copytree(elsewhere.path, path)
    with pytest.raises(EntryDamagedError, match="holds another key"):
        find(store)
    assert find(store, make_key(rows=1)) == elsewhere


def test_an_entry_under_the_path_of_another_environment_is_damaged(store: Store) -> None:
    foreign = publish(store, make_entry(environment=OTHER_ENVIRONMENT))
    path = publish(store).path
    shutil.rmtree(path)
    shutil.copytree(foreign.path, path)
    with pytest.raises(EntryDamagedError, match="holds another key"):
        find(store)


def test_an_entry_of_a_newer_format_is_refused_and_stays(
    store: Store, root: Path, other: StoredEntry
) -> None:
    path = publish(store).path
    outer = json.loads((path / ENTRY_FILE).read_bytes())
    outer["format"] = 99
    (path / ENTRY_FILE).write_text(json.dumps(outer))
    with pytest.raises(CacheFormatError, match="has format 99"):
        find(store)
    assert_still_good(store, other)
    assert [one.kind for one in store.scan() if isinstance(one, BadEntry)] == ["future"]
    document = (path / ENTRY_FILE).read_bytes()
    with pytest.raises(CacheFormatError, match="has format 99"):
        publish(store)
    assert (path / ENTRY_FILE).read_bytes() == document
    assert list((root / "tmp").iterdir()) == []


def test_a_damaged_entry_does_not_hide_one_of_another_instruction_set(store: Store) -> None:
    """One bad entry must not spoil the others."""
    good = publish(store)
    best = publish(store, make_entry(target="cpu-x86-64-v4"))
    garble(best.path / ENTRY_FILE)
    assert find(store) == good


def test_an_entry_deleted_by_hand_is_a_miss(store: Store) -> None:
    found = publish(store)
    shutil.rmtree(found.path)
    assert find(store) is None
    assert list(store.scan()) == []


@pytest.mark.parametrize("level", range(6))
def test_a_stray_file_in_any_directory_spoils_no_other_entry(
    store: Store, root: Path, other: StoredEntry, level: int
) -> None:
    """Somebody's .DS_Store."""
    publish(store)
    directory = other.path
    for _ in range(level):
        directory = directory.parent
    (directory / ".DS_Store").write_bytes(b"stray")
    assert find(store) is not None
    assert_still_good(store, other)
    assert sum(isinstance(one, StoredEntry) for one in store.scan()) == 2


# --- publish -------------------------------------------------------------------------------------


def test_a_workspace_is_private_and_gone_at_its_end(store: Store, root: Path) -> None:
    with store.workspace() as work:
        assert work.parent == root / "tmp"
        assert stat.S_IMODE(work.stat().st_mode) == 0o700
        (work / "inner").mkdir()
        (work / "inner" / "file").write_bytes(b"x")
    assert files_below(root / "tmp") == []
    assert list((root / "tmp").iterdir()) == []


def test_a_workspace_is_gone_after_an_error_too(store: Store, root: Path) -> None:
    def leave() -> None:
        with store.workspace() as work:
            (work / "file").write_bytes(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert list((root / "tmp").iterdir()) == []


def test_publishing_leaves_the_files_of_the_entry_and_nothing_else(
    store: Store, root: Path
) -> None:
    """Three files an entry, and no temporary file is left."""
    for rows in range(20):
        publish(store, make_entry(key=make_key(rows=rows)), log="text")
    assert list((root / "tmp").iterdir()) == []
    files = files_below(root)
    assert len([name for name in files if name.startswith("v1/")]) == 3 * 20
    others = [name for name in files if not name.startswith("v1/")]
    assert others == ["CACHEDIR.TAG", "locks/usage", "usage"]


def test_the_loser_of_a_race_gets_the_winners_copy(store: Store, root: Path) -> None:
    """Two processes compiled one key; both go on with one library."""
    loser = Store(root, lock_timeout_s=1.0)
    with loser.workspace() as work:
        mine = work / "built.so"
        mine.write_bytes(b"the loser's")
        winner = publish(store, content=b"the winner's")
        got = loser.publish(make_entry(), work, mine, "")
    assert got == winner
    assert got.library_path.read_bytes() == b"the winner's"
    loser.check_library(got)
    assert list((root / "tmp").iterdir()) == []


def test_many_threads_publish_one_key_as_one_entry(store: Store, root: Path) -> None:
    """An entry is published in one step, or not at all."""
    results: list[StoredEntry] = []
    gate = threading.Barrier(8)

    def one(content: bytes) -> None:
        gate.wait()
        results.append(publish(store, content=content))

    threads = [threading.Thread(target=one, args=(bytes([i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len({result.entry.library for result in results}) == 1
    store.check_library(results[0])
    assert list((root / "tmp").iterdir()) == []


@pytest.mark.parametrize("file", [ENTRY_FILE, LIBRARY_FILE])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_publishing_over_a_damaged_entry_replaces_it(
    store: Store, file: str, damage: Callable[[Path], None]
) -> None:
    """That entry alone is rebuilt."""
    damage(publish(store, content=b"old" * 100).path / file)
    new = publish(store, content=b"new")
    assert find(store) == new
    store.check_library(new)
    assert new.library_path.read_bytes() == b"new"


def test_publishing_a_kernel_replaces_a_remembered_failure(store: Store) -> None:
    declined = make_entry(status=Status.DECLINED, reason="no_compiler")
    publish(store, declined, content=None, log="g++: not found")
    ready = publish(store)
    assert find(store) == ready
    assert ready.entry.status is Status.READY
    assert not (ready.path / LOG_FILE).exists()


def test_a_moved_library_is_the_same_file(store: Store) -> None:
    """It may be mapped already: a copy would take its memory twice."""
    with store.workspace() as work:
        library = work / "built.so"
        library.write_bytes(b"code")
        inode = library.stat().st_ino
        published = store.publish(make_entry(), work, library, "")
    assert published.library_path.stat().st_ino == inode


def test_a_missing_library_is_a_store_error_and_nothing_is_published(store: Store) -> None:
    with store.workspace() as work, pytest.raises(StoreError, match="cannot be written"):
        store.publish(make_entry(), work, work / "missing.so", "")
    assert find(store) is None


def test_a_discarded_entry_is_a_miss_and_others_stay(
    store: Store, root: Path, other: StoredEntry
) -> None:
    found = publish(store)
    store.discard(found.path)
    assert find(store) is None
    assert_still_good(store, other)
    store.discard(found.path)
    assert list((root / "tmp").iterdir()) == []


def test_clear_removes_the_entries_of_every_environment(store: Store, root: Path) -> None:
    publish(store)
    publish(store, make_entry(environment=OTHER_ENVIRONMENT))
    garble(publish(store, make_entry(key=make_key(rows=1))).path / ENTRY_FILE)
    (root / "toolchain").mkdir()
    (root / "toolchain" / "header.pch").write_bytes(b"kept")
    assert store.clear() == 3
    assert files_below(root) == ["CACHEDIR.TAG", "locks/usage", "toolchain/header.pch"]
    assert find(store) is None
    assert store.clear() == 0
    publish(store)
    assert find(store) is not None


def test_a_quarantined_entry_keeps_its_library_and_says_why(store: Store, root: Path) -> None:
    found = publish(store, content=b"wrong code")
    store.quarantine(found, "mismatch", "output 0 differs")
    again = find(store)
    assert again is not None
    assert again.entry.status is Status.QUARANTINED
    assert (again.entry.reason, again.entry.message) == ("mismatch", "output 0 differs")
    assert again.library_path.read_bytes() == b"wrong code"
    assert again.entry.library == found.entry.library
    assert list((root / "tmp").iterdir()) == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")])
def test_a_quarantined_entry_names_no_library_that_is_gone_or_damaged(
    store: Store, damage: Callable[[Path], object]
) -> None:
    """Else ``verify`` would call the record of what went wrong damaged, and remove it."""
    found = publish(store)
    damage(found.library_path)
    store.quarantine(found, "mismatch", "output 0 differs")
    again = find(store)
    assert again is not None
    assert again.entry.status is Status.QUARANTINED
    assert again.entry.library is None
    assert not again.library_path.exists()
    assert cache.verify(repair=False, cache_dir=store.root).damaged == ()


# --- the root ------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_root_is_created_for_us_alone(store: Store, root: Path, umask: int) -> None:
    """Whoever can write to it could have this process load their code."""
    before = os.umask(umask)
    try:
        publish(store)
    finally:
        os.umask(before)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert find(store) is not None


def test_missing_parents_of_the_root_are_created(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b" / "store", lock_timeout_s=1.0)
    assert find(store) is None
    publish(store)
    assert find(store) is not None


def every_use(store: Store) -> list[Callable[[], object]]:
    def locked() -> None:
        with store.locked(make_key()):
            raise AssertionError("locked")

    return [
        lambda: find(store),
        lambda: publish(store),
        lambda: store.has_entries(ENVIRONMENT),
        lambda: list(store.scan()),
        store.clear,
        locked,
    ]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720, 0o702, 0o1777])
def test_a_root_that_others_can_write_to_is_refused(store: Store, root: Path, mode: int) -> None:
    """Whoever can write to it could have this process load their code."""
    publish(store)
    root.chmod(mode)
    for use in every_use(Store(root, lock_timeout_s=1.0)):
        with pytest.raises(StorePermissionError, match="others can write to it"):
            use()
    root.chmod(0o755)  # Readable by others is no danger.
    assert find(Store(root, lock_timeout_s=1.0)) is not None


@NEEDS_ROOT
def test_a_root_of_another_user_is_refused(store: Store, root: Path) -> None:
    """The other user could have this process load their code."""
    publish(store)
    os.chown(root, 65534, 65534)
    for use in every_use(Store(root, lock_timeout_s=1.0)):
        with pytest.raises(StorePermissionError, match="belongs to user 65534"):
            use()


def test_a_root_that_becomes_unsafe_is_refused_from_then_on(store: Store, root: Path) -> None:
    """Deleted by a cleaner of /tmp, and made again by someone else."""
    publish(store)
    shutil.rmtree(root)
    root.mkdir()
    root.chmod(0o777)
    for use in every_use(store):
        with pytest.raises(StorePermissionError, match="others can write to it"):
            use()


def test_a_root_that_is_a_file_is_refused(store: Store, root: Path) -> None:
    root.write_bytes(b"")
    for use in every_use(store):
        with pytest.raises(StoreError, match="is no directory; set AOTI_EAGER_CACHE_DIR"):
            use()


def test_a_root_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for use in every_use(Store(tmp_path / "file" / "store", lock_timeout_s=1.0)):
        with pytest.raises(StoreError):
            use()


def test_deleting_the_root_between_calls_is_a_miss_and_the_next_publish_makes_it_anew(
    store: Store, root: Path
) -> None:
    """The cache may be deleted at any moment."""
    publish(store)
    shutil.rmtree(root)
    assert find(store) is None
    assert list(store.scan()) == []
    assert not store.has_entries(ENVIRONMENT)
    assert not root.exists()
    publish(store)
    assert find(store) is not None
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_deleting_the_root_during_a_compile_is_a_store_error_of_that_publish(
    store: Store, root: Path
) -> None:
    """The cache may be deleted at any moment."""
    with store.locked(make_key()), store.workspace() as work:
        shutil.rmtree(root)
        with pytest.raises(StoreError):
            store.publish(make_entry(), work, work / "built.so", "")
    publish(store)
    assert find(store) is not None


# --- work directories ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_only_the_work_of_dead_processes_is_removed(
    store: Store, root: Path, dead_pid: int
) -> None:
    """Killed processes leave work directories, which must not pile up."""
    host = socket.gethostname()
    dead = root / "tmp" / f"{host}-{dead_pid}-0123456789ab"
    kept = [
        root / "tmp" / f"{host}-{os.getpid()}-0123456789ab",
        root / "tmp" / f"{host}-1-0123456789ab",
        root / "tmp" / f"another-{host}-{dead_pid}-0123456789ab",
        root / "tmp" / "something",
        root / "tmp" / f"{host}-{10**30}-",
    ]
    publish(store)
    for path in (dead, *kept):
        path.mkdir()
        (path / "kernel.cpp").write_bytes(b"x")
    assert store.stale_work() == [dead]
    assert store.remove_stale_work() == 1
    assert not dead.exists()
    assert all(path.exists() for path in kept)
    assert store.remove_stale_work() == 0
    assert find(store) is not None


def test_the_work_of_another_host_is_removed_after_a_day(store: Store, root: Path) -> None:
    """Its processes cannot be asked about."""
    publish(store)
    old, young = (
        root / "tmp" / "elsewhere-5-0123456789aa",
        root / "tmp" / "elsewhere-6-0123456789bb",
    )
    for path, age_s in ((old, 25 * 3600), (young, 23 * 3600)):
        path.mkdir()
        made = path.stat().st_mtime - age_s
        os.utime(path, (made, made))
    assert store.stale_work() == [old]


def test_the_work_of_one_dead_process_is_removed_unless_somebody_holds_its_lock(
    store: Store, root: Path, dead_pid: int
) -> None:
    """Containers number their processes alike, and may share a host's name and the store."""
    publish(store)
    host = socket.gethostname()
    held, free, other = (
        root / "tmp" / f"{host}-{pid}-0123456789{end}"
        for pid, end in ((dead_pid, "aa"), (dead_pid, "bb"), (dead_pid + 1, "cc"))
    )
    for path in (held, free, other):
        path.mkdir()
    fd = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        store.remove_work_of(dead_pid)
        assert (held.exists(), free.exists(), other.exists()) == (True, False, True)
    finally:
        os.close(fd)
    store.remove_work_of(dead_pid)
    assert (held.exists(), other.exists()) == (False, True)


def test_there_is_no_stale_work_in_a_store_that_does_not_exist(store: Store) -> None:
    assert store.stale_work() == []
    assert store.remove_stale_work() == 0


# --- locks ---------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._store.store import Store
import json
key = KernelKey.from_json(json.loads(sys.argv[2]))
with Store(Path(sys.argv[1]), lock_timeout_s=60.0).locked(key):
    print("held", flush=True)
    sys.stdin.readline()
print("free", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of the key."""
    argv = [sys.executable, "-c", HOLDER, str(root), json.dumps(make_key().to_json())]
    with forked_python.popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_held_by_another_process_times_out_until_it_is_released(
    store: Store, root: Path, holder: subprocess.Popen[str]
) -> None:
    """One compile a key, however many callers."""
    with pytest.raises(LockTimeoutError, match=r"aten::silu: another process .* 0\.05 s"):
        store.locked(make_key()).__enter__()
    other_key = next(
        key for key in (make_key(rows=rows) for rows in range(9)) if key.digest[:2] != held_digits()
    )
    with store.locked(other_key):
        pass
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "free\n"
    with store.locked(make_key()):
        assert files_below(root / "locks") == sorted([held_digits(), other_key.digest[:2]])


def held_digits() -> str:
    return make_key().digest[:2]


def test_a_lock_dies_with_its_holder(store: Store, holder: subprocess.Popen[str]) -> None:
    """``kill -9`` in the middle of a compile."""
    with pytest.raises(LockTimeoutError):
        store.locked(make_key()).__enter__()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with store.locked(make_key()):
        pass


def test_a_lock_excludes_another_thread(store: Store, root: Path) -> None:
    outcome: list[object] = []

    def other() -> None:
        try:
            with Store(root, lock_timeout_s=0.05).locked(make_key()):
                outcome.append("held")
        except LockTimeoutError as error:
            outcome.append(error)

    with store.locked(make_key()):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert isinstance(outcome[0], LockTimeoutError)
    other()
    assert outcome[1] == "held"


def test_a_lock_is_released_after_an_error(store: Store) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), store.locked(make_key()):
            raise KeyError


# --- file systems that cannot be written ---------------------------------------------------------

Mount = Callable[..., None]


@pytest.fixture
def mounted(root: Path) -> Iterator[Mount]:
    """Mount a tmpfs at the store's root with the given options; again to change them."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root and mount(8) to make a file system of its own")
    root.mkdir(mode=0o700)
    done: list[str] = []

    def mount(options: str) -> None:
        argv = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(root)]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            pytest.skip(f"mount is not permitted here: {result.stderr.strip()}")
        done.append(options)

    try:
        yield mount
    finally:
        if done:
            subprocess.run(["umount", str(root)], check=True)


def test_a_read_only_store_serves_hits_and_refuses_every_write(
    store: Store, root: Path, mounted: Mount
) -> None:
    """No writes at all; hits are still served."""
    mounted("size=1m")
    published = publish(store)
    mounted("remount,ro")
    found = find(store)
    assert found == published
    store.check_library(found)
    assert len(list(store.scan())) == 1
    uses: list[Callable[[], object]] = [
        lambda: publish(store, make_entry(key=make_key(rows=1))),
        lambda: store.discard(found.path),
        lambda: store.quarantine(found, "mismatch", "it differs"),
        store.clear,
        store.locked(make_key(rows=1)).__enter__,
    ]
    for use in uses:
        with pytest.raises(StoreError, match="[Rr]ead-only"):
            use()
    assert find(store) == published


def test_a_full_store_serves_hits_and_keeps_no_part_of_what_did_not_fit(
    store: Store, root: Path, mounted: Mount
) -> None:
    """A full disk spoils no entry and leaves no temporary file."""
    mounted("size=64k")
    published = publish(store)
    files = files_below(root)
    new = make_entry(key=make_key(rows=1))
    with pytest.raises(StoreError, match="No space left"):
        publish(store, new, log="x" * 100_000)
    assert files_below(root) == files
    assert find(store) == published
    assert find(store, new.key) is None
    assert list((root / "tmp").iterdir()) == []
    assert [one for one in store.scan() if isinstance(one, BadEntry)] == []
    # As soon as there is room, it fits.
    publish(store, new)
    assert find(store, new.key) is not None


def test_a_store_without_a_single_free_inode_refuses_with_a_store_error(
    store: Store, root: Path, mounted: Mount
) -> None:
    mounted("size=1m,nr_inodes=40")
    published = publish(store)
    fill = 0
    while True:
        try:
            (root / f"fill-{fill}").touch()
        except OSError:
            break
        fill += 1
    new = make_entry(key=make_key(rows=1))
    with pytest.raises(StoreError, match="No space left"):
        publish(store, new)
    with pytest.raises(StoreError, match="No space left"), store.locked(new.key):
        raise AssertionError("locked")
    assert find(store) == published
    # Room for the workspace and the staged files, not for the directories of the key.
    for index in range(4):
        (root / f"fill-{index}").unlink()
    with pytest.raises(StoreError, match="No space left"):
        publish(store, new)
    assert find(store, new.key) is None
    assert list(store.scan()) == [published]
    assert list((root / "tmp").iterdir()) == []


def test_what_the_store_wrote_is_what_the_format_reads(store: Store) -> None:
    found = publish(store)
    document = (found.path / ENTRY_FILE).read_bytes()
    assert decode(document) == found.entry
    assert encode(found.entry) == document
