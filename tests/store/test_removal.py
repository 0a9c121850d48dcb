"""What is removed of a store: names of its format, and nothing else, whatever lies around them."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aoti_eager import cache, cli
from aoti_eager._base.store_format import MARKER_FILE
from aoti_eager._base.store_marker import MARKER, is_recognised
from aoti_eager._base.store_removal import remove
from aoti_eager._base.trusted_files import Directory, open_directory
from aoti_eager._store import store_root
from aoti_eager._store.store import Store
from aoti_eager.errors import StoreError

from ..support import random_trees
from ..support.entries import (
    FEATURES,
    files_below,
    make_entry,
    make_key,
    publish,
)

DEAD = 4194304  # More than any process's number.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    store = Store(root, lock_timeout_s=1.0)
    publish(store)
    return store


def stale_name(host: str | None = None) -> str:
    return f"{host or os.uname().nodename}-{DEAD}-0123456789ab"


VERBS = (
    ["verify"],
    ["prune", "--declined", "--stale"],
    ["clear"],
    ["evict", "--op", "*"],
    ["trim", "--max-size", "0"],
)


@pytest.mark.full
@pytest.mark.timeout(3600)  # 20,000 trees, each removed by three verbs.
def test_nothing_but_names_of_the_format_goes_whatever_lies_around_them(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """``python -m tests.support.random_trees`` takes 20,000 trees."""
    count = 20_000 if request.config.getoption("--full") else 500
    wrong, removed, _ = random_trees.check(count, 0, tmp_path)
    assert wrong == []
    assert removed > count / 4, "the verbs had nothing to remove"


def test_verify_leaves_the_directories_behind_a_linked_tmp_alone(
    root: Path, store: Store, tmp_path: Path
) -> None:
    """Followed, the link would cost a home directory all that is older than a day."""
    home = tmp_path / "home"
    for name in ("letters", stale_name(), stale_name("elsewhere")):
        (home / name).mkdir(parents=True)
        (home / name / "file").write_bytes(b"precious")
        os.utime(home / name, (0, 0))
    before = files_below(home)
    shutil.rmtree(root / "tmp", ignore_errors=True)
    (root / "tmp").symlink_to(home)
    with pytest.raises(StoreError, match="tmp: is a link, which is not followed"):
        cache.verify(cache_dir=root)
    assert files_below(home) == before


@pytest.mark.parametrize("name", ["v1", "tmp", "verdicts", "locks"])
def test_a_linked_directory_of_a_store_is_refused(
    root: Path, store: Store, tmp_path: Path, name: str
) -> None:
    shutil.rmtree(root / name, ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    (root / name).symlink_to(tmp_path / "elsewhere")
    if name in ("v1", "tmp", "locks"):
        with pytest.raises(StoreError, match="is a link"), store.locked(make_key()):
            publish(store)
    cache.clear(cache_dir=root) if name != "v1" else None
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_a_verb_refuses_somebodys_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    """Else ``verify`` would remove its ``tmp``, and ``clear`` its ``v1/model.py``."""
    project = tmp_path / "project"
    for name in ("tmp/old/notes.txt", "v1/model.py", f"tmp/{stale_name()}/x", "README.md"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(b"precious")
    os.utime(project / "tmp" / "old", (0, 0))
    before = files_below(project)
    assert cli.main([*verb, "--cache-dir", str(project)]) == 2
    said = capsys.readouterr()
    assert "nothing is removed, because no CACHEDIR.TAG says" in said.err
    assert said.out == ""
    assert files_below(project) == before


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_the_marker_of_another_program_is_none(tmp_path: Path, verb: list[str]) -> None:
    other = tmp_path / "cache-of-pip"
    (other / "v1" / ("0" * 16) / "aten.silu").mkdir(parents=True)
    tag = MARKER.splitlines(keepends=True)[0] + b"# This file is a cache tag of pip.\n"
    (other / MARKER_FILE).write_bytes(tag)
    assert cli.main([*verb, "--cache-dir", str(other)]) == 2
    assert (other / "v1" / ("0" * 16) / "aten.silu").is_dir()


def test_a_store_is_not_made_in_somebodys_project(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    store = Store(project, lock_timeout_s=1.0)
    with pytest.raises(StoreError, match="is neither empty nor a cache of aoti_eager; set AOTI"):
        publish(store)
    assert os.listdir(project) == ["src"]


def test_a_cache_of_an_older_version_is_marked_when_it_is_next_written_to(
    root: Path, store: Store
) -> None:
    (root / MARKER_FILE).unlink()
    with pytest.raises(StoreError, match="is marked when a script next uses it"):
        cache.clear(cache_dir=root)
    publish(store, make_entry(key=make_key(rows=2)))
    assert (root / MARKER_FILE).read_bytes() == MARKER
    assert cache.clear(cache_dir=root) == 2


def test_an_entry_beside_a_file_of_somebody_elses_is_made_anew(root: Path, store: Store) -> None:
    """What rsync leaves, or a file browser."""
    found = publish(store, make_entry(key=make_key(rows=2)))
    (found.path / ".DS_Store").write_bytes(b"precious")
    (found.path / "entry.json").write_bytes(b"{")
    again = publish(store, make_entry(key=make_key(rows=2)), content=b"new")
    assert store.find(make_key(rows=2), again.entry.environment, FEATURES) == again
    assert store.check_library(again).content == b"new"
    assert (found.path / ".DS_Store").read_bytes() == b"precious"
    store.discard(found.path)
    assert cache.verify(cache_dir=root).damaged == ()


def test_a_directory_that_only_has_a_toolchain_of_its_own_loses_nothing(tmp_path: Path) -> None:
    """Somebody's project, group-writable: it may become a cache, and keeps its files."""
    project = tmp_path / "project"
    header = project / "toolchain" / "headers" / "myownveryimportantheader.h"
    header.parent.mkdir(parents=True)
    header.write_bytes(b"precious")
    header.parent.chmod(0o775)
    Store(project, lock_timeout_s=1.0).create()
    assert header.read_bytes() == b"precious"


