"""Calls that pass at once, because no library can serve them at this moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aoti_eager
from aoti_eager import fuse
from aoti_eager._compile_service import native_path
from aoti_eager._native import library as native_library
from aoti_eager._regions.region import UNBUILT, Region
from aoti_eager._regions.waiting import Waiting, end_all
from aoti_eager.errors import NativePathError

from ..support.regions import Policy, assert_same, inputs, seeded, served

pytestmark = pytest.mark.native


def region_of(model: nn.Module) -> Region:
    region = vars(model)["forward"].region
    assert isinstance(region, Region)
    return region


class Clock:
    """Gives nanoseconds, which pass only where somebody says so."""

    def __init__(self) -> None:
        self.now = 1

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows by one with each call that comes to a region."""
    found: list[None] = []
    call = Region.call

    def seen(region: Region, args: Any, kwargs: Any) -> Any:
        found.append(None)
        return call(region, args, kwargs)

    monkeypatch.setattr(Region, "call", seen)
    return found


def test_calls_with_gradients_pass_and_those_without_are_served(looks: list[None]) -> None:
    model, x, clock = seeded(Policy), inputs(4, 5), Clock()
    with fuse(model) as report:
        want = served(report, lambda: model(x))
        region = region_of(model)
        region._rests = Waiting(clock)
        with torch.enable_grad():
            for _ in range(3):  # What needs gradients is found out, and remembered.
                model(x)
            looks.clear()
            before = report.regions[0].calls
            for _ in range(5):
                assert model(x).requires_grad
            assert not looks
            assert report.regions[0].calls == before + 5
            with torch.no_grad():
                hits = report.regions[0].hits
                assert_same(model(x), want)
                assert report.regions[0].hits == hits + 1
            clock.now += 10_000_000
            looks.clear()
            for _ in range(5):
                model(x)
            assert len(looks) == 1


@pytest.mark.parametrize("is_function", [False, True])
def test_without_a_cpp_path_calls_pass_and_are_recorded_once_there_is_one(
    is_function: bool, looks: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, clock = seeded(Policy), inputs(4, 5), Clock()
    fused: Any = fuse(model.forward if is_function else model)
    report = fused.report if is_function else fused
    call: Callable[[Tensor], Tensor] = fused if is_function else model
    region = fused.region if is_function else region_of(model)
    region._rests = Waiting(clock)
    with monkeypatch.context() as patch:
        patch.setattr(native_library, "is_loaded", lambda: False)
        patch.setattr(native_path, "_build", native_path._Build())
        for _ in range(5):
            call(x)
        assert len(looks) == 1
        clock.now += 10_000_000
        call(x)
        assert len(looks) == 2
        assert region.why_plain == UNBUILT
        assert report.regions[0].calls == 6
    clock.now += 10_000_000
    assert_same(served(report, lambda: call(x)), seeded(Policy)(x))
    report.undo()


def test_after_wait_the_next_call_looks(looks: list[None]) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model):
        model(x)
        region = region_of(model)
        waiting = Waiting(Clock())
        region.stopped.rest(waiting)
        looks.clear()
        model(x)
        assert not looks
        aoti_eager.wait()
        model(x)
        assert len(looks) == 1


