"""Bundles: what is written, what is taken in, and what nobody takes in. Nothing is compiled."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aoti_eager import cache
from aoti_eager._base.cpu import cpu_features
from aoti_eager._bundles import archive, manifest
from aoti_eager._bundles.archive import BundleFile
from aoti_eager._store.entry import Library, Status, encode
from aoti_eager._store.environment import current_environment
from aoti_eager._store.store import StoredEntry
from aoti_eager._store.verdict import Verdict, Verdicts
from aoti_eager.errors import BundleError, OutputFileError, StoreError

from ..support.entries import OTHER_ENVIRONMENT, files_below, make_entry, make_key
from .conftest import OPS, open_store, put


def take(path: Path, there: Path) -> cache.LoadReport:
    return cache.load(path, trust="any", cache_dir=there)


def libraries(root: Path) -> dict[str, bytes]:
    """Return the libraries that a process would load, by the path in the store."""
    store = open_store(root)
    found = {}
    for one in store.scan():
        assert isinstance(one, StoredEntry), one
        content = store.check_library(one).content
        assert content is not None
        found[str(one.path.relative_to(root))] = content
    return found


# --- what is exported ----------------------------------------------------------------------------


def test_a_round_trip_gives_the_same_entries_unchecked(
    made: Path, bundle: Path, there: Path
) -> None:
    report = take(bundle, there)

    assert (report.entries, report.fitting, report.skipped) == (3, 3, {})
    assert libraries(there) == libraries(made)
    for one in open_store(there).scan():
        assert isinstance(one, StoredEntry)
        assert not one.entry.checked
    assert not (there / "verdicts").exists()
    modes = {stat.S_IMODE(f.stat().st_mode) for f in (there / "v1").rglob("*") if f.is_file()}
    assert modes == {0o600}


def test_the_same_entries_give_the_same_bytes(made: Path, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "copied"
    for op in reversed(OPS):
        put(open_store(other), op)
    again = tmp_path / "again"

    cache.export(again, cache_dir=other, sign=False)

    assert again.read_bytes() == bundle.read_bytes()
    assert str(tmp_path).encode() not in bundle.read_bytes()


def test_what_is_left_out_is_counted(made: Path, tmp_path: Path) -> None:
    store = open_store(made)
    put(store, rows=1, environment=OTHER_ENVIRONMENT)
    wrong = put(store, rows=2)
    store.quarantine(wrong, "mismatch", "differs")
    (put(store, rows=3).path / "entry.json").write_text("{")
    put(store, "aoti_eager_region::t_" + "0" * 16)
    path = tmp_path / "some"

    report = cache.export(path, ops=["aten::silu", "aoti_eager_region::*"], cache_dir=made)

    assert (report.entries, report.regions, report.toolchain) == (2, 1, 0)
    assert report.skipped == {"damaged": 1, "other_environment": 1, "other_op": 2, "quarantined": 1}
    assert report.size_bytes == path.stat().st_size
    report = cache.export(path, environments="all", regions=False, cache_dir=made)
    assert (report.entries, report.regions) == (4, 0)
    assert report.skipped == {"damaged": 1, "quarantined": 1, "region": 1}


def test_failures_that_hold_go_along(made: Path, tmp_path: Path, there: Path) -> None:
    put(
        open_store(made),
        "aten::mul.Tensor",
        status=Status.DECLINED,
        reason="does_not_trace",
        message="File /home/me/secret.py, line 1",
        content=None,
    )
    report = cache.export(tmp_path / "b", cache_dir=made)
    assert (report.entries, report.failures) == (4, 1)

    assert take(tmp_path / "b", there).entries == 4

    (found,) = (one for one in open_store(there).scan() if one.entry.reason)  # type: ignore[union-attr]
    assert isinstance(found, StoredEntry)
    assert (found.entry.status, found.entry.library) == (Status.DECLINED, None)
    assert b"/home/me" not in (tmp_path / "b").read_bytes()


def test_the_cpp_path_and_headers_go_along_if_asked(
    made: Path, tmp_path: Path, there: Path
) -> None:
    tools = {
        f"toolchain/native/{'a' * 24}/{'b' * 16}/native.so": b"machine code",
        f"toolchain/native/{'a' * 24}/{'b' * 16}/native.json": b"{}",
        f"toolchain/headers/thin-{'c' * 24}.h.gch": b"precompiled",
        f"toolchain/headers/thin-{'c' * 24}.json": b"{}",
        f"toolchain/headers/thin-{'c' * 24}.lock": b"",
        f"toolchain/probes/{'d' * 24}.json": b"{}",
    }
    store = open_store(made)
    with store.writable() as root:
        for name, content in tools.items():
            *above, file = name.split("/")
            with root.descend(*above, create=True) as directory:
                directory.write(file, content)
    path = tmp_path / "b"

    assert cache.export(path, cache_dir=made, native=False).toolchain == 0
    assert cache.export(path, cache_dir=made).toolchain == 2
    assert cache.export(path, cache_dir=made, headers=True).toolchain == 4
    report = take(path, there)

    assert report.toolchain == 4
    got = [name for name in files_below(there) if name.startswith("toolchain")]
    assert got == sorted(name for name in tools if "lock" not in name and "probes" not in name)
    assert all((there / name).read_bytes() == tools[name] for name in got)
    assert take(path, there).skipped == {"there_already": 3 + 4}


def test_a_library_that_is_damaged_gives_no_bundle(made: Path, tmp_path: Path) -> None:
    next(made.rglob("library.so")).write_bytes(b"something else")
    path = tmp_path / "b"
    path.write_text("as it was")

    with pytest.raises(BundleError, match="verify` removes what is damaged: then export again"):
        cache.export(path, cache_dir=made)

    assert path.read_text() == "as it was"
    assert sorted(name for name in os.listdir(tmp_path) if name != "cache") == ["b", "made"]


def test_a_bundle_that_cannot_be_written_is_an_error_at_the_start(
    made: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputFileError, match="no/such/place"):
        cache.export(tmp_path / "no/such/place/b", cache_dir=made)
    with pytest.raises(BundleError, match="wants 'this' or 'all'"):
        cache.export(tmp_path / "b", environments="mine", cache_dir=made)


# --- what is taken in ----------------------------------------------------------------------------


def test_what_is_there_stays(bundle: Path, there: Path) -> None:
    store = open_store(there)
    found = put(store, content=b"found wrong here")
    store.quarantine(found, "mismatch", "differs")

    report = take(bundle, there)

    assert (report.entries, report.skipped) == (2, {"there_already": 1})
    kept = store.read(found.path).entry
    assert (kept.status, kept.reason) == (Status.QUARANTINED, "mismatch")


def test_what_does_not_fit_here_is_taken_and_counted_apart(
    made: Path, tmp_path: Path, there: Path
) -> None:
    store = open_store(made)
    put(store, rows=1, environment=OTHER_ENVIRONMENT)
    put(store, rows=2, requires=frozenset({"no_cpu_has_it"}))
    cache.export(tmp_path / "b", environments="all", cache_dir=made)

    report = take(tmp_path / "b", there)

    assert "no_cpu_has_it" not in cpu_features()
    assert (report.entries, report.fitting) == (5, 3)


def test_verdicts_of_this_machine_on_another_library_do_not_count(
    bundle: Path, there: Path
) -> None:
    store = open_store(there)
    digest = make_entry(key=make_key(OPS[0])).digest
    with store.writable():
        Verdicts(there).put(digest, Verdict("0" * 64, checked=True))
    take(bundle, there)
    (entry,) = (one for one in cache.list(cache_dir=there) if one.op == OPS[0])
    (details,) = cache.inspect(entry.digest, cache_dir=there)
    assert details.verdict is None


def rewritten(bundle: Path, change: Callable[[list[list[Any]], list[bytes]], None]) -> None:
    """Change a bundle's manifest and members; the digests in the manifest are made anew."""
    with BundleFile(bundle) as opened:
        entries = [[one.record, one.library] for one in opened.manifest.entries]
        contents = [content for _, content in opened.contents() if content is not None]
    change(entries, contents)
    members = iter(contents)

    def member(content: bytes) -> manifest.Member:
        return manifest.Member(len(content), archive.hashlib.sha256(content).hexdigest())

    made_of = tuple(
        manifest.EntryMembers(
            member(next(members)), None if library is None else member(next(members))
        )
        for _, library in entries
    )
    document = manifest.encode(manifest.Manifest({}, made_of, ()))
    with open(bundle, "wb") as file:
        archive.write(file, document, None, contents)