def test_a_directory_with_a_file_of_such_a_name_alone_is_no_cache(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "totals.json").write_bytes(b"precious")
    with pytest.raises(StoreError, match="is neither empty nor a cache"):
        Store(project, lock_timeout_s=1.0).create()
    assert files_below(project) == ["totals.json"]


def test_a_marker_whose_writer_was_cut_off_is_written_again(root: Path, store: Store) -> None:
    (root / MARKER_FILE).write_bytes(b"")
    store.create()
    assert cache.clear(cache_dir=root) == 1


def test_a_file_whose_writer_was_cut_off_before_it_was_the_marker_hinders_nobody(
    tmp_path: Path,
) -> None:
    root = tmp_path / "new"
    root.mkdir(mode=0o700)
    (root / f".{MARKER_FILE}.01234567").write_bytes(MARKER[:10])
    store = Store(root, lock_timeout_s=1.0)
    store.create()
    publish(store)
    assert cache.clear(cache_dir=root) == 1


@pytest.mark.parametrize("attempt", range(20))
def test_many_threads_make_one_new_store(tmp_path: Path, attempt: int) -> None:
    """None takes the marker that another one is writing for somebody else's file."""
    gate = threading.Barrier(8)

    def create(_: int) -> None:
        gate.wait()
        Store(tmp_path / "new", lock_timeout_s=1.0).create()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(8)))
    assert files_below(tmp_path / "new") == [MARKER_FILE]


@pytest.mark.parametrize("verb", ["create", "require_marker"])
def test_a_marker_that_comes_between_two_looks_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def marked_meanwhile(directory: Directory) -> bool:
        directory.write(MARKER_FILE, MARKER)
        return is_recognised(directory)

    (tmp_path / "new").mkdir(mode=0o700)
    monkeypatch.setattr(store_root, "is_recognised", marked_meanwhile)
    getattr(Store(tmp_path / "new", lock_timeout_s=1.0), verb)()


