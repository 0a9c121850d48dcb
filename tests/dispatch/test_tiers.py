"""Calls with stores behind the cache directory: what serves, what is copied, what is passed over.

Most tests are in mode ``sync`` with the gate off, so that one call decides; the last ones have the
settings as they ship.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager._compile_service import cache_context
from aoti_eager._store.entry import Status
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager._store.stored_failures import as_failure
from aoti_eager._store.verdict import PathTime, Verdict, Verdicts
from aoti_eager.errors import AotiEagerWarning

from ..conftest import assert_close
from ..support.kept_builds import make_cache_dir
from ..support.shipped import check

aten = torch.ops.aten
X = torch.randn(8, 8, generator=torch.Generator().manual_seed(5))
SILU = "aten::silu"
WANT = torch.nn.functional.silu(X)


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return everything below a directory with size and times of change: what a write changes."""
    paths = [root, *root.rglob("*")]
    stats = {str(path): path.lstat() for path in paths}
    return {path: (s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in stats.items()}


class Counted:
    """What became of the calls of an op since it was registered."""

    def __init__(self, op: str) -> None:
        self._op = op
        self._before = dict(self._now())

    def _now(self) -> Counter[str]:
        found = aoti_eager.stats().get(self._op)
        if found is None:
            return Counter()
        return Counter(hits=found.hits, compiles=found.compiles, **found.declined)

    @property
    def counts(self) -> dict[str, int]:
        """Return hits, compiles, and declines by reason; hits and compiles also if there are none.

        A wait is over: what is made beside the calls is counted.
        """
        assert aoti_eager.wait(120)
        found = self._now() - Counter(self._before)
        return {"hits": found["hits"], "compiles": found["compiles"], **found}


@contextmanager
def registered(op: str = SILU) -> Iterator[Counted]:
    with aoti_eager.register(op):
        yield Counted(op)


def served() -> dict[str, int]:
    """Call the op once, and return what was counted."""
    with registered() as counted:
        assert_close(aten.silu(X), WANT)
        return counted.counts


def the_entry(root: Path) -> StoredEntry:
    (found,) = Store(root, lock_timeout_s=1.0).scan()
    assert isinstance(found, StoredEntry)
    return found


def tier(name: str) -> cache.TierState:
    return next(one for one in cache.tiers() if one.name == name)


@contextmanager
def one_warning(text: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found = [str(one.message) for one in caught if issubclass(one.category, AotiEagerWarning)]
    assert len(found) == 1, found
    assert text in found[0]


@pytest.fixture
def image(tmp_path: Path, shared_cache_dir: Path) -> Path:
    """A store with a kernel for ``silu``, which somebody else has made."""
    path = make_cache_dir(tmp_path / "image", shared_cache_dir)
    with aoti_eager.config.scope(cache_dir=path):
        assert served()["compiles"] == 1
    return path


# -- hits --


def test_a_kernel_of_a_read_only_tier_serves_and_is_copied(
    image: Path, cache_dir: Path, no_compiles: None
) -> None:
    before = snapshot(image)
    with aoti_eager.config.scope(tiers=f"ro:{image}"):
        assert served() == {"hits": 1, "compiles": 0}
        assert tier(f"ro:{image}").counts == {"copies": 1, "hits": 1}
    assert snapshot(image) == before
    copied, original = the_entry(cache_dir), the_entry(image)
    assert copied.entry == original.entry
    shutil.rmtree(image)
    assert served() == {"hits": 1, "compiles": 0}


def test_the_nearest_tier_serves(image: Path, tmp_path: Path, no_compiles: None) -> None:
    other = tmp_path / "other"
    shutil.copytree(image, other, symlinks=True)
    with aoti_eager.config.scope(tiers=[f"ro:{tmp_path / 'empty'}", f"ro:{other}", f"ro:{image}"]):
        assert served()["hits"] == 1
        assert tier(f"ro:{tmp_path / 'empty'}").state == "missing"
        assert tier(f"ro:{other}").counts["hits"] == 1
        assert "hits" not in tier(f"ro:{image}").counts
    assert not (tmp_path / "empty").exists()


def test_a_tier_serves_where_nothing_is_compiled(image: Path, no_compiles: None) -> None:
    with aoti_eager.config.scope(tiers=f"ro:{image}", mode="cache_only"):
        assert served()["hits"] == 1


def test_a_cache_directory_that_cannot_be_made_hides_no_tier(
    image: Path, tmp_path: Path, no_compiles: None
) -> None:
    (tmp_path / "file").write_text("")
    # In cache_only, since sync wants to compile what it cannot keep.
    with aoti_eager.config.scope(
        tiers=f"ro:{image}", cache_dir=tmp_path / "gone", mode="cache_only"
    ):
        assert served()["hits"] == 1


@pytest.mark.parametrize("mode", ["sync", "cache_only"])
def test_a_cache_directory_that_cannot_be_used_hides_no_tier(
    image: Path, near: Path, mode: str, no_compiles: None
) -> None:
    near.chmod(0o777)
    with aoti_eager.config.scope(cache_dir=near, tiers=f"ro:{image}", mode=mode):
        assert served()["hits"] == 1


def test_the_cache_directory_itself_is_no_tier(image: Path, no_compiles: None) -> None:
    with aoti_eager.config.scope(cache_dir=image, tiers=f"ro:{image}"):
        assert served()["hits"] == 1
        assert [one.name for one in cache.tiers()] == ["cache_dir"]


def test_a_change_of_the_tiers_is_seen_by_the_next_call(image: Path) -> None:
    with aoti_eager.config.scope(mode="cache_only"), registered() as counted:
        aten.silu(X)
        with aoti_eager.config.scope(tiers=f"ro:{image}"):
            aten.silu(X)
            assert counted.counts["hits"] == 1


@pytest.mark.dynamic
def test_a_dynamic_kernel_of_a_tier_serves(
    tmp_path: Path, shared_cache_dir: Path, cache_dir: Path
) -> None:
    image = make_cache_dir(tmp_path / "image", shared_cache_dir)
    calls = [torch.randn(rows, 8) for rows in (8, 9, 10, 11, 12)]
    with (
        aoti_eager.config.scope(cache_dir=image, dynamic=True),
        registered(SILU),
    ):
        for x in calls:
            aten.silu(x)
    dynamic = [
        one
        for one in Store(image, lock_timeout_s=1.0).scan()
        if isinstance(one, StoredEntry) and one.entry.guards is not None
    ]
    assert len(dynamic) == 1
    before = snapshot(image)
    x = torch.randn(13, 8)
    want = torch.nn.functional.silu(x)
    with aoti_eager.config.scope(tiers=f"ro:{image}", dynamic=True), registered() as counted:
        assert_close(aten.silu(x), want)
        assert counted.counts == {"hits": 1, "compiles": 0}
    assert snapshot(image) == before
    copied = list(Store(cache_dir, lock_timeout_s=1.0).scan())
    assert [one.entry.digest for one in copied if isinstance(one, StoredEntry)] == [
        dynamic[0].entry.digest
    ]


def test_a_verdict_of_a_tier_counts(
    image: Path, cache_dir: Path, hit_path: str, no_compiles: None
) -> None:
    found = the_entry(image)
    assert found.entry.library is not None
    label = f"{hit_path}/{torch.get_num_threads()}"
    time = PathTime(1.0, 10.0, 10.1, 0.01, True)
    verdict = Verdict(found.entry.library.sha256, True, True, {label: time})
    Verdicts(image).put(found.entry.digest, verdict)
    # The gate decides by the verdict: no worker is asked for times.
    with aoti_eager.config.scope(tiers=f"ro:{image}", gate=True):
        assert served() == {"hits": 1, "compiles": 0}
    assert Verdicts(cache_dir).get(found.entry.digest, verdict.library) == verdict


# -- failures --


def failure(root: Path, status: Status, reason: str) -> None:
    """Put a failure of the key into a store."""
    found = the_entry(root)
    store = Store(root, lock_timeout_s=1.0)
    if status is Status.QUARANTINED:
        store.quarantine(as_failure(found), reason, "made up")
        return
    entry = replace(
        as_failure(found).entry, status=status, reason=reason, message="made up", library=None
    )
    with store.workspace() as work:
        store.publish(entry, work, None, "")


@pytest.fixture
def near(image: Path, tmp_path: Path) -> Path:
    """A nearer tier with the same kernel."""
    path = tmp_path / "near"
    shutil.copytree(image, path, symlinks=True)
    return path


@pytest.mark.parametrize("where", ["the cache directory", "a tier"])
def test_a_failure_hides_no_kernel_of_a_farther_tier(
    image: Path, near: Path, where: str, no_compiles: None
) -> None:
    failure(near, Status.DECLINED, "does_not_trace")
    assert the_entry(near).entry.status is Status.DECLINED
    chosen: dict[str, Any] = (
        {"cache_dir": near, "tiers": f"ro:{image}"}
        if where == "the cache directory"
        else {"tiers": [f"ro:{near}", f"ro:{image}"]}
    )
    with aoti_eager.config.scope(**chosen):
        assert served()["hits"] == 1


def test_a_failure_of_a_tier_keeps_a_key_from_being_compiled(
    near: Path, cache_dir: Path, no_compiles: None
) -> None:
    failure(near, Status.DECLINED, "does_not_trace")
    before = snapshot(near)
    with aoti_eager.config.scope(tiers=f"ro:{near}"):
        assert served() == {"hits": 0, "compiles": 0, "does_not_trace": 1}
    assert snapshot(near) == before
    assert not (cache_dir / "v1").exists()


def test_a_kernel_that_was_found_wrong_here_hides_a_tiers(
    image: Path, near: Path, no_compiles: None
) -> None:
    failure(near, Status.QUARANTINED, "mismatch")
    with aoti_eager.config.scope(cache_dir=near, tiers=f"ro:{image}"):
        assert served() == {"hits": 0, "compiles": 0, "mismatch": 1}


def test_a_tiers_kernel_that_is_wrong_is_quarantined_here_and_where_it_may_be(
    image: Path, near: Path, cache_dir: Path, shared_cache_dir: Path, tmp_path: Path
) -> None:
    """The library of another op under the key of ``silu``, as a bug of the compiler would make."""
    donor = make_cache_dir(tmp_path / "donor", shared_cache_dir)
    with aoti_eager.config.scope(cache_dir=donor), registered("aten::tanh"):
        aten.tanh(X)
        assert aoti_eager.wait(60)
    library = the_entry(donor).library_path.read_bytes()
    for root in (image, near):
        store, found = Store(root, lock_timeout_s=1.0), the_entry(root)
        store.discard(found.path)
        with store.workspace() as work:
            (work / "wrong.so").write_bytes(library)
            entry = replace(found.entry, checked=False, library=None)
            store.publish(entry, work, work / "wrong.so", "")
    before = snapshot(near)
    with aoti_eager.config.scope(tiers=[f"ro:{near}", f"rw:{image}"]):
        assert served() == {"hits": 0, "compiles": 0, "mismatch": 1}
    assert snapshot(near) == before
    for root in (cache_dir, image):
        assert the_entry(root).entry.status is Status.QUARANTINED


# -- tiers that cannot be used --


def damage_library(root: Path) -> None:
    path = the_entry(root).library_path
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def cut_record(root: Path) -> None:
    path = the_entry(root).path / "entry.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_for_all(root: Path) -> None:
    root.chmod(0o777)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (damage_library, "not the file that was stored"),
        (cut_record, "is not JSON"),
        (write_for_all, "can write to it"),
    ],
)
def test_a_tier_that_cannot_be_used_is_passed_over(
    image: Path, near: Path, spoil: Any, text: str, no_compiles: None
) -> None:
    spoil(near)
    before = snapshot(near)
    name = f"ro:{near}"
    with aoti_eager.config.scope(tiers=[name, f"ro:{image}"]):
        with one_warning(text):
            assert served()["hits"] == 1
        assert tier(name).counts["errors"] == 1
        assert text in tier(name).last_error
    assert snapshot(near) == before