def test_an_entry_whose_library_is_anothers_is_damaged(bundle: Path, there: Path) -> None:
    def swap(entries: list[list[Any]], contents: list[bytes]) -> None:
        contents[1], contents[3] = contents[3], contents[1]

    rewritten(bundle, swap)
    report = take(bundle, there)

    assert (report.entries, report.skipped) == (1, {"damaged": 2})
    assert all("not the one that its record names" in problem for problem in report.problems)


def test_an_entry_that_claims_to_be_checked_is_not(bundle: Path, there: Path) -> None:
    def claim(entries: list[list[Any]], contents: list[bytes]) -> None:
        content = contents[5]
        library = Library(len(content), archive.hashlib.sha256(content).hexdigest())
        entry = make_entry(key=make_key(), environment=current_environment(), library=library)
        contents[4] = encode(replace(entry, checked=True))

    rewritten(bundle, claim)
    assert take(bundle, there).entries == 3
    assert not any(one.entry.checked for one in open_store(there).scan())  # type: ignore[union-attr]


def test_newer_quarantined_and_broken_records_are_left_out(bundle: Path, there: Path) -> None:
    def change(entries: list[list[Any]], contents: list[bytes]) -> None:
        contents[0] = contents[0].replace(b'"format": 1', b'"format": 9')
        contents[2] = b"[" * 100_000
        wrong = make_entry(
            key=make_key("aten::mul"),
            status=Status.QUARANTINED,
            reason="mismatch",
            library=Library(len(contents[5]), archive.hashlib.sha256(contents[5]).hexdigest()),
        )
        contents[4] = encode(wrong)

    rewritten(bundle, change)
    report = take(bundle, there)

    assert report.entries == 0
    assert report.skipped == {"damaged": 1, "newer_format": 1, "quarantined": 1}
    assert libraries(there) == {}


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as made:
        for info, content in members:
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return file.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def a_manifest(**fields: Any) -> bytes:
    document = {"format": 1, "made_with": {}, "entries": [], "toolchain": [], **fields}
    return json.dumps(document).encode()


