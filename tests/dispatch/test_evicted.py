"""Entries that are evicted while processes use them, load them, or have just made them."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import cache
from aoti_eager._compile_service import queue
from aoti_eager._compile_service.requests import EntryRequest
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._dispatch import pending
from aoti_eager._dispatch.gate import Gate, Judged
from aoti_eager._store import stored_entries
from aoti_eager._store.limits import Limits
from aoti_eager._store.store import Store, StoredEntry

from ..support.processes import run
from ..support.verdicts import forget_verdicts

OP = "aten::silu"

NEXT = """
import json, torch, aoti_eager
x = torch.arange(64.0).reshape(8, 8) / 64
with aoti_eager.register("aten::silu"):
    for _ in range(3):
        assert torch.allclose(torch.ops.aten.silu(x), x * torch.sigmoid(x))
    counts = aoti_eager.stats()["aten::silu"]
print(json.dumps({"hits": counts.hits, "compiles": counts.compiles, "declined": counts.declined}))
"""


def call(rows: int = 8) -> None:
    x = torch.arange(8.0 * rows).reshape(rows, 8) / 64
    torch.testing.assert_close(torch.ops.aten.silu(x), x * torch.sigmoid(x))


def counts() -> aoti_eager.OpStats:
    return aoti_eager.stats()[OP]


def evict_all() -> int:
    return len(cache.evict(op="*").entries)


def test_a_process_that_has_loaded_an_evicted_entry_serves_on_and_the_next_compiles(
    cache_dir: Path,
) -> None:
    with aoti_eager.register(OP):
        call(), call()
        before = counts()
        assert before.compiles == 1
        assert evict_all() == 1
        for _ in range(3):
            call()
        assert counts().hits == before.hits + 3
        assert counts().compiles == 1
    only = run(cache_dir, NEXT, AOTI_EAGER_MODE="cache_only")
    assert (only["hits"], only["declined"]) == (0, {"not_in_cache": 3})
    following = run(cache_dir, NEXT)
    assert (following["compiles"], following["declined"]) == (1, {})
    assert following["stderr"] == ""
    assert len(cache.list()) == 1


def test_an_entry_that_goes_between_lookup_and_load_is_a_miss_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with aoti_eager.register(OP):
        call()
    check = Store.check_library
    evicted: list[int] = []

    def evicting(self: Store, found: StoredEntry) -> StoredEntry:
        if not evicted:
            evicted.append(evict_all())
        return check(self, found)

    monkeypatch.setattr(Store, "check_library", evicting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with aoti_eager.config.scope(strict=True), aoti_eager.register(OP):
            call(), call()
            assert (counts().hits, counts().declines) == (1, 0)
    assert evicted == [1]


def test_an_entry_that_goes_before_its_maker_has_loaded_it_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decide = pending.kernel_or_refusal
    evicted: list[int] = []

    def evicting(*args: Any) -> Any:
        if not evicted:
            evicted.append(evict_all())
        return decide(*args)

    monkeypatch.setattr(pending, "kernel_or_refusal", evicting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with aoti_eager.register(OP):
            call(), call()
            assert counts().hits >= 1
            assert (counts().declines, counts().failures) == (0, 0)
    assert evicted == [1]
    assert [entry.status for entry in cache.list()] == ["ready"]


@pytest.mark.parametrize("mode", ["sync", "background"])
@pytest.mark.parametrize("compared", [False, True])
def test_an_entry_that_goes_before_a_worker_has_measured_it_is_made_again(
    monkeypatch: pytest.MonkeyPatch, mode: str, compared: bool
) -> None:
    """The worker finds no library to try, or, if it was tried before, none to time."""
    with aoti_eager.register(OP):
        call()
    forget_verdicts()
    measure = Gate.measure
    evicted: list[int] = []

    def evicting(self: Gate, judged: Judged, *args: Any, **options: Any) -> Judged:
        judged = replace(judged, verdict=replace(judged.verdict, compared=compared))
        if not evicted:
            evicted.append(evict_all())
        return measure(self, judged, *args, **options)

    monkeypatch.setattr(Gate, "measure", evicting)
    # The gate is what is tested: by default, tests serve every library.
    with warnings.catch_warnings(), aoti_eager.config.scope(mode=mode, gate=True, compile_after=1):
        warnings.simplefilter("error")
        with aoti_eager.register(OP):
            call()
            assert queue.background.wait(60.0)
            assert counts().failures == 0
            declined = set(counts().declined) - {"compiling"}
    assert evicted == [1]
    assert declined <= {"slower", "unmeasured"}, "as the machine has it"
    assert len(cache.list()) == 1, "made again"


def test_a_use_is_noted_when_an_entry_is_loaded_and_never_by_hits(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    with aoti_eager.register(OP):
        call()
    (entry,) = cache.list()
    os.utime(entry.path, (1000.0, 1000.0))
    noted: list[object] = []
    note = Store.note_use

    def noting(self: Store, found: StoredEntry) -> None:
        noted.append(found.path)
        note(self, found)

    monkeypatch.setattr(Store, "note_use", noting)
    with aoti_eager.register(OP):
        for _ in range(10):
            call()
        assert counts().compiles == 1, "the one that made the entry"
        assert counts().hits >= 9
    assert noted == [entry.path]
    assert time.time() - entry.path.stat().st_mtime < stored_entries.COARSE_S


def test_a_remembered_failure_is_used_too() -> None:
    x = torch.ones(8, 8)
    with aoti_eager.register("aten::mm"):
        x @ x
    (entry,) = cache.list()
    assert entry.status == "declined"
    os.utime(entry.path, (1000.0, 1000.0))
    with aoti_eager.register("aten::mm"):
        x @ x
    assert time.time() - entry.path.stat().st_mtime < stored_entries.COARSE_S


def test_a_request_says_the_limits_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker cannot know what the script has set."""
    asked: list[Limits] = []
    publish = CompileService.publish

    def noting(self: CompileService, request: EntryRequest) -> Any:
        asked.append(request.limits)
        return publish(self, request)

    monkeypatch.setattr(CompileService, "publish", noting)
    with aoti_eager.config.scope(max_size="1M", max_entries=2), aoti_eager.register(OP):
        for rows in (8, 4, 2):
            call(rows)
        assert counts().compiles == 3
    assert asked == [Limits(1 << 20, 2)] * 3
    assert len(cache.list()) == 2


@pytest.mark.full
@pytest.mark.compiles
def test_a_worker_evicts_what_is_too_much(precompiled_header: None) -> None:
    with aoti_eager.config.scope(max_entries=1), aoti_eager.register(OP):
        for rows in (8, 4, 2):
            call(rows), call(rows)
        assert (counts().compiles, counts().hits) == (3, 3)
    assert [entry.inputs for entry in cache.list()] == ["f32[2,8]"]
