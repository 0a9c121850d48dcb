"""The mode ``background``: originals run, kernels come, are compared on a live call, and serve."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import OpStats
from aoti_eager._compile_service import cache_context, queue
from aoti_eager._compile_service.replies import Measured, Published
from aoti_eager._compile_service.requests import TimesRequest
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._dispatch import candidate, decision, making
from aoti_eager._dispatch import pending as pending_module
from aoti_eager._dispatch.kernel import Kernel
from aoti_eager._registration import registry
from aoti_eager._store import verdict as verdict_module
from aoti_eager._store.verdict import PathTime, Verdicts
from aoti_eager.errors import AotiEagerWarning, CompileError

from ..conftest import assert_close
from ..support import workers
from ..support.child_patches import patch_children
from ..support.kept_builds import make_cache_dir
from ..support.verdicts import forget_verdicts

pytestmark = [pytest.mark.both_paths(costly=True)]

aten = torch.ops.aten
X = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def in_background() -> Iterator[None]:
    # What is tested here begins when a kernel is asked for; ``test_rare`` has when that is.
    with aoti_eager.config.scope(mode="background", compile_after=1):
        yield
    assert queue.background.wait(60.0)


@pytest.fixture
def shared_cache(shared_cache_dir: Path, hit_path: str, settings: None) -> Iterator[Path]:
    """The run's store; of each hit path its own, as one would find what the other has measured."""
    path = shared_cache_dir
    if hit_path == "python":
        path = shared_cache_dir.with_name("shared-cache-python")
        with contextlib.suppress(FileExistsError):
            make_cache_dir(path, shared_cache_dir)
    with aoti_eager.config.scope(cache_dir=path):
        yield path


@pytest.fixture
def calm_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Workers that have a calm moment for whatever they measure."""
    times = """
measured = path_times
def path_times(document):
    return {path: replace(one, spread=0.0, quiet=True) for path, one in measured(document).items()}