def one_tool(path: Any) -> bytes:
    return a_manifest(toolchain=[[path, [1, "0" * 64]]])


def huge_header() -> bytes:
    made = info("././@PaxHeader", tarfile.XHDTYPE)
    made.size = 1 << 40
    return made.tobuf(tarfile.GNU_FORMAT)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is no bundle"),
    "text": (b"hello" * 1000, "is no bundle"),
    "no manifest": (tar((info("x"), b"")), "does not begin with manifest.json"),
    "a link for a manifest": (
        tar((info("manifest.json", tarfile.SYMTYPE, "/etc/passwd"), b"")),
        "no plain file",
    ),
    "a device": (tar((info("manifest.json", tarfile.CHRTYPE), b"")), "no plain file"),
    "a directory": (tar((info("manifest.json", tarfile.DIRTYPE), b"")), "no plain file"),
    "a hard link behind": (
        tar((info("manifest.json"), a_manifest()), (info("0", tarfile.LNKTYPE, "/etc/x"), b"")),
        "no plain file",
    ),
    "a huge header": (huge_header(), "has a header of"),
    "an endless manifest": (
        tar((info("manifest.json"), b" " * ((32 << 20) + 1))),
        "at most 33554432 are read",
    ),
    "no JSON": (tar((info("manifest.json"), b"{")), "manifest cannot be read"),
    "a list": (tar((info("manifest.json"), b"[]")), "manifest cannot be read"),
    "nesting": (tar((info("manifest.json"), b"[" * 200_000)), "manifest cannot be read"),
    "a newer format": (tar((info("manifest.json"), a_manifest(format=2))), "has format 2"),
    "a negative size": (
        tar((info("manifest.json"), a_manifest(entries=[[[-1, "0" * 64], None]]))),
        "a file of -1 bytes",
    ),
    "a size beyond": (
        tar((info("manifest.json"), a_manifest(entries=[[[1 << 40, "0" * 64], None]]))),
        "a file of 1099511627776 bytes",
    ),
    "no digest": (
        tar((info("manifest.json"), a_manifest(entries=[[[1, "../../etc"], None]]))),
        "is no digest",
    ),
    "too many": (
        tar((info("manifest.json"), a_manifest(entries=[0] * 50_001))),
        "has 50001 entries in a list",
    ),
    "..": (tar((info("manifest.json"), one_tool("toolchain/native/../../x"))), "no file of a"),
    "absolute": (tar((info("manifest.json"), one_tool("/etc/passwd"))), "no file of a toolchain"),
    "an entry's path": (
        tar((info("manifest.json"), one_tool(f"v1/{'0' * 16}/aten.silu/static"))),
        "no file of a toolchain",
    ),
    "a probe": (
        tar((info("manifest.json"), one_tool(f"toolchain/probes/{'0' * 24}.json"))),
        "no file of a toolchain",
    ),
    "no path": (tar((info("manifest.json"), one_tool(7))), "manifest cannot be read"),
    "a file twice": (
        tar(
            (
                info("manifest.json"),
                a_manifest(toolchain=[[f"toolchain/headers/thin-{'0' * 24}.h", [1, "0" * 64]]] * 2),
            )
        ),
        "names a file twice",
    ),
    "a file too few": (
        tar((info("manifest.json"), a_manifest(entries=[[[1, "0" * 64], None]]))),
        "ends after 0 of 1 files",
    ),
    "a file too many": (
        tar((info("manifest.json"), a_manifest()), (info("../../x"), b"x")),
        "that its manifest does not name",
    ),
    "another name": (
        tar(
            (info("manifest.json"), a_manifest(entries=[[[1, "0" * 64], None]])),
            (info("../0"), b"x"),
        ),
        "where file 0 should be",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_is_taken(
    name: str, tmp_path: Path, there: Path
) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "hostile"
    path.write_bytes(content)

    with pytest.raises(BundleError, match=message) as caught:
        take(path, there)

    assert str(caught.value).startswith(str(path))
    assert [name for name in files_below(there) if not name.endswith("CACHEDIR.TAG")] == []


@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "missing"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path, there: Path) -> None:
    path = {"device": Path("/dev/zero")}.get(kind, tmp_path / "it")
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)

    with pytest.raises(BundleError, match="is no regular file|No such file|cannot be read"):
        take(path, there)


