"""``verify`` beyond entries: the toolchain, verdicts, and what killed processes left."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from aoti_eager import cache
from aoti_eager._base.recorded_files import write_record
from aoti_eager._base.trusted_files import open_directory
from aoti_eager._store.probes import Probes
from aoti_eager._store.prune import orphan_verdicts
from aoti_eager._store.store import Store
from aoti_eager._store.verdict import (
    Verdict,
    Verdicts,
    clear_verdicts,
    encode_verdict,
)
from aoti_eager._store.verify import look
from aoti_eager.errors import StoreError

from ..support.entries import files_below, make_entry, publish
from ..support.toolchains import DAMAGES, Damage

HEADERS = "toolchain/headers"
THIN = f"{HEADERS}/thin-{'a' * 24}"
OWN = f"{HEADERS}/c{'x' * 50}"
STUB = f"{HEADERS}/stub/libtorch_cpu"
NATIVE = f"toolchain/native/{'b' * 24}/{'c' * 16}"
VERDICT = f"verdicts/some-cpu-0/{'d' * 64}.json"
RECORDED = {
    f"{THIN}.json": [f"{THIN}.h", f"{THIN}.h.gch", f"{THIN}.o"],
    f"{OWN}.h.gch.json": [f"{OWN}.h", f"{OWN}.h.gch"],
    f"{STUB}.json": [f"{STUB}.so"],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with one of each thing that ``verify`` looks at."""
    root = tmp_path / "store"
    Store(root, lock_timeout_s=1.0).create()
    for record, names in RECORDED.items():
        for name in names:
            write(root / name, f"the bytes of {name}".encode())
        with open_directory((root / record).parent) as directory:
            write_record(directory, Path(record).name, [Path(name).name for name in names])
    content = b"the C++ hit path"
    write(root / NATIVE / "native.so", content)
    sha256 = hashlib.sha256(content).hexdigest()
    write(root / NATIVE / "native.json", json.dumps({"sha256": sha256}).encode())
    Probes(root / "toolchain" / "probes", ["a machine"]).add(["a question"])
    write(root / VERDICT, encode_verdict(Verdict("e" * 64, checked=True)).encode())
    for lock in (f"{THIN}.lock", f"{HEADERS}/locks/headers.lock", f"{NATIVE}.lock"):
        write(root / lock, b"")
    return root