@pytest.mark.parametrize("number", ["ESTALE", "EBUSY", "EIO"])
def test_an_error_of_the_file_system_is_passed_over_and_not_remembered(
    image: Path, monkeypatch: pytest.MonkeyPatch, number: str, no_compiles: None
) -> None:
    """As a directory that two hosts share gives them, now and then."""
    import errno

    code, left, real = getattr(errno, number), [2], os.open

    def sometimes(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == "library.so" and left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return real(path, *args, **kwargs)

    with aoti_eager.config.scope(tiers=f"ro:{image}", mode="cache_only"):
        monkeypatch.setattr(os, "open", sometimes)
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AotiEagerWarning)
                assert served()["hits"] == 0
        assert served()["hits"] == 1


def test_an_entry_that_is_written_late_is_found_later(
    image: Path, tmp_path: Path, no_compiles: None
) -> None:
    late = tmp_path / "late"
    with aoti_eager.config.scope(tiers=f"ro:{late}", mode="cache_only"):
        assert served()["hits"] == 0
        shutil.copytree(image, late, symlinks=True)
        assert served()["hits"] == 1


# -- new kernels --


def test_a_new_kernel_is_copied_into_writable_tiers_alone(tmp_path: Path, cache_dir: Path) -> None:
    shared, image = tmp_path / "shared", tmp_path / "image"
    image.mkdir(mode=0o700)
    before = snapshot(image)
    with aoti_eager.config.scope(tiers=[f"rw:{shared}", f"ro:{image}"]):
        assert served()["compiles"] == 1
        assert tier(f"rw:{shared}").counts["given"] == 1
    assert snapshot(image) == before
    assert the_entry(shared).entry == the_entry(cache_dir).entry
    with aoti_eager.config.scope(cache_dir=tmp_path / "another", tiers=f"ro:{shared}"):
        assert served() == {"hits": 0, "compiles": 0}  # This call compares it.
        assert served()["hits"] == 1