def test_a_bundle_that_was_cut_off_gives_what_is_whole(bundle: Path, there: Path) -> None:
    content = bundle.read_bytes()
    whole = libraries_of(bundle)
    for length in range(0, len(content), 997):
        bundle.write_bytes(content[:length])
        try:
            take(bundle, there)
        except BundleError:
            continue
        # Only the zeros behind the last member are missing.
        assert length > len(content.rstrip(b"\0"))
    assert set(libraries(there).values()) <= whole


def libraries_of(bundle: Path) -> set[bytes]:
    with BundleFile(bundle) as opened:
        return {content for _, content in opened.contents() if content is not None}


@pytest.mark.parametrize("seed", range(4))
def test_no_random_change_gets_another_library_in(
    bundle: Path, tmp_path: Path, seed: int, pytestconfig: pytest.Config
) -> None:
    """With ``--full``, ten times as many."""
    content, whole = bundle.read_bytes(), libraries_of(bundle)
    drawn = random.Random(seed)
    there = tmp_path / "there"
    taken = 0
    for _ in range(400 if pytestconfig.getoption("--full") else 40):
        changed = bytearray(content)
        for _ in range(drawn.choice((1, 1, 2, 8))):
            place = drawn.randrange(len(content.rstrip(b"\0")))
            kind = drawn.choice(("flip", "byte", "swap", "cut", "double"))
            if kind == "flip":
                changed[place % len(changed)] ^= 1 << drawn.randrange(8)
            elif kind == "byte":
                changed[place % len(changed)] = drawn.randrange(256)
            elif kind == "swap":
                other = drawn.randrange(len(changed))
                place %= len(changed)
                changed[place : place + 64], changed[other : other + 64] = (
                    changed[other : other + 64],
                    changed[place : place + 64],
                )
            elif kind == "cut":
                del changed[place : place + 512]
            else:
                changed[place:place] = changed[place : place + 512]
        bundle.write_bytes(changed)
        try:
            taken += take(bundle, there).entries
        except BundleError:
            continue
    for _, library in libraries(there).items() if there.exists() else ():
        assert library in whole
    assert taken <= len(OPS)


def test_a_store_that_cannot_be_written_says_so(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(StoreError):
        take(bundle, place / "below")


def test_two_processes_take_the_same_bundle(bundle: Path, there: Path, made: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from aoti_eager import cache
        report = cache.load(sys.argv[1], trust="any", cache_dir=sys.argv[2])
        print(report.entries + report.skipped.get("there_already", 0))
        """
    )
    arguments = [sys.executable, "-c", script, str(bundle), str(there)]
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate(timeout=120)[0].strip() for one in both] == ["3", "3"]
    assert libraries(there) == libraries(made)


def test_a_load_that_is_killed_leaves_whole_entries(bundle: Path, there: Path, made: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from aoti_eager import cache
        from aoti_eager._store.store import Store
        place, done = Store._install, []
        def install(self, *args):
            if done:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(1)
            return place(self, *args)
        Store._install = install
        cache.load(sys.argv[1], trust="any", cache_dir=sys.argv[2])
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(bundle), str(there)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert len(libraries(there)) == 1

    report = take(bundle, there)

    assert (report.entries, report.skipped) == (2, {"there_already": 1})
    assert libraries(there) == libraries(made)
    cache.verify(cache_dir=there)
    assert list((there / "tmp").iterdir()) == []