"""
    cache_context.close_workers()
    patch_children(monkeypatch, tmp_path, {"aoti_eager._store.verdict": times})
    yield
    cache_context.close_workers()


def stats(op: str = "aten::silu") -> OpStats:
    return aoti_eager.stats().get(op, OpStats())


def silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def wins(kernel_us: float = 1.0, **more: Any) -> PathTime:
    return PathTime(**{**times(kernel_us), **more})


def times(kernel_us: float) -> dict[str, Any]:
    return {
        "kernel_us": kernel_us,
        "original_us": 2.0,
        "passed_us": 2.2,
        "spread": 0.0,
        "quiet": True,
    }


def measured(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, PathTime]) -> list[Any]:
    """Answer measurements, one after another, the last one for good; return who asked."""
    asked: list[Any] = []

    def measure(service: Any, request: TimesRequest) -> Measured:
        asked.append(request.call.key)
        return Measured(answers[min(len(asked), len(answers)) - 1], compared=True)

    monkeypatch.setattr(CompileService, "measure", measure)
    return asked


def both(time: PathTime) -> dict[str, PathTime]:
    return {"python": time, "native": time}


@pytest.mark.full
def test_the_first_calls_run_the_original_and_a_later_one_the_kernel(cache_dir: Path) -> None:
    with aoti_eager.register("aten::silu"):
        for _ in range(3):
            assert_close(aten.silu(X), silu(X))
        assert stats().hits == 0
        assert stats().misses == 3
        assert aoti_eager.wait(120.0)
        # It has come, and is not in use: the next call compares it.
        assert stats().hits == 0
        assert stats().compiles == 1
        assert_close(aten.silu(X), silu(X))
        assert stats().misses == 4
        for _ in range(5):
            assert_close(aten.silu(X), silu(X))
        assert stats() == OpStats(hits=5, misses=4, compiles=1)
        assert aoti_eager.explain("aten::silu", X).verdict == "hit"
    (entry,) = aoti_eager.cache.list()
    assert entry.status == "ready"
    assert workers.work(cache_dir) == []
    # Compared once: the next table finds that written down and takes it as it is.
    queue.background.wait(10.0)
    with aoti_eager.config.scope(mode="cache_only"), aoti_eager.register("aten::silu"):
        before = stats()
        aten.silu(X)
        assert stats().hits == before.hits + 1


@pytest.mark.full
@pytest.mark.native
def test_a_kernel_that_came_before_the_cpp_hit_path_serves_after_the_switch() -> None:
    with aoti_eager.config.scope(native="0"):
        registration = aoti_eager.register("aten::silu")
    with registration:
        aten.silu(X)
        assert queue.background.wait(120.0)
        before = stats()
        assert aoti_eager.wait()
        for _ in range(3):
            assert_close(aten.silu(X), silu(X))
        assert stats().misses == before.misses + 1
        assert stats().hits == before.hits + 2


def test_how_far_a_key_has_come_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queued, compiling, measuring, comparing: in ``explain`` and in ``stats``."""
    steps = {"compiling": "publish", "measuring": "measure"}
    may_go_on = {state: threading.Event() for state in steps}
    reached = {state: threading.Event() for state in steps}
    for state, name in steps.items():
        asked = getattr(CompileService, name)

        def held(service: Any, request: Any, state: str = state, asked: Any = asked) -> Any:
            reached[state].set()
            assert may_go_on[state].wait(60.0)
            if state == "measuring":
                return Measured(both(wins()), compared=True)
            # Without times: they are wanted next.
            return asked(service, replace(request, code=replace(request.code, gate=False)))

        monkeypatch.setattr(CompileService, name, held)

    def states() -> tuple[str | None, str | None]:
        explained = [aoti_eager.explain("aten::silu", x) for x in (X, X[:3])]
        assert all(one.verdict == "miss" for one in explained)
        assert f"miss ({explained[0].state})" in str(explained[0])
        return explained[0].state, explained[1].state

    with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
        for x in (X, X[:3]):
            aten.silu(x)
            assert reached["compiling"].wait(300.0)  # The first, so that the second waits for it.
        assert states() == ("compiling", "queued")
        assert stats().unfinished == {"compiling": 1, "queued": 1}
        may_go_on["compiling"].set()
        assert reached["measuring"].wait(60.0)
        # What is there and lacks a measurement alone is measured in one go.
        assert states() == ("measuring", "queued")
        may_go_on["measuring"].set()
        assert queue.background.wait(120.0)
        assert states() == ("comparing", "comparing")
        assert stats().unfinished == {"comparing": 2}
        aten.silu(X), aten.silu(X[:3])
        assert stats().unfinished == {}
        assert aoti_eager.explain("aten::silu", X).state is None
        assert stats().misses == 4


