"""Tiers whose files were changed at random: nothing raises, nothing is written, nothing wrong read.

``--full`` makes 10,000 changes. tests/dispatch/test_tiers.py has the calls.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import warnings
from pathlib import Path

import pytest

from aoti_eager import config
from aoti_eager._store.entry import Status
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager._store.stored_failures import as_failure
from aoti_eager._store.tiers import Tiers
from aoti_eager.errors import AotiEagerWarning

from ..support.entries import ENVIRONMENT, FEATURES, make_entry, make_key, publish
from . import mutations
from .test_mutations import BATCHES, KEYS, valid  # noqa: F401 - a fixture


def snapshot(root: Path) -> dict[str, tuple[int, ...]]:
    """Return everything below a directory with what a write changes."""
    found = {}
    for above, directories, files in os.walk(root):
        for name in [".", *directories, *files]:
            status = os.lstat(os.path.join(above, name))
            place = os.path.join(above, name)
            found[place] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_change_of_a_tier_gets_another_library_loaded_or_copied(
    batch: int,
    valid: Path,  # noqa: F811
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    drawn = random.Random(1000 + batch)
    count = (10_000 if pytestconfig.getoption("--full") else 200) // BATCHES
    hits = copies = 0
    own = make_key("aten::mul.Tensor")
    for number in range(count):
        root, near = tmp_path / str(number) / "tier", tmp_path / str(number) / "near"
        shutil.copytree(valid, root)
        changes = [mutations.change(drawn, root) for _ in range(drawn.choice((1, 1, 1, 3)))]
        what = f"{number}: {changes}"
        store = Store(near, lock_timeout_s=1.0)
        publish(store, make_entry(key=own))
        before = snapshot(root)
        tiers = Tiers(store, [f"ro:{root}"], "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AotiEagerWarning)
            for key in KEYS:
                found = tiers.find([key], ENVIRONMENT, FEATURES)
                if found is None or found.entry.status is not Status.READY:
                    continue
                assert found.content is not None
                library = found.entry.library
                assert library is not None
                assert hashlib.sha256(found.content).hexdigest() == library.sha256, what
                assert found.entry.key == key, what
                hits += 1
                stored = tiers.copy(found)
                copies += stored.path.is_relative_to(near)
                assert store.check_library(stored).content == found.content, what
            for op in {key.op for key in KEYS}:
                assert tiers.find_dynamic(op, ENVIRONMENT, FEATURES, ()) == []
        assert snapshot(root) == before, what
        found = store.find(own, ENVIRONMENT, FEATURES)
        assert found is not None
        assert store.check_library(found).content == b"\x7fELF"
        shutil.rmtree(tmp_path / str(number))
    assert hits == copies > count, "most entries are untouched by most changes"


def test_a_tier_in_which_the_library_changes_after_it_was_found_gives_nothing(
    valid: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """What is copied is what was hashed, whatever the file is by then."""
    root = tmp_path / "tier"
    shutil.copytree(valid, root)
    store = Store(tmp_path / "near", lock_timeout_s=1.0)
    tiers = Tiers(store, [f"ro:{root}"], "")
    found = tiers.find([KEYS[0]], ENVIRONMENT, FEATURES)
    assert found is not None
    whole = found.content
    found.library_path.write_bytes(b"\x7fELF another")
    assert store.check_library(tiers.copy(found)).content == whole
    with pytest.warns(AotiEagerWarning, match="not the file that was stored"):
        assert tiers.find([KEYS[0]], ENVIRONMENT, FEATURES) is None


def test_limits_hold_when_a_tier_is_copied(
    valid: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "near", lock_timeout_s=1.0)
    tiers = Tiers(store, [f"ro:{valid}"], "")
    with config.scope(max_entries=2):
        for key in KEYS:
            found = tiers.find([key], ENVIRONMENT, FEATURES)
            assert found is not None
            tiers.copy(found)
            assert len(list(store.scan())) <= 2
    assert len(list(Store(valid, lock_timeout_s=1.0).scan())) == len(KEYS)


def test_a_copy_that_failed_is_tried_again(
    valid: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    root = tmp_path / "near"
    root.write_text("")  # A file in the directory's place.
    tiers = Tiers(Store(root, lock_timeout_s=1.0), [f"ro:{valid}"], "")
    found = tiers.find([KEYS[0]], ENVIRONMENT, FEATURES)
    assert found is not None
    tiers.copy_later(found, lambda write: write())
    root.unlink()
    tiers.copy_later(found, lambda write: write())
    (stored,) = Store(root, lock_timeout_s=1.0).scan()
    written: list[object] = []
    tiers.copy_later(found, written.append)
    assert written == []
    assert stored.path.is_relative_to(root)


def test_a_kernel_that_was_found_wrong_meanwhile_is_not_brought_back(
    valid: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Another process quarantines the copy after this one has found the kernel in the tier."""
    store = Store(tmp_path / "near", lock_timeout_s=1.0)
    tiers = Tiers(store, [f"ro:{valid}"], "")
    found = tiers.find([KEYS[0]], ENVIRONMENT, FEATURES)
    assert found is not None
    store.quarantine(as_failure(tiers.copy(found)), "mismatch", "made up")
    assert tiers.copy(found).entry.status is Status.QUARANTINED
    (left,) = store.scan()
    assert isinstance(left, StoredEntry)
    assert left.entry.status is Status.QUARANTINED
