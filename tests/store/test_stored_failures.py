"""Stored failures that have lapsed: they are passed over, removed, and their keys tried again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import cache, cli
from aoti_eager._base.cpp_compiler import compiler_identity, compiler_on_path
from aoti_eager._compile_service import cache_context
from aoti_eager._dispatch.specialisations import Specialisations
from aoti_eager._keys.dynamic_plan import Plan
from aoti_eager._store.entry import Remembered, Status
from aoti_eager._store.store import Store, StoredEntry
from aoti_eager._store.stored_failures import as_failure, met_now, standing
from aoti_eager._workloads import workload

from ..conftest import assert_close
from ..dispatch.test_specialisations import SILU, failed, key_of
from ..support.entries import ENVIRONMENT, FEATURES, make_entry
from ..support.entries import publish as publish_in
from ..workloads.test_warm import outcome, recorded
from .test_cache import publish

aten = torch.ops.aten
X = torch.ones(8, 8)
DAYS_S = 24 * 3600


def met(days_ago: float = 0.0, compiler: str | None = "here") -> Remembered:
    """Return when and with what a failure was met."""
    identity = compiler_identity() if compiler == "here" else compiler
    return Remembered(int(time.time() - days_ago * DAYS_S), identity)


def fail(reason: str = "no_kernel_of_its_own", **fields: Any) -> Path:
    """Store a failure of ``mm`` on ``X`` and return its directory."""
    entry = publish(aten.mm.default, X, X, status=Status.DECLINED, reason=reason, **fields)
    (stored,) = [one for one in cache.list() if one.digest == entry.digest]
    return stored.path


def mm() -> str | None:
    """Call ``mm`` where nothing is compiled, and return why it is declined."""
    with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register("aten::mm.default"):
        assert_close(aten.mm(X, X), torch.full((8, 8), 8.0))
        aten.mm(X, X)
        explained = aoti_eager.explain("aten::mm.default", X, X)
    return explained.reason


LAPSED: dict[str, dict[str, Any]] = {
    "31 days old": {"remembered": met(31)},
    "from the future": {"remembered": met(-2)},
    "of another compiler": {"remembered": met(0, "clang++-" + "00" * 32)},
    "of another reason": {"reason": "library_unloadable", "message": "cannot map"},
    "an errno": {"reason": "compile_failed", "message": "OSError: [Errno 24] Too many open files"},
    "a signal": {"reason": "crashed", "message": "aten::mm: the process ended with SIGUSR1"},
}
STANDING: dict[str, dict[str, Any]] = {
    "29 days old": {"remembered": met(29)},
    "without a compiler": {"remembered": met(0, None)},
    "of an older version": {"message": "no C++ kernel came out"},
    "an older one's own fault": {"reason": "compile_failed", "message": "AssertionError"},
    "wrong code": {"reason": "crashed", "message": "aten::mm: the process ended with SIGSEGV"},
}


@pytest.mark.parametrize("name", LAPSED)
def test_a_failure_that_does_not_hold_is_removed_and_its_key_tried_again(
    name: str, settings: None
) -> None:
    path = fail(**LAPSED[name])
    (listed,) = cache.list()
    assert (listed.status, str(listed.reason)[-19:]) == ("declined", "lapsed: tried again")
    # What is only asked about is left as it is.
    assert aoti_eager.explain("aten::mm.default", X, X).verdict == "miss"
    assert path.exists()
    assert mm() == "not_in_cache"
    assert not path.exists()
    assert cache.verify().damaged == ()


@pytest.mark.parametrize("name", STANDING)
def test_a_failure_that_holds_keeps_its_key_declined(name: str, settings: None) -> None:
    path = fail(**STANDING[name])
    reason = STANDING[name].get("reason", "no_kernel_of_its_own")
    assert [(one.status, one.reason) for one in cache.list()] == [("declined", reason)]
    assert aoti_eager.explain("aten::mm.default", X, X).reason == reason
    assert mm() == reason
    assert path.exists()


def test_an_old_entry_has_the_time_of_its_file(settings: None) -> None:
    path = fail()
    before = time.time() - 31 * DAYS_S
    os.utime(path / "entry.json", (before, before))
    assert mm() == "not_in_cache"


def test_an_old_entry_s_log_tells_what_its_message_does_not(settings: None) -> None:
    path = fail("compile_failed", message="InductorError: it failed")
    (path / "log").write_text("x" * 100_000 + "\nOSError: [Errno 11] no more processes\n")
    assert mm() == "not_in_cache"
    path = fail("compile_failed", message="InductorError: it failed")
    (path / "log").unlink(missing_ok=True)
    os.mkfifo(path / "log")  # Nobody writes to it: that is not waited for.
    assert mm() == "compile_failed"


def test_a_quarantined_entry_lapses_likewise(settings: None) -> None:
    for days_ago, status in ((31, "ready"), (1, "quarantined")):
        entry = publish(
            aten.silu.default,
            X,
            status=Status.QUARANTINED,
            reason="mismatch",
            message="result 0",
            remembered=met(days_ago),
        )
        stored = cache_context.current().store
        with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register("aten::silu.default"):
            aten.silu(X)
            reason = aoti_eager.explain("aten::silu.default", X).reason
        left = [one for one in stored.scan() if isinstance(one, StoredEntry)]
        if status == "ready":
            assert (reason, left) == ("not_in_cache", [])
        else:
            assert (reason, [one.entry.digest for one in left]) == ("mismatch", [entry.digest])


def test_a_library_that_is_found_wrong_says_when_and_who_made_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", lock_timeout_s=1.0)
    provenance = (("compiler", "g++ 12"), ("compiler_identity", "g++-12"))
    found = publish_in(store, make_entry(provenance=provenance))
    before = int(time.time())
    store.quarantine(as_failure(found), "mismatch", "result 0")
    entry = store.read(found.path).entry
    assert entry.status is Status.QUARANTINED
    assert entry.remembered is not None
    assert entry.remembered.compiler == "g++-12"
    assert before <= entry.remembered.at <= before + 60


def test_a_store_that_cannot_be_written_keeps_a_lapsed_failure_and_says_nothing(
    mount: Any,
) -> None:
    """Else each process would warn, for good: no other answer could be kept there."""
    path = mount("readonly", "size=4m")
    with aoti_eager.config.scope(cache_dir=path):
        stored = fail(**LAPSED["31 days old"])
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
        assert mm() == "no_kernel_of_its_own"
        assert stored.exists()
        with warnings.catch_warnings(), aoti_eager.register("aten::mm.default"):
            warnings.simplefilter("error")
            assert_close(aten.mm(X, X), X @ X)


@pytest.mark.dynamic
def test_a_plan_that_failed_is_made_again_when_that_has_lapsed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", lock_timeout_s=1.0)
    for days_ago, is_there in ((31, False), (29, True)):
        plan = Op().plan_of(store)
        assert plan is not None
        entry = replace(failed(plan).entry, remembered=met(days_ago))
        found = publish_in(store, entry, content=None)
        assert (Op().plan_of(store) is None) is is_there
        assert found.path.exists() is is_there


class Op:
    """An op with a family of calls, whose dynamic entries are those of a store."""

    def __init__(self) -> None:
        self._specialised = Specialisations()

    def plan_of(self, store: Store) -> Plan | None:
        """Return the plan for a second size."""
        context: Any = SimpleNamespace(
            store=store, tiers=None, environment=ENVIRONMENT, features=FEATURES
        )
        plan = None
        for rows in (4, 6):
            assert self._specialised.kernels.find(SILU, key_of(rows, 5), context) is None
            plan, _ = self._specialised.plan(SILU, key_of(rows, 5))
        return plan


def test_an_entry_that_was_deleted_meanwhile_is_no_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", lock_timeout_s=1.0)
    entry = make_entry(status=Status.DECLINED, reason="raised", remembered=met(31))
    found = publish_in(store, entry, content=None)
    store.clear()
    assert standing(store, found) is None
    assert standing(store, None) is None


# --- tried again for real ---


def failures() -> int:
    """Call ``mm`` in a mode that compiles, in an op of its own; return how often that failed."""
    with aoti_eager.register("aten::mm.default"):
        before = aoti_eager.stats()["aten::mm"].failures if aoti_eager.stats() else 0
        for _ in range(2):
            assert_close(aten.mm(X, X), torch.full((8, 8), 8.0))
        assert aoti_eager.explain("aten::mm.default", X, X).reason == "no_kernel_of_its_own"
        return aoti_eager.stats()["aten::mm"].failures - before


def test_a_failure_is_tried_again_after_30_days_and_with_another_compiler(
    settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [failures(), failures()] == [1, 0]
    (stored,) = cache.inspect(cache.list()[0].digest)
    assert stored.entry.remembered is not None
    assert stored.entry.remembered.compiler == compiler_identity()
    assert abs(stored.entry.remembered.at - time.time()) < 600

    monkeypatch.setattr("aoti_eager._store.stored_failures.time", Later())
    assert failures() == 1
    monkeypatch.undo()  # The worker has written when it was met, by a clock of its own.
    assert failures() == 0
    cache.clear()
    assert [failures(), failures()] == [1, 0]

    another = tmp_path / "g++"
    another.write_text(f'#!/bin/sh\nexec {compiler_on_path()} "$@"\n')
    another.chmod(0o755)
    monkeypatch.setenv("CXX", str(another))
    assert [failures(), failures()] == [1, 0]
    (stored,) = cache.inspect(cache.list()[0].digest)
    assert stored.entry.remembered is not None
    assert stored.entry.remembered.compiler == compiler_identity()


class Later:
    """A clock that is 31 days ahead."""

    @staticmethod
    def time() -> float:
        return time.time() + 31 * DAYS_S


def test_a_warm_up_tries_a_lapsed_failure_again(settings: None) -> None:
    calls: list[workload.Call] = recorded(lambda: torch.mm(X, X), ["aten::mm.default"])
    cache.clear()
    path = fail("library_unloadable", message="cannot map", key=calls[0].key)
    assert outcome(cache.warm(calls)) == (0, 0, {"no_kernel_of_its_own": 1}, 0, 0)
    assert not path.exists()
    assert outcome(cache.warm(calls)) == (0, 1, {}, 0, 0)


# --- what is shown ---


def test_inspect_shows_when_a_failure_was_met_with_what_and_that_it_has_lapsed(
    settings: None, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(remembered=Remembered(1_700_000_000, "g++-12ab"))
    digest = cache.list()[0].digest
    assert cli.main(["inspect", digest]) == 0
    out = capsys.readouterr().out
    assert "status    declined (no_kernel_of_its_own, lapsed: tried again)\n" in out
    assert "failed    2023-11-14 22:13 UTC, with g++-12ab\n" in out
    cache.clear()
    fail(remembered=met_now(None))
    assert cli.main(["inspect", digest]) == 0
    out = capsys.readouterr().out
    assert "status    declined (no_kernel_of_its_own)\n" in out
    assert "UTC, with no compiler that is known\n" in out


def test_inspect_shows_the_identity_of_the_compiler_that_made_a_library(
    shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
    (stored,) = [
        e for e in cache.list() if (e.op, e.inputs, e.status) == ("aten::silu", "f32[8,8]", "ready")
    ]
    assert cli.main(["inspect", stored.digest]) == 0
    assert f"compiler_identity {compiler_identity()}\n" in capsys.readouterr().out
    assert str(Path(sys.prefix)) not in str(compiler_identity())
