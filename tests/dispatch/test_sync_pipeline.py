"""Mode ``sync``: what a call that waits for its kernel does otherwise than the background."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats
from aoti_eager._compile_service import cache_context
from aoti_eager._compile_service.kernel_compiler import KernelCompiler
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._compile_service.worker_process import WorkerProcess
from aoti_eager._dispatch import asking_modules
from aoti_eager._store.store import Store
from aoti_eager._store.verdict import PathTime
from aoti_eager.errors import CompileError, StoreError

from ..conftest import assert_close
from ..support.verdicts import forget_verdicts

aten = torch.ops.aten
X = torch.arange(12.0).reshape(3, 4)


def stats() -> OpStats:
    return aoti_eager.stats()["aten::silu"]


def check() -> None:
    assert_close(aten.silu(X), X * torch.sigmoid(X))


def test_a_new_library_is_not_timed_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict has no times of a busy moment; a call that waits takes those of the reply."""
    publish, made = CompileService.publish, []
    wins = PathTime(1.0, 4.0, 1.0, 0.01, True)

    def publish_busy(service: Any, request: Any) -> Any:
        published = publish(service, request)
        assert published is not None
        forget_verdicts()
        made.append(published.compiled)
        return replace(published, times={"native": wins, "python": wins})

    monkeypatch.setattr(CompileService, "publish", publish_busy)
    monkeypatch.setattr(CompileService, "measure", lambda *_: pytest.fail("timed again"))
    with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
        check()
        check()
        assert (made, stats().hits) == ([True], 1)


def test_a_new_library_that_could_not_be_timed_is_not_timed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish = CompileService.publish

    def publish_untimed(service: Any, request: Any) -> Any:
        published = publish(service, request)
        forget_verdicts()
        return replace(published, times={}, unmeasured="made up")

    monkeypatch.setattr(CompileService, "publish", publish_untimed)
    monkeypatch.setattr(CompileService, "measure", lambda *_: pytest.fail("timed again"))
    with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
        check()
        explained = aoti_eager.explain("aten::silu", X)
        assert explained.reason == "unmeasured"
        assert "made up" in str(explained.message)


def test_a_stored_library_that_cannot_be_timed_is_declined_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with aoti_eager.register("aten::silu"):
        check()
        failures = stats().failures
    forget_verdicts()

    def measure(*_: Any) -> None:
        raise CompileError("worker_died", "made up", remember=False)

    monkeypatch.setattr(CompileService, "measure", measure)
    with aoti_eager.config.scope(gate=True, strict=True), aoti_eager.register("aten::silu"):
        check()  # Nothing is raised, and nothing warned of: the original serves.
        explained = aoti_eager.explain("aten::silu", X)
        assert (explained.reason, stats().failures) == ("unmeasured", failures)
        assert "made up" in str(explained.message)


def test_a_store_that_cannot_be_written_is_said_before_a_worker_starts(
    monkeypatch: pytest.MonkeyPatch, no_compiles: None
) -> None:
    def locked(*_: Any) -> Any:
        raise StoreError("cannot be written: made up")

    monkeypatch.setattr(Store, "locked", locked)
    with aoti_eager.register("aten::silu"):
        with aoti_eager.config.scope(strict=True), pytest.raises(StoreError, match="made up"):
            aten.silu(X)
        with pytest.warns(UserWarning, match="originals run instead"):
            check()
        assert stats().declined == {"store_unwritable": 1}


def test_a_worker_that_cannot_write_is_an_error_of_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def publish(*_: Any) -> None:
        raise CompileError("store_unwritable", "no space: made up", remember=False)

    monkeypatch.setattr(CompileService, "publish", publish)
    with (
        aoti_eager.config.scope(strict=True),
        aoti_eager.register("aten::silu"),
        pytest.raises(StoreError, match="made up"),
    ):
        aten.silu(X)


def test_a_device_compilers_lasting_failure_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile_on_device(*_: Any) -> None:
        asked.append(1)
        raise CompileError("no_kernel_of_its_own", "made up", remember=True)

    monkeypatch.setattr(KernelCompiler, "works_in_background", False)
    monkeypatch.setattr(KernelCompiler, "compile_on_device", compile_on_device)
    for _ in range(2):  # The second table is as another process has.
        with aoti_eager.register("aten::silu"):
            check()
            assert aoti_eager.explain("aten::silu", X).reason == "no_kernel_of_its_own"
            assert stats().compiles == 0
    assert asked == [1]
    (entry,) = aoti_eager.cache.list()
    assert entry.status == "declined"


def test_a_forked_child_compares_a_stored_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with aoti_eager.config.scope(check=False), aoti_eager.register("aten::silu"):
        check()
    monkeypatch.setattr(cache_context, "is_forked", lambda: True)
    monkeypatch.setattr(asking_modules, "_is_prepared", False)
    with aoti_eager.register("aten::silu"):
        before = stats()
        check()
        check()
        assert stats().declined.get("forked", 0) == before.declined.get("forked", 0)
        assert stats().hits == before.hits + 1


def test_a_library_that_cannot_be_copied_leaves_the_original(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with aoti_eager.register("aten::silu"):
        check()

    def sealed_library(*_: Any) -> Any:
        raise StoreError("too many open files: made up")

    monkeypatch.setattr(Store, "sealed_library", sealed_library)
    with aoti_eager.config.scope(strict=True), aoti_eager.register("aten::silu"):
        check()
        assert aoti_eager.explain("aten::silu", X).reason == "library_unloadable"


@pytest.mark.compiles
def test_ctrl_c_leaves_nothing_of_the_killed_worker(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    removed: list[int] = []
    pids: list[int] = []

    def ask(worker: WorkerProcess, *_: Any) -> Any:
        pids.append(worker.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkerProcess, "ask", ask)
    monkeypatch.setattr(Store, "remove_work_of", lambda _, pid: removed.append(pid))
    with aoti_eager.register("aten::silu"):
        with pytest.raises(KeyboardInterrupt):
            aten.silu(X)
        monkeypatch.undo()
        assert removed == pids
        assert aoti_eager.explain("aten::silu", X).verdict == "miss"  # The next call asks again.
    assert not (cache_dir / "wanted").exists()


def test_a_check_that_is_switched_on_while_the_kernel_is_made_finds_its_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish = CompileService.publish

    def publish_and_switch(service: Any, request: Any) -> Any:
        aoti_eager.config.check = True
        return publish(service, request)

    monkeypatch.setattr(CompileService, "publish", publish_and_switch)
    with aoti_eager.config.scope(check=False), aoti_eager.register("aten::mul_.Tensor"):
        value = torch.full((2, 3), 2.0)
        value.mul_(torch.full((2, 3), 3.0))
        assert_close(value, torch.full((2, 3), 6.0))
        assert aoti_eager.stats()["aten::mul_.Tensor"].declined == {}