def test_a_writable_tier_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    name = f"rw:{tmp_path / 'file'}"
    with aoti_eager.config.scope(tiers=name):
        with one_warning("is no directory"):
            assert served()["compiles"] == 1
        assert tier(name).state == "unusable"


# -- what says so --


def test_explain_names_the_tier(image: Path) -> None:
    with aoti_eager.config.scope(tiers=f"ro:{image}"), registered():
        found = aoti_eager.explain(aten.silu, X)
    assert found.verdict == "stored"
    assert f"tier ro:{image}" in str(found)


# -- recache --


def test_recache_makes_anew_what_the_store_has(image: Path) -> None:
    before = the_entry(image).path.stat().st_ino
    with aoti_eager.config.scope(cache_dir=image, mode="recache", compile_after=1):
        with registered() as counted:
            assert_close(aten.silu(X), WANT)
            assert counted.counts["compiles"] == 1
            aten.silu(X), aten.silu(X)
            assert counted.counts["hits"] >= 1
        assert the_entry(image).path.stat().st_ino != before
        assert served()["compiles"] == 0  # This process has made it.


def test_recache_asks_no_tier(image: Path, cache_dir: Path) -> None:
    with (
        aoti_eager.config.scope(tiers=f"ro:{image}", mode="recache", compile_after=1),
        registered() as counted,
    ):
        aten.silu(X)
        assert counted.counts["compiles"] == 1


