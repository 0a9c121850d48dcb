"""The stores in ``cache_fixtures/``: what was once written is read as it was meant, for good."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from aoti_eager._store.entry import Status
from aoti_eager._store.store import BadEntry, Store, StoredEntry
from aoti_eager.errors import CacheFormatError, EntryDamagedError

from ..support import forked_python

FIXTURES = Path(__file__).parents[2] / "cache_fixtures"
STORES = ("good", "damaged", "foreign", "future")

MADE: dict[str, Any] = runpy.run_path(str(FIXTURES / "make.py"), run_name="make")
ENVIRONMENT, FOREIGN_ENVIRONMENT = MADE["ENVIRONMENT"], MADE["FOREIGN_ENVIRONMENT"]
FEATURES, LIBRARY = MADE["FEATURES"], MADE["LIBRARY"]


def open_store(name: str, tmp_path: Path) -> Store:
    """Return a copy of a fixture's store, private as a store must be."""
    root = tmp_path / name
    shutil.copytree(FIXTURES / name, root)
    for path in (root, *root.rglob("*")):
        path.chmod(0o700)  # git keeps no modes, and the umask may be 002.
    return Store(root, lock_timeout_s=1.0)


def find(store: Store, op: str) -> StoredEntry | None:
    return store.find(MADE["key_of"](op), ENVIRONMENT, FEATURES)


def scanned(store: Store) -> list[str]:
    """Return op and status, or kind of damage, of everything in ``store``."""
    return sorted(
        f"{one.path.parents[2].name} {one.kind}"
        if isinstance(one, BadEntry)
        else f"{one.path.parents[2].name} {one.entry.status.value}"
        for one in store.scan()
    )


def test_a_good_entry_is_a_hit(tmp_path: Path) -> None:
    found = find(open_store("good", tmp_path), "aten::silu")
    assert found is not None
    assert found.entry == MADE["replace"](
        MADE["entry_of"]("aten::silu"), library=found.entry.library
    )
    assert found.library_path.read_bytes() == LIBRARY


def test_every_good_library_is_the_one_that_was_stored(tmp_path: Path) -> None:
    store = open_store("good", tmp_path)
    libraries = [one for one in store.scan() if isinstance(one, StoredEntry) and one.entry.library]
    assert len(libraries) == 2
    for stored in libraries:
        store.check_library(stored)


def test_remembered_failures_come_with_their_reasons(tmp_path: Path) -> None:
    store = open_store("good", tmp_path)
    declined, quarantined = find(store, "aten::special_i1"), find(store, "aten::erfinv")
    assert declined is not None
    assert (declined.entry.status, declined.entry.reason) == (Status.DECLINED, "compile_failed")
    assert (declined.path / "log").read_text().startswith("kernel.cpp:1:1: error")
    assert quarantined is not None
    assert quarantined.entry.status is Status.QUARANTINED
    assert quarantined.entry.message == "output 0: 3 of 64 values differ"


def test_a_scan_of_the_good_store_lists_each_status(tmp_path: Path) -> None:
    assert scanned(open_store("good", tmp_path)) == [
        "aten.erfinv quarantined",
        "aten.silu ready",
        "aten.special_i1 declined",
    ]


def test_a_good_entry_is_a_miss_on_a_smaller_cpu(tmp_path: Path) -> None:
    """Its code would be illegal there."""
    store = open_store("good", tmp_path)
    key = MADE["key_of"]("aten::silu")
    assert store.find(key, ENVIRONMENT, FEATURES - {"fma"}) is None


@pytest.mark.parametrize("op", ["aten::tanh", "aten::sinh", "aten::cosh"])
def test_a_damaged_record_is_known_when_it_is_found(tmp_path: Path, op: str) -> None:
    """Not JSON, not what was signed, not there."""
    with pytest.raises(EntryDamagedError):
        find(open_store("damaged", tmp_path), op)


@pytest.mark.parametrize("op", ["aten::sin", "aten::cos"])
def test_a_damaged_library_is_known_before_it_is_loaded(tmp_path: Path, op: str) -> None:
    """Truncated, not there."""
    store = open_store("damaged", tmp_path)
    found = find(store, op)
    assert found is not None
    with pytest.raises(EntryDamagedError):
        store.check_library(found)


def test_the_good_entry_among_the_damaged_is_a_hit(tmp_path: Path) -> None:
    """One bad entry must not spoil the others."""
    store = open_store("damaged", tmp_path)
    found = find(store, "aten::silu")
    assert found is not None
    store.check_library(found)
    assert scanned(store) == [
        "aten.cos ready",
        "aten.cosh damaged",
        "aten.silu ready",
        "aten.sin ready",
        "aten.sinh damaged",
        "aten.tanh damaged",
    ]


def test_each_damaged_entry_can_be_replaced(tmp_path: Path) -> None:
    """That entry alone is rebuilt."""
    store = open_store("damaged", tmp_path)
    for op in ("aten::tanh", "aten::sinh", "aten::cosh", "aten::sin", "aten::cos"):
        MADE["publish"](store, MADE["entry_of"](op))
        found = find(store, op)
        assert found is not None
        store.check_library(found)
    assert all(line.endswith(" ready") for line in scanned(store))


def test_a_foreign_entry_is_a_miss_and_listed(tmp_path: Path) -> None:
    """An entry of another torch version is never opened."""
    store = open_store("foreign", tmp_path)
    assert find(store, "aten::silu") is None
    assert not store.has_entries(ENVIRONMENT)
    (listed,) = store.scan()
    assert isinstance(listed, StoredEntry)
    assert listed.entry.environment.differing(ENVIRONMENT) == {"torch": ("2.12.0", "2.13.0")}
    assert store.find(MADE["key_of"]("aten::silu"), FOREIGN_ENVIRONMENT, FEATURES) == listed


def test_a_future_entry_is_refused_and_its_neighbour_is_a_hit(tmp_path: Path) -> None:
    store = open_store("future", tmp_path)
    with pytest.raises(CacheFormatError, match="has format 99"):
        find(store, "aten::tanh")
    assert find(store, "aten::silu") is not None
    assert scanned(store) == ["aten.silu ready", "aten.tanh future"]


# --- the fixtures themselves ---------------------------------------------------------------------


def contents(directory: Path) -> dict[str, bytes]:
    """Return every file of the stores below ``directory``."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for name in STORES
        for path in (directory / name).rglob("*")
        if path.is_file()
    }


def test_making_the_fixtures_again_gives_the_same_bytes(tmp_path: Path) -> None:
    out = tmp_path / "made"
    forked_python.run([sys.executable, str(FIXTURES / "make.py"), str(out)], check=True)
    assert sorted(os.listdir(out)) == sorted(STORES)
    assert contents(out) == contents(FIXTURES)


def test_the_fixtures_are_small_and_name_no_place_of_a_machine() -> None:
    files = contents(FIXTURES)
    assert sum(map(len, files.values())) < 20_000
    for name, content in files.items():
        for place in (b"/root", b"/home", b"/tmp", b"/work"):
            assert place not in content, name