def write(path: Path, content: bytes) -> None:
    """Write a file as the package does: nobody else reads it, or the directories it is in."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(mode=0o700)
    path.write_bytes(content)
    path.chmod(0o600)


def probes(root: Path) -> str:
    (path,) = (root / "toolchain" / "probes").iterdir()
    return str(path.relative_to(root))


def damaged(root: Path, *, repair: bool = False) -> dict[str, str]:
    """Return what ``verify`` says is broken: problems by path."""
    report = cache.verify(repair=repair, cache_dir=root)
    return {str(path.relative_to(root)): problem for path, problem in report.damaged}


def state(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return what a look at the store must not change."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def test_a_whole_store_has_no_findings_and_is_left_alone(root: Path) -> None:
    before = state(root)
    for repair in (False, True):
        report = cache.verify(repair=repair, cache_dir=root)
        assert (report.damaged, report.residue) == ((), 0)
    assert state(root) == before


@pytest.mark.parametrize(
    "place", ["", "toolchain/headers/", "toolchain/probes/", "verdicts/some-cpu-0/"]
)
def test_a_temporary_file_with_a_build_s_name_is_a_temporary_file(root: Path, place: str) -> None:
    path = root / f"{place}.build-x.01234567"
    write(path, b"half a file")
    report = cache.verify(repair=False, cache_dir=root)
    assert (report.damaged, report.residue) == ((), 0)
    os.utime(path, (1.0, 1.0))
    assert cache.verify(repair=False, cache_dir=root).residue == 1


PARTS = [name for names in RECORDED.values() for name in names]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*PARTS, *RECORDED, f"{NATIVE}/native.so", VERDICT, "probes"])
def test_a_damaged_file_is_reported_and_removed_with_what_is_of_no_use_without_it(
    name: str, damage: Damage, root: Path
) -> None:
    name = probes(root) if name == "probes" else name
    damage(root / name)
    before = state(root)
    found = damaged(root)
    assert state(root) == before, "it changed something"
    if damage.__name__ == "delete" and (name.startswith("verdicts") or "probes" in name):
        assert found == {}  # There may be none.
        return
    assert found, "it was not found"
    group = next((g for g in ([r, *ns] for r, ns in RECORDED.items()) if name in g), [name])
    group = [NATIVE] if name.startswith(NATIVE) else group
    assert set(found) <= set(group)
    assert all(found.values())
    others = set(files_below(root)) - set(group)
    assert damaged(root, repair=True) == found
    left = set(files_below(root))
    assert not left & set(group)
    assert {one for one in others if not one.startswith(NATIVE + "/")} <= left
    assert damaged(root) == {}


def test_parts_without_a_record_are_damaged(root: Path) -> None:
    for record in RECORDED:
        (root / record).unlink()
    found = damaged(root)
    assert set(found) == set(PARTS)
    assert set(found.values()) == {"has no record of its size and digest"}


@pytest.mark.parametrize(
    "name", ["toolchain", HEADERS, f"{HEADERS}/stub", "toolchain/probes", "verdicts"]
)
def test_a_directory_that_others_can_write_is_damaged(name: str, root: Path) -> None:
    (root / name).chmod(0o770)
    (problem,) = damaged(root, repair=True).items()
    assert problem[0] == name
    assert "others can write" in problem[1]
    assert not [one for one in files_below(root) if one.startswith(name) and "lock" not in one]


def held(path: Path) -> int:
    """Lock a file as who is making something; return the descriptor that holds it."""
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


LEFTOVERS = {
    f"{HEADERS}/.build-{'a' * 24}-0a1b2c3d": f"{THIN}.lock",
    f"toolchain/native/{'b' * 24}/.build-{'c' * 16}-0a1b2c3d": f"{NATIVE}.lock",
    f"{HEADERS}/.build-{'f' * 24}-0a1b2c3d": None,
}


def test_what_a_killed_process_was_making_is_a_leftover_once_its_lock_is_free(root: Path) -> None:
    for name in LEFTOVERS:
        write(root / name / "cc0123.s", b"half")
        (root / name / "link").symlink_to(root / f"{THIN}.h")
    locks = [held(root / lock) for lock in LEFTOVERS.values() if lock is not None]
    assert cache.verify(repair=False, cache_dir=root).residue == 1
    cache.verify(cache_dir=root)
    assert [(root / name).exists() for name in LEFTOVERS] == [True, True, False]
    for lock in locks:
        os.close(lock)
    assert cache.verify(cache_dir=root).residue == 2
    assert not any((root / name).exists() for name in LEFTOVERS)
    assert damaged(root) == {}


@pytest.mark.parametrize("lock", [f"{THIN}.lock", f"{HEADERS}/locks/headers.lock"])
def test_parts_that_are_being_made_have_no_record_yet(lock: str, root: Path) -> None:
    record = f"{THIN}.json" if "thin" in lock else f"{OWN}.h.gch.json"
    (root / record).unlink()
    fd = held(root / lock)
    assert damaged(root, repair=True) == {}
    os.close(fd)
    assert damaged(root) != {}


def test_temporary_files_are_leftovers_when_nobody_can_be_writing_them(root: Path) -> None:
    for name in (
        f"{HEADERS}/thin-{'a' * 24}.123.tmp",
        f"{HEADERS}/.thin-aaaaaaaaaaa.0a1b2c3d",
        f"{HEADERS}/stub/.libtorch_cpu.so.0a1b2c3d",
        "toolchain/probes/.0123456789abcdef.0a1b2c3d",
        "verdicts/some-cpu-0/.0123456789abcdef.0a1b2c3d",
        ".totals.json.0a1b2c3d",
    ):
        write(root / name, b"half")
    assert cache.verify(cache_dir=root).residue == 0  # A live process may be writing them.
    hour_ago = time.time() - 3700
    for path in (*root.rglob(".*.0a1b2c3d"), *root.rglob("*.tmp")):
        os.utime(path, (hour_ago, hour_ago))
    assert cache.verify(repair=False, cache_dir=root).residue == 6
    assert cache.verify(cache_dir=root).residue == 6
    assert list(root.rglob(".*.0a1b2c3d")) == []
    assert damaged(root) == {}


def test_what_the_format_does_not_know_is_neither_reported_nor_removed(root: Path) -> None:
    strange = [
        "toolchain/notes.txt",
        f"{HEADERS}/thin-short.o",
        f"{HEADERS}/mine.h",
        f"{HEADERS}/stub/libother.so",
        "toolchain/probes/notes.json",
        f"toolchain/native/{'b' * 24}/notes",
        f"{NATIVE}/notes",
        "verdicts/some-cpu-0/notes.json",
        "verdicts/some cpu/x.json",
    ]
    for name in strange:
        write(root / name, b"somebody's")
    before = state(root)
    report = cache.verify(cache_dir=root)
    assert (report.damaged, report.residue) == ((), 0)
    assert state(root) == before


@pytest.mark.parametrize("name", ["toolchain", HEADERS, "toolchain/probes", "verdicts"])
def test_a_directory_that_is_a_link_to_another_place_is_passed_over(
    name: str, root: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (root / name).rename(elsewhere)
    (root / name).symlink_to(elsewhere)
    for path in elsewhere.rglob("*.*"):
        if path.is_file():
            path.write_bytes(b"broken")
    before = state(elsewhere)
    cache.verify(cache_dir=root)
    assert state(elsewhere) == before
    assert (root / name).is_symlink()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 0}', b"{" * 9000, b" " * (2 << 20)]
)
def test_what_is_no_verdict_is_damaged(content: bytes, root: Path) -> None:
    write(root / VERDICT, content)
    assert set(damaged(root, repair=True)) == {VERDICT}
    assert not (root / VERDICT).exists()


def test_a_newer_version_s_verdict_is_left_alone(root: Path) -> None:
    write(root / VERDICT, b'{"format": 2, "more": []}')
    assert damaged(root, repair=True) == {}
    assert (root / VERDICT).exists()


def test_a_store_without_a_marker_is_looked_at_and_not_touched(root: Path) -> None:
    (root / f"{THIN}.o").write_bytes(b"other")
    (root / "CACHEDIR.TAG").unlink()
    assert damaged(root)
    with pytest.raises(StoreError, match="CACHEDIR.TAG"):
        cache.verify(cache_dir=root)
    assert (root / f"{THIN}.o").exists()


def test_a_store_that_is_not_there_has_no_findings(tmp_path: Path) -> None:
    findings = look(tmp_path / "nowhere")
    assert (findings.damaged, findings.leftovers) == ([], [])


# --- verdicts -------------------------------------------------------------------------------------


def test_verdicts_without_an_entry_are_orphans_and_no_damage(root: Path) -> None:
    store = Store(root, lock_timeout_s=1.0)
    entry = publish(store, make_entry()).entry
    Verdicts(root).put(entry.digest, Verdict("e" * 64))
    assert damaged(root) == {}
    assert orphan_verdicts(store) == [tuple(VERDICT.split("/"))]


def test_verdicts_of_every_processor_are_cleared_and_files_of_others_stay(root: Path) -> None:
    Verdicts(root).put("1" * 64, Verdict("e" * 64))
    write(root / "verdicts" / "some-cpu-0" / "notes.txt", b"somebody's")
    with open_directory(root) as opened:
        clear_verdicts(opened)
        clear_verdicts(opened)
    assert [one for one in files_below(root) if one.startswith("verdicts")] == [
        "verdicts/some-cpu-0/notes.txt"
    ]
