"""Random changes of a valid store: nothing crashes, and no library is loaded whose digest differs.

``--full`` makes 10,000 changes. Libraries are read as they are before they are loaded; that what is
read is what is loaded is the subject of ``test_swapped_libraries.py``.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest

from aoti_eager import cache
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager.errors import AotiEagerError

from ..support.entries import ENVIRONMENT, FEATURES, make_entry, make_key, publish
from . import mutations

KEYS = [
    *(make_key("aten::silu", rows=rows) for rows in (1, 2, 3)),
    make_key("aten::add.Tensor"),
    make_key("aoti_eager_region::t_" + "0" * 16),
]
BATCHES = 10


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("valid") / "store"
    store = Store(root, lock_timeout_s=1.0)
    for number, key in enumerate(KEYS):
        publish(store, make_entry(key=key), content=b"\x7fELF" + bytes([number]) * 999)
    return root


def loaded(store: Store, key: KernelKey) -> StoredEntry | None:
    """Return the entry of a key with the library's bytes as they would be loaded."""
    try:
        found = store.find(key, ENVIRONMENT, FEATURES)
        return None if found is None or found.entry.library is None else store.check_library(found)
    except (AotiEagerError, FileNotFoundError):
        return None


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_change_of_a_store_gets_another_library_loaded(
    batch: int, valid: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    drawn = random.Random(batch)
    libraries = {}
    for key in KEYS:
        found = loaded(Store(valid, lock_timeout_s=1.0), key)
        assert found is not None
        libraries[key.digest] = found
    count = (10_000 if pytestconfig.getoption("--full") else 300) // BATCHES
    hits = 0
    for number in range(count):
        root = tmp_path / str(number) / "store"
        shutil.copytree(valid, root)
        changes = [mutations.change(drawn, root) for _ in range(drawn.choice((1, 1, 1, 3)))]
        touched = set().union(*(places for _, places in changes))
        what = f"{number}: {changes}"
        store = Store(root, lock_timeout_s=1.0)
        for key in KEYS:
            found = loaded(store, key)
            was = libraries[key.digest]
            place = root / was.path.relative_to(valid)
            if found is not None:
                assert found.content is not None
                library = found.entry.library
                assert library is not None
                assert hashlib.sha256(found.content).hexdigest() == library.sha256, what
                assert found.entry.key == key, what
                hits += 1
            elif place not in touched:
                # A directory above is one that others could have written to, or a link.
                above = [*place.relative_to(root).parents][:-1]
                paths = [root / one for one in above] + [place, *place.glob("*")]
                assert any(
                    not p.exists() or p.is_symlink() or p.stat().st_mode & 0o022 for p in paths
                ), what
        with_each_verb(root, what)
        shutil.rmtree(tmp_path / str(number))
    assert hits > count, "most entries are untouched by most changes"


def with_each_verb(root: Path, what: str) -> None:
    """Look at a store, and mend it; what is left is whole."""
    try:
        cache.list(cache_dir=root)
        cache.verify(repair=False, cache_dir=root)
        cache.verify(cache_dir=root)
        left = cache.verify(repair=False, cache_dir=root).damaged
        assert all(holds_somebodys(path) for path, _ in left), what
    except AotiEagerError as error:
        said = str(error)
    else:
        return
    assert str(root) in said, what


def holds_somebodys(path: Path) -> bool:
    """Return whether a place holds what nobody removes: a link, or a name that is none of ours."""
    ours = ("entry.json", "library.so", "log")
    return path.is_symlink() or any(
        child.name not in ours or not child.is_file() for child in path.iterdir()
    )