def test_an_error_of_the_moment_costs_no_entry(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk, or a network, that does not answer says nothing about a file."""
    read = os.read
    for number in (errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE):

        def fail(fd: int, count: int, number: int = number) -> bytes:
            if os.readlink(f"/proc/self/fd/{fd}").endswith((".json", ".so")):
                raise OSError(number, os.strerror(number))
            return read(fd, count)

        with monkeypatch.context() as patched:
            patched.setattr(os, "read", fail)
            with pytest.raises(StoreError, match=os.strerror(number)):
                cache.verify(cache_dir=root)
    assert cache.verify(cache_dir=root).damaged == ()
    assert len(list(store.scan())) == 1


def test_an_older_cache_that_was_open_to_a_group_is_emptied_where_compilers_work(
    root: Path, store: Store
) -> None:
    """Older versions obeyed the umask there; a group mate's object must not be linked."""
    headers = root / "toolchain" / "headers"
    (headers / "stub").mkdir(parents=True)
    digest = "0123456789abcdef01234567"
    ours = [headers / f"thin-{digest}.{kind}" for kind in ("h", "o", "h.gch")]
    ours.append(headers / "stub" / "libtorch_cpu.so")
    kept = [headers / f"thin-{digest}.lock", headers / "notes.txt"]
    for path in (*ours, *kept):
        path.write_bytes(b"x")
        path.chmod(0o664)
    for path in (headers / "stub", headers, root / "toolchain"):
        path.chmod(0o775)
    (root / "locks").mkdir(mode=0o700, exist_ok=True)
    lock = root / "locks" / make_key().digest[:2]
    lock.touch()
    lock.chmod(0o664)
    (root / MARKER_FILE).unlink()
    store.create()
    assert [path for path in ours if path.exists()] == []
    assert all(path.exists() for path in kept)
    for path in (headers, root / "toolchain"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert len(list(store.scan())) == 1
    with store.locked(make_key()):
        pass


def test_a_file_that_somebody_put_into_an_entry_stays_and_the_entry_goes(
    root: Path, store: Store
) -> None:
    found = publish(store, make_entry(key=make_key(rows=2)))
    (found.path / "notes.txt").write_bytes(b"precious")
    assert cache.clear(cache_dir=root) == 2
    assert [path.name for path in (root / "v1").rglob("*") if path.is_file()] == ["notes.txt"]
    assert list(store.scan()) == [] or cache.verify(cache_dir=root).intact == 0


def test_an_entry_loses_its_record_first(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, it must not look whole."""
    (found,) = store.scan()
    removed: list[str] = []
    unlink = os.unlink

    def watched(name: str, **options: int) -> None:
        removed.append(name)
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", watched)
    store.discard(found.path)
    assert removed == ["entry.json", "library.so"]


def test_what_is_no_entry_is_not_discarded(root: Path, store: Store, tmp_path: Path) -> None:
    for path in (root / "tmp", root / "v1", root, tmp_path, root / "v1" / "..", Path("/")):
        with pytest.raises(StoreError):
            store.discard(path)
    with open_directory(root) as opened:
        for names in (("..",), ("v1", "..", ".."), ("CACHEDIR.TAG",), ("locks", "ab"), ()):
            with pytest.raises(ValueError, match="no name of the cache's format"):
                remove(opened, *names)
    assert len(list(store.scan())) == 1


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="mounts an overlay")
def test_an_entry_of_an_image_that_is_damaged_is_removed_and_made_anew(
    tmp_path: Path, root: Path, store: Store
) -> None:
    """On an overlay a directory of the lower layer cannot be renamed (EXDEV)."""
    import subprocess

    publish(store, make_entry(key=make_key(rows=2)))
    ours, damaged = sorted(store.scan(), key=lambda one: one.path)
    (damaged.path / "entry.json").write_bytes(b"{")
    merged, upper, work, base = (tmp_path / n for n in ("merged", "upper", "work", "base"))
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(base)], check=True)
    try:
        upper, work = base / "upper", base / "work"
        for one in (merged, upper, work):
            one.mkdir(mode=0o700)
        options = f"lowerdir={root},upperdir={upper},workdir={work}"
        done = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"no overlay here: {done.stderr.decode().strip()}")
        try:
            image = Store(merged, lock_timeout_s=1.0)
            report = cache.verify(cache_dir=merged)
            assert (report.intact, len(report.damaged)) == (0, 1) or report.foreign == 1
            assert len(list(image.scan())) == 1
            publish(image, make_entry(key=make_key(rows=3)))
            assert cache.clear(cache_dir=merged) == 2
            assert list(image.scan()) == []
        finally:
            subprocess.run(["umount", str(merged)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(base)], check=True)
    assert ours.path.exists()