def test_a_stored_kernel_that_lacks_a_measurement_comes_before_all_compiles(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """However often the others are called."""
    with aoti_eager.config.scope(mode="sync"), aoti_eager.register("aten::silu"):
        aten.silu(X)
    order: list[str] = []
    gate, begun = threading.Event(), threading.Event()
    for name in ("publish", "measure"):

        def asked(service: Any, request: Any, name: str = name) -> Any:
            call = request.call if isinstance(request, TimesRequest) else request.code.call
            order.append(f"{name} {call.key.arguments[0][1]['sizes'][0]}")
            begun.set()
            assert gate.wait(60.0)
            if name == "measure":
                return Measured(both(wins()), compared=True)
            raise CompileError("compile_timeout", "not in this test", remember=False)

        monkeypatch.setattr(CompileService, name, asked)
    with (
        aoti_eager.config.scope(gate=True),
        aoti_eager.register("aten::silu"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        aten.silu(X[:1])
        assert begun.wait(60.0)  # A worker is busy with it.
        for _ in range(50):
            aten.silu(X[:2])
        aten.silu(X)
        gate.set()
        assert queue.background.wait(60.0)
    assert order == ["publish 1", "measure 8", "publish 2"]


def test_what_was_tried_on_this_processor_is_only_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel is that serves another number of threads, or another hit path."""
    asked: list[Any] = []

    def measure(service: Any, request: TimesRequest) -> Measured:
        asked.append(request.compared)
        return Measured(both(wins()), compared=True)

    monkeypatch.setattr(CompileService, "measure", measure)
    with aoti_eager.config.scope(mode="sync"), aoti_eager.register("aten::silu"):
        aten.silu(X)
    forget_verdicts()
    threads = torch.get_num_threads()
    try:
        for count in (threads, threads + 1):
            torch.set_num_threads(count)
            with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
                aten.silu(X)
                assert queue.background.wait(60.0)
    finally:
        torch.set_num_threads(threads)
    assert asked == [False, True]


def test_a_family_does_not_wait_for_good_for_a_kernel_whose_job_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(pending: pending_module.Pending) -> None:
        raise RuntimeError("made up")

    monkeypatch.setattr(pending_module.Pending, "_guarded_run", fail)
    with aoti_eager.config.scope(dynamic=True), aoti_eager.register("aten::silu"):
        aten.silu(X)
        assert queue.background.wait(60.0)
        cache = registry.find_cache(aten.silu.default, "CPU")
        assert cache is not None
        (family,) = cache.table.dynamic._families.values()
        assert family.kernels == 1
        assert not family.is_compiling


def test_what_a_call_finds_is_written_into_the_store_of_its_kernel(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path, tmp_path: Path
) -> None:
    """Though another one was set when its kernel came."""
    begun, go_on = threading.Event(), threading.Event()

    def measure(*_: Any, **__: Any) -> Measured:
        begun.set()
        assert go_on.wait(60.0)
        return Measured(both(wins()), compared=True)

    monkeypatch.setattr(CompileService, "measure", measure)
    with aoti_eager.config.scope(mode="sync", check=False), aoti_eager.register("aten::silu"):
        aten.silu(X)
    (entry,) = aoti_eager.cache.list()
    forget_verdicts()
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
        assert begun.wait(60.0)
        with aoti_eager.config.scope(cache_dir=tmp_path / "other"):
            go_on.set()
            assert queue.background.wait(60.0)
        assert stats().unfinished == {"comparing": 1}
        aten.silu(X)
        assert queue.background.wait(60.0)
    verdict = Verdicts(cache_dir).read(entry.digest)
    assert verdict is not None
    assert verdict.checked
    assert not (tmp_path / "other").exists()


def test_threads_that_miss_together_wait_for_nothing_and_compile_once() -> None:
    barrier = threading.Barrier(8)
    wrong: list[torch.Tensor] = []

    def work() -> None:
        barrier.wait()
        for _ in range(20):
            got = aten.silu(X)
            if not torch.allclose(got, expected):
                wrong.append(got)

    expected = silu(X)

    with aoti_eager.register("aten::silu"):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        aoti_eager.wait(120.0)
        aten.silu(X), aten.silu(X)
        assert stats().compiles == 1
        assert stats().calls == 8 * 20 + 2
        assert stats().hits >= 1
    assert not wrong


def test_an_invalid_call_raises_what_the_original_raises_and_queues_nothing() -> None:
    with aoti_eager.register("aten::native_layer_norm"):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            aten.native_layer_norm(X, [7], None, None, 1e-5)
        assert aoti_eager.wait(1.0)
        assert stats("aten::native_layer_norm").compiles == 0


def test_a_function_of_the_scripts_is_compiled_in_the_background() -> None:
    scale = 3.0

    @torch.library.custom_op("aoti_eager_test::pending", mutates_args=())
    def pending(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * scale + x.sum(1, keepdim=True)

    with aoti_eager.register("aoti_eager_test::pending"):
        for _ in range(2):
            pending(X)
        assert aoti_eager.wait(120.0)
        for _ in range(3):
            assert_close(pending(X), torch.tanh(X) * 3.0 + X.sum(1, keepdim=True))
        assert stats("aoti_eager_test::pending").hits == 2


def test_an_argument_that_is_written_to_is_compared_and_then_written_once() -> None:
    with aoti_eager.register("aten::mul_.Tensor"):
        values = [torch.full((4, 4), 2.0) for _ in range(4)]
        values[0].mul_(values[0] * 1)
        assert aoti_eager.wait(120.0)
        for value in values[1:]:
            value.mul_(torch.full((4, 4), 3.0))
            assert_close(value, torch.full((4, 4), 6.0))
        assert stats("aten::mul_.Tensor").hits == 2


def test_a_library_that_differs_on_the_live_call_is_quarantined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = decision.load

    def load_wrong(*args: Any) -> Kernel:
        kernel = load(*args)
        run = kernel.run
        kernel.run = lambda inputs: [run(inputs)[0] + 1]  # type: ignore[method-assign]
        return kernel

    monkeypatch.setattr(decision, "load", load_wrong)
    with aoti_eager.register("aten::silu"):
        for _ in range(2):
            assert_close(aten.silu(X), silu(X))
            aoti_eager.wait(120.0)
        assert_close(aten.silu(X), silu(X))
        assert stats().hits == 0
        assert stats().failures == 1
        assert set(stats().declined) == {"mismatch"}
    (entry,) = aoti_eager.cache.list()
    assert entry.status == "quarantined"


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_error_of_ours_in_the_call_that_compares_is_not_the_callers(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    def copies(_: object) -> None:
        raise error("no room for a copy")

    with aoti_eager.register("aten::silu"):
        # Of a size of its own: a library that was compared once is not compared again.
        x = torch.randn(7, 8 + (error is MemoryError))
        aten.silu(x)
        assert aoti_eager.wait(120.0)
        with monkeypatch.context() as patched:
            patched.setattr(candidate.LiveCheck, "copies", copies)
            if error is KeyboardInterrupt:
                with pytest.raises(KeyboardInterrupt):
                    aten.silu(x)
            else:
                with pytest.warns(AotiEagerWarning, match="no room"):
                    assert_close(aten.silu(x), silu(x))
        # Ctrl-C says nothing about the key: it comes again.
        for _ in range(3):
            assert_close(aten.silu(x), silu(x))
            assert aoti_eager.wait(60.0)
        assert (stats().hits > 0) == (error is KeyboardInterrupt)
        assert ("internal_error" in stats().declined) == (error is MemoryError)


@pytest.mark.full
@pytest.mark.parametrize("compared", [True, False])
def test_a_long_call_goes_by_what_was_compared_elsewhere(
    compared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "LIVE_CHECK_LIMIT_NUMEL", 1)

    def problems(*_: object) -> list[str]:
        raise AssertionError("compared in the caller's thread")

    monkeypatch.setattr(candidate.LiveCheck, "problems", problems)
    if not compared:
        get = Verdicts.get
        monkeypatch.setattr(
            Verdicts, "get", lambda *a: verdict_module.replace(get(*a), compared=False)
        )
        monkeypatch.setattr(CompileService, "measure", lambda *a, **k: Measured({}, compared=False))
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
        aoti_eager.wait(120.0)
        for _ in range(3):
            assert_close(aten.silu(X), silu(X))
        if compared:
            assert stats().hits == 2
        else:
            assert stats().declined["unchecked"] == 2


def clock(perf_counter: Callable[[], float]) -> SimpleNamespace:
    """Return what ``_dispatch.candidate`` uses of ``time``, with another clock."""
    return SimpleNamespace(perf_counter=perf_counter, sleep=time.sleep, monotonic=time.monotonic)


@pytest.mark.full
@pytest.mark.parametrize("usual_us", [2.0, 5000.0])
def test_a_call_that_is_long_by_chance_leaves_the_comparison_to_the_next(
    usual_us: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_s: list[float] = []

    def perf_counter() -> float:
        return taken_s.pop(0)

    compared: list[None] = []
    problems = candidate.LiveCheck.problems

    def noted(*args: Any) -> list[str]:
        compared.append(None)
        return problems(*args)

    get, usual = Verdicts.get, wins(original_us=usual_us)
    monkeypatch.setattr(
        Verdicts, "get", lambda *a: verdict_module.replace(get(*a), times={"native/77": usual})
    )
    monkeypatch.setattr(candidate.LiveCheck, "problems", noted)
    monkeypatch.setattr(candidate, "LIVE_CHECK_LIMIT_S", 200e-6)
    monkeypatch.setattr(candidate, "time", clock(perf_counter))
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
        assert queue.background.wait(120.0)
        before = stats()
        taken_s[:] = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0001]  # long, long, short
        for _ in range(4):
            assert_close(aten.silu(X), silu(X))
        if usual_us < 200:
            assert (len(compared), len(taken_s)) == (1, 0)
            assert stats().misses == before.misses + 3
            assert stats().hits == before.hits + 1
        else:  # Each of its calls is long: there is nothing to wait for.
            assert (len(compared), len(taken_s)) == (0, 4)
            assert stats().hits == before.hits + 3


def test_calls_that_are_always_long_by_chance_do_not_keep_the_kernel_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    get = Verdicts.get
    monkeypatch.setattr(
        Verdicts, "get", lambda *a: verdict_module.replace(get(*a), times={"native/77": wins()})
    )
    ticks = itertools.count()
    monkeypatch.setattr(candidate, "LIVE_CHECK_LIMIT_S", 200e-6)
    monkeypatch.setattr(candidate, "time", clock(lambda: float(next(ticks))))
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
        assert queue.background.wait(120.0)
        before = stats().hits
        for _ in range(8):
            assert_close(aten.silu(X), silu(X))
        assert stats().hits == before + 8 - 1 - candidate._SLOW_CALLS


def test_another_keys_entry_from_a_worker_is_not_used(
    monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    with aoti_eager.config.scope(mode="sync"), aoti_eager.register("aten::silu"):
        aten.silu(X)
    other = next(
        e.path
        for e in aoti_eager.cache.list()
        if (e.op, e.inputs, e.status) == ("aten::silu", "f32[8,8]", "ready")
    )
    answer = Published(other, compiled=False)
    monkeypatch.setattr(CompileService, "publish", lambda *a, **k: answer)
    with aoti_eager.config.scope(check=False), aoti_eager.register("aten::silu"):
        with pytest.warns(AotiEagerWarning, match="another key's entry"):
            aten.silu(X[:1, :3])
            aoti_eager.wait(30.0)
        assert_close(aten.silu(X[:1, :3]), silu(X[:1, :3]))
        assert set(stats().declined) == {"worker_died"}


def test_a_kernel_that_loses_is_declined_and_the_next_process_knows(
    monkeypatch: pytest.MonkeyPatch, calm_workers: None
) -> None:
    monkeypatch.setattr(PathTime, "wins", property(lambda time: False))
    asked = measured(monkeypatch, both(wins()))
    x = torch.randn(3, 5)
    with aoti_eager.config.scope(gate=True):
        for turn in range(2):  # A registration starts with an empty table, as a process does.
            with aoti_eager.register("aten::silu"):
                before = stats()
                aten.silu(x)
                assert aoti_eager.wait(120.0)
                aten.silu(x)
                after = stats()
            assert after.hits == before.hits
            assert after.declined["slower"] - before.declined.get("slower", 0) == 1 + turn
            assert after.compiles - before.compiles == 1 - turn
        assert asked == []  # The worker that compiled it had measured it, too.
        # Without the gate it serves, and with it again no more.
        with aoti_eager.register("aten::silu"):
            aten.silu(x)
            with aoti_eager.config.scope(gate=False, mode="sync"):
                before = stats()
                aten.silu(x), aten.silu(x)
                assert stats().hits >= before.hits + 1
            before = stats()
            aten.silu(x)
            assert stats().hits == before.hits


def test_what_came_without_the_gate_is_measured_once_it_is_on(
    monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    x = torch.randn(3, 9)
    asked = measured(monkeypatch, both(wins(9.0)))
    with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
        with aoti_eager.config.scope(gate=False):
            aten.silu(x)
            assert aoti_eager.wait(120.0)
        for _ in range(3):
            aten.silu(x)
            assert aoti_eager.wait(60.0)
        assert len(asked) == 1
        assert stats().hits == 0
        assert set(stats().declined) == {"slower"}


def test_another_processor_measures_again(
    monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    x = torch.randn(3, 6)
    with aoti_eager.register("aten::silu"):
        aten.silu(x)
        assert aoti_eager.wait(120.0)
        aten.silu(x), aten.silu(x)
    queue.background.wait(10.0)
    monkeypatch.setattr(verdict_module, "processor", lambda: "another-1234")
    asked = measured(monkeypatch, both(wins()))
    with aoti_eager.config.scope(gate=True):
        for turn in range(2):
            with aoti_eager.register("aten::silu"):
                before = stats()
                aten.silu(x)
                assert aoti_eager.wait(60.0)
                for _ in range(3):
                    aten.silu(x)
                after = stats()
            # What was compared is written down beside the script.
            assert aoti_eager.wait(60.0)
            assert len(asked) == 1
            assert after.compiles == before.compiles
            # The first turn measures, then compares on a call; the second knows all.
            assert after.hits - before.hits == (2 if turn == 0 else 4)


def test_what_cannot_be_timed_is_tried_again_later_and_then_declined(
    monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    x = torch.randn(3, 7)
    with aoti_eager.register("aten::silu"):
        aten.silu(x)
        aoti_eager.wait(120.0)
    monkeypatch.setattr(verdict_module, "processor", lambda: "busy-1234")
    monkeypatch.setattr(making, "_MOST_RETRIES", 1)
    asked = measured(monkeypatch, {})
    with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
        before = stats()
        aten.silu(x)
        assert aoti_eager.wait(60.0)
        aten.silu(x)
        assert len(asked) == 2
        assert stats().declined["unmeasured"] - before.declined.get("unmeasured", 0) == 1


@pytest.mark.parametrize(("second", "is_served"), [(wins(), True), (wins(9.0), False)])
def test_what_lost_by_noise_is_timed_again_in_a_calmer_moment(
    second: PathTime, is_served: bool, monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    x = torch.randn(3, 7)
    with aoti_eager.register("aten::silu"):
        aten.silu(x)
        aoti_eager.wait(120.0)
    monkeypatch.setattr(verdict_module, "processor", lambda: f"noisy-{is_served}")
    asked = measured(monkeypatch, both(wins(1.8, spread=0.6)), both(second))
    with aoti_eager.config.scope(gate=True), aoti_eager.register("aten::silu"):
        aten.silu(x)
        assert aoti_eager.wait(60.0)
        before = stats()
        for _ in range(4):
            aten.silu(x)
        assert len(asked) == 2
        assert (stats().hits > before.hits) is is_served
        assert ("slower" in stats().declined) is not is_served


def test_switching_to_sync_waits_for_the_keys_of_before() -> None:
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
        with aoti_eager.config.scope(mode="sync"):
            aten.silu(X)
            before = stats().hits
            aten.silu(X)
            assert stats().hits == before + 1


def test_a_full_queue_declines_and_takes_the_key_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "QUEUE_LIMIT", 1)
    sizes = [torch.randn(n, 3) for n in (2, 3, 4)]
    publish = CompileService.publish
    go = threading.Event()

    def publish_later(*args: Any, **kwargs: Any) -> Any:
        assert go.wait(60.0)
        return publish(*args, **kwargs)

    monkeypatch.setattr(CompileService, "publish", publish_later)
    with aoti_eager.register("aten::silu"):
        for x in sizes * 2:
            aten.silu(x)
        assert stats().declined["queue_full"] >= 1
        go.set()
        assert aoti_eager.wait(120.0)
        for _ in range(2):
            for x in sizes:
                aten.silu(x)
            assert aoti_eager.wait(120.0)
        before = stats().hits
        for x in sizes:
            aten.silu(x), aten.silu(x)
        assert stats().hits - before >= len(sizes)


def test_the_cap_counts_keys_that_are_on_their_way() -> None:
    with aoti_eager.config.scope(static_cap=2), aoti_eager.register("aten::silu"):
        for n in (2, 3, 4):
            aten.silu(torch.randn(n, 2))
        assert stats().declined == {"specialisation_cap": 1}


def test_unregistering_while_kernels_come_lets_go_of_them() -> None:
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
    assert aoti_eager.wait(120.0)
    assert aoti_eager.registered_ops() == []
    assert_close(aten.silu(X), silu(X))


def test_an_earlier_override_is_compared_live(cache_dir: Path) -> None:
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("silu", lambda x: x + 100, "CPU")
    try:
        with aoti_eager.register("aten::silu.default"):
            aten.silu(X)
            aoti_eager.wait(120.0)
            for _ in range(3):
                assert_close(aten.silu(X), X + 100)
            assert stats().hits == 0
            assert stats().declined["mismatch"] == 2
    finally:
        library._destroy()


def test_no_compiler_is_one_warning_and_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    with aoti_eager.register("aten::silu"):
        monkeypatch.setenv("PATH", "/nonexistent")
        monkeypatch.delenv("CXX", raising=False)
        with pytest.warns(AotiEagerWarning, match="no C\\+\\+ compiler"):
            aten.silu(X)
            queue.background.wait(30.0)
        assert_close(aten.silu(X), silu(X))
        assert stats().declined == {"no_compiler": 1}


SCRIPT = """
import sys, torch, aoti_eager
x = torch.ones(5, 8)
aoti_eager.register("aten::silu")
for _ in range(3):
    torch.ops.aten.silu(x)
aoti_eager.wait()
for _ in range(3):
    torch.ops.aten.silu(x)
assert "torch._inductor" not in sys.modules
print(aoti_eager.stats()["aten::silu"].hits, aoti_eager.stats()["aten::silu"].compiles)
"""


@pytest.mark.full
def test_a_process_has_what_an_earlier_one_compiled(
    shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However busy the machine is, a kernel is compared in the first call after it has come.
    patch_children(
        monkeypatch, tmp_path, {"aoti_eager._dispatch.candidate": "LIVE_CHECK_LIMIT_S = 10.0"}
    )
    environment = {**os.environ, "AOTI_EAGER_CACHE_DIR": str(shared_cache)}
    environment.pop("AOTI_EAGER_MODE")
    done = []
    for _ in range(2):
        output = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            cwd=tmp_path,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        done.append(output.split())
    assert done == [["2", "1"], ["6", "0"]]


def test_nothing_of_a_job_stays_behind() -> None:
    with aoti_eager.register("aten::silu"):
        aten.silu(X)
        aoti_eager.wait(120.0)
        aten.silu(X)
        (cache,) = [c for c in registry.caches() if c.schema.op == "aten::silu"]
        assert not cache.table.candidates
        assert not cache.table.compiling
    assert cache_context.current().store.stale_work() == []


@pytest.mark.native
def test_a_kernel_that_cpp_takes_after_its_first_run_only_comes_to_cpp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a full library of AOTInductor's; no call compares it, so none has run it."""
    load, runs = decision.load, []

    def loaded(*args: Any) -> Kernel:
        kernel = load(*args)
        run, native = kernel.run, kernel.native

        def noted(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
            runs.append(1)
            return run(inputs)

        kernel.run = noted
        kernel.native = lambda: native() if runs else None
        return kernel

    monkeypatch.setattr(decision, "load", loaded)
    x = torch.randn(300, 300)
    with aoti_eager.register("aten::silu"):
        aten.silu(x)
        assert queue.background.wait(120.0)
        before = stats()
        for _ in range(5):
            assert_close(aten.silu(x), silu(x))
        assert stats().misses == before.misses + 1
        assert stats().hits == before.hits + 4
        assert len(runs) == 1  # The others went through C++.