# -- as it ships --


@pytest.mark.shipped
def test_with_the_settings_as_they_ship_the_kernel_is_measured_here_and_serves(
    tmp_path: Path, cache_dir: Path, shared_cache_dir: Path
) -> None:
    """A user with an image: nothing is compiled, and calls do not wait for the copy."""
    x = torch.randn(64, 512)
    image = make_cache_dir(tmp_path / "image", shared_cache_dir)
    op = "aten::huber_loss"
    with aoti_eager.config.scope(cache_dir=image), registered(op) as counted:
        aten.huber_loss(x, x + 1)
        assert counted.counts["compiles"] == 1
    mine = make_cache_dir(tmp_path / "mine", shared_cache_dir)
    before = snapshot(image)
    with aoti_eager.config.scope(cache_dir=mine, tiers=f"ro:{image}"):
        counted = Counted(op)
        check(lambda: aten.huber_loss(x, x + 1), op)
        assert counted.counts["compiles"] == 0
    assert snapshot(image) == before
    assert (mine / "v1").exists()


def test_nothing_of_tiers_is_loaded_without_them() -> None:
    assert cache_context.current().tiers is None
    script = (
        "import sys, torch, aoti_eager\n"
        "aoti_eager.register('aten::silu'); torch.ops.aten.silu(torch.ones(3)); aoti_eager.wait()\n"
        "print([one for one in sys.modules if 'tiers' in one or '_remote' in one])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