def test_a_tracer_follows_the_plain_forward_of_a_region_that_rests() -> None:
    model, x = seeded(Policy), inputs(4, 5)
    want = model(x)
    with fuse(model):
        model(x)
        region_of(model).stopped.rest(Waiting(Clock()))
        graphs: list[torch.fx.GraphModule] = []

        def keep(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
            graphs.append(graph)
            return graph.forward

        got = torch.compile(model, backend=keep, fullgraph=True)(x)
        assert_same(got, want)
        assert len(graphs) == 1
        program = torch.export.export(model, (x,))
        assert_same(program.module()(x), want)


def test_a_resting_child_is_a_part_of_its_parents_recording() -> None:
    child = seeded(Policy)
    model = nn.Sequential(child, nn.Tanh())
    x = inputs(4, 5)
    inner = fuse(child)
    with fuse(model, include=nn.Sequential) as report:
        region_of(child).stopped.rest(Waiting())  # By the clock that a recording would see.
        want = nn.Sequential(seeded(Policy), nn.Tanh())(x)
        assert_same(served(report, lambda: model(x)), want)
        assert [one.state for one in report.regions] == ["served"], report
        assert region_of(child).stopped.waiting is not None  # The recordings passed by the rest.
    inner.undo()


def test_wait_ends_the_rests_that_other_threads_begin() -> None:
    stop = threading.Event()

    def rest() -> None:
        while not stop.is_set():
            Waiting().rest()

    threads = [threading.Thread(target=rest) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for one in threads:
            one.start()
        for _ in range(2000):
            end_all()
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for one in threads:
            one.join()


BUILT_BESIDE = """
import json, time
import torch
import aoti_eager
from aoti_eager._native import library

model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
x = torch.randn(4, 5)
with torch.no_grad():
    want = model(x)
    report = aoti_eager.fuse(model)
    assert not library.is_loaded()
    while not report.regions[0].hits:  # Nobody registers, and nobody waits.
        assert torch.equal(model(x), want) or report.regions[0].hits, report
        time.sleep(0.001)
        assert report.regions[0].state != "stopped", report
    assert torch.allclose(model(x), want)
print(json.dumps({"hits": report.regions[0].hits}))
"""


@pytest.mark.full  # It builds the C++ path.
@pytest.mark.timeout(600)
def test_a_cpp_path_that_is_built_beside_a_script_serves_its_fused_modules(tmp_path: Path) -> None:
    """The gate is off: the machine's load may let a library lose."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AOTI_EAGER_")}
    done = subprocess.run(
        [sys.executable, "-c", BUILT_BESIDE],
        env={
            **inherited,
            "AOTI_EAGER_CACHE_DIR": str(tmp_path / "new"),
            "AOTI_EAGER_NATIVE": "background",
            "AOTI_EAGER_GATE": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hits"] > 0


def test_after_a_build_a_region_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str | None] = []
    build = native_path._Build()
    monkeypatch.setattr(native_path, "_build", build)
    monkeypatch.setattr(native_library, "is_loaded", lambda: False)
    monkeypatch.setattr(native_path, "_found", lambda compiler: looked.append(compiler) or True)
    monkeypatch.setattr(build, "start", lambda *_, **__: pytest.fail("a build was begun"))
    assert not native_path.take_built()
    go_on = threading.Event()
    build.thread = threading.Thread(target=go_on.wait)
    build.thread.start()
    assert not native_path.take_built()
    go_on.set()
    build.thread.join()
    assert native_path.take_built()
    assert len(looked) == 1
    assert not native_path.take_built()
    build.thread, build.failures = threading.Thread(), {Path(): NativePathError("no memory")}
    assert not native_path.take_built()
    assert len(looked) == 1


def test_a_build_that_cannot_be_loaded_does_not_reach_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_: str | None) -> bool:
        raise NativePathError("damaged")

    build = native_path._Build()
    monkeypatch.setattr(native_path, "_build", build)
    monkeypatch.setattr(native_library, "is_loaded", lambda: False)
    monkeypatch.setattr(native_path, "_found", fails)
    build.thread = threading.Thread()
    with aoti_eager.config.scope(strict=True):
        assert not native_path.take_built()


def test_in_mode_off_calls_pass_until_the_mode_changes(looks: list[None]) -> None:
    model, x = seeded(Policy), inputs(4, 5)
    with fuse(model) as report:
        want = served(report, lambda: model(x))
        region = region_of(model)
        region._rests = Waiting(Clock())  # This rest ends by a change of settings alone.
        with aoti_eager.config.scope(mode="off"):
            looks.clear()
            results = [model(x) for _ in range(5)]
            # The first came by the short way, and found the original.
            assert len(looks) == 2
        for one in results:
            assert torch.equal(one, seeded(Policy)(x))
        hits = report.regions[0].hits
        assert_same(model(x), want)
        assert report.regions[0].hits == hits + 1
