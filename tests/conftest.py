"""Fixtures: each test has its own settings; compiled kernels are shared within a run."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._base.warn_once import forget_warnings
from aoti_eager._compile_service import cache_context, worker_process
from aoti_eager._compile_service.requests import Request
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._dispatch import candidate, recheck
from aoti_eager._native import op_kernel
from aoti_eager._native import runner as native_runner
from aoti_eager._registration import registry
from aoti_eager._runner.runner import ModelContainerRunner

from .support import compiled_once, forked_python, runner_libraries
from .support.kept_builds import (
    libraries,
    make_cache_dir,
    native_library,
    precompiled_header,
    pytest_sessionfinish,
    run_dir,
    shared_cache_dir,
)
from .support.machine import machine, pytest_runtest_protocol
from .support.tiers import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_configure_node,
    pytest_generate_tests,
    pytest_report_header,
)

__all__ = [  # Fixtures and hooks: pytest takes them from here.
    "libraries",
    "machine",
    "native_library",
    "precompiled_header",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_configure_node",
    "pytest_generate_tests",
    "pytest_report_header",
    "pytest_runtest_protocol",
    "pytest_sessionfinish",
    "run_dir",
    "shared_cache_dir",
]

# A fifth of every compile, and of what a hit costs, but nothing of what is computed; the one test
# that measures a hit takes it away again.
os.environ["AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"] = "O0"


@pytest.fixture
def load(libraries: runner_libraries.Libraries) -> Iterator[runner_libraries.Load]:
    """A function that loads a library by its name; each runner has all its instances at the end."""
    runners: list[ModelContainerRunner] = []

    def load_(name: str, num_models: int = 1) -> ModelContainerRunner:
        if name == "proxy":
            runner_libraries.define_hooked_op()
        runners.append(ModelContainerRunner(libraries.so(name), num_models))
        return runners[-1]

    yield load_
    runner_libraries.hooks.clear()
    for runner in runners:
        runner.close()
        assert runner._pool.available == runner.num_models, "an instance was lost"


@pytest.fixture
def thin(load: runner_libraries.Load) -> ModelContainerRunner:
    """The thin library with two models; its constants are 2."""
    return runner_libraries.loaded_thin(load, 2)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads enough for all that a test starts."""
    with ThreadPoolExecutor(32) as executor:
        yield executor


@pytest.fixture
def cache_dir(tmp_path: Path, shared_cache_dir: Path, request: pytest.FixtureRequest) -> Path:
    """An empty store of this test's own; of those marked ``shipped``, one that they share."""
    if request.node.get_closest_marker("shipped") is None:
        return make_cache_dir(tmp_path / "cache", shared_cache_dir)
    path = shared_cache_dir.with_name("shipped-cache")
    with contextlib.suppress(FileExistsError):
        make_cache_dir(path, shared_cache_dir)
    return path


@pytest.fixture
def hit_path(request: pytest.FixtureRequest) -> str:
    """Which hit path serves: ``"python"`` or ``"native"``."""
    if any(request.node.get_closest_marker(name) for name in ("native", "shipped")):
        return "native"
    return str(getattr(request, "param", os.environ.get("AE_TEST_PATH", "python")))


@pytest.fixture(autouse=True)
def settings(
    cache_dir: Path,
    hit_path: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[None]:
    """Own settings and an empty cache for each test; nothing may stay registered after it."""
    for name in list(os.environ):
        if name.startswith("AOTI_EAGER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AOTI_EAGER_CACHE_DIR", str(cache_dir))
    forget_warnings()
    registry._retired.clear()  # the counts of earlier tests
    if hit_path == "native":
        request.getfixturevalue("native_library")
        if sum(op_kernel.alive().values()):
            gc.collect()  # What earlier tests on the other hit path have left.
    else:  # Another test may have loaded it: then runners would go through it.
        monkeypatch.setattr(native_runner, "can_run", lambda: False)
    alive_before = sum(op_kernel.alive().values())
    if request.node.get_closest_marker("compiles") is None:
        # Workers behind all else that runs on a busy machine would keep tests waiting for minutes;
        # and so those of the mode ``sync`` serve, whose start takes seconds.
        monkeypatch.setattr(cache_context, "_BACKGROUND_NICE", 0)
    # What a test's processes leave unfinished is not to go on beside the next test.
    monkeypatch.setenv("AOTI_EAGER_LINGER_S", "0")
    chosen: dict[str, Any] = {"cache_dir": cache_dir}
    if request.node.get_closest_marker("shipped") is None:
        chosen |= simplest_settings(hit_path, request.node, monkeypatch)
    threads = torch.get_num_threads()
    with aoti_eager.config.scope(**chosen):
        yield
    # In the key: what later tests compile, their own processes would not find.
    threads_left = torch.get_num_threads()
    torch.set_num_threads(threads)
    left = aoti_eager.registered_ops()
    for installed in registry._installed.values():  # one failure, not one in every later test
        installed.uninstall()
    registry._installed.clear()
    assert left == [], f"the test left ops registered: {left}"
    assert threads_left == threads, "the test left another thread count"
    if hit_path == "native" and "record" not in request.fixturenames:
        if sum(op_kernel.alive().values()) > alive_before:
            gc.collect()  # 0.1 s: torch has many objects.
        assert sum(op_kernel.alive().values()) <= alive_before, op_kernel.alive()


def simplest_settings(
    hit_path: str, test: pytest.Item, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Return the settings of tests that say nothing of settings, and set them for processes."""
    native = "1" if hit_path == "native" else "0"
    # A kernel that an earlier test left behind is not to serve what the next one counts.
    dynamic = "auto" if test.get_closest_marker("dynamic") is not None else "0"
    for name, value in (
        ("NATIVE", native),
        ("MODE", "sync"),
        # Most tests are about what kernels do, and take small ones, which lose.
        ("GATE", "0"),
        ("DYNAMIC", dynamic),
    ):
        monkeypatch.setenv(f"AOTI_EAGER_{name}", value)
    # However busy the machine is, a kernel is compared in the first call after it has come.
    monkeypatch.setattr(candidate, "LIVE_CHECK_LIMIT_S", 10.0)
    # And the calls that are compared again are, however little time there is for that.
    monkeypatch.setattr(recheck, "LIMIT_S", 10.0)
    monkeypatch.setattr(recheck, "PARTS", 0)
    return {"mode": "sync", "gate": False, "native": native, "dynamic": dynamic}


@pytest.fixture(autouse=True)
def _compile_once(
    request: pytest.FixtureRequest, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copy what the run has compiled before; not where a test is about compiling."""
    if request.node.get_closest_marker("compiles") is None:
        kept = run_dir / "compiled"
        compile_ = compiled_once.remembering(CompileService.compile, kept)
        monkeypatch.setattr(CompileService, "compile", compile_)
        publish = compiled_once.remembering_entries(CompileService.publish, kept)
        monkeypatch.setattr(CompileService, "publish", publish)
        monkeypatch.setenv(forked_python.REMEMBER_VARIABLE, str(kept))


@pytest.fixture(scope="session", autouse=True)
def _patient_workers() -> Iterator[None]:
    """Keep workers while tests need none: to start one takes as long as four compiles."""
    module = "aoti_eager._compile_worker.main"
    first = f"import {module}; {module}.IDLE_S = 600.0; from {module} import"

    def patient_command(*program: str) -> list[str]:
        *options, code = child_command(*program)
        return [*options, code.replace(f"from {module} import", first)]

    child_command = worker_process.child_command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_process, "child_command", patient_command)
        yield


@pytest.fixture(scope="session", autouse=True)
def _end_workers() -> Iterator[None]:
    yield
    cache_context.close_workers()


@pytest.fixture
def shared_cache(shared_cache_dir: Path, settings: None) -> Iterator[Path]:
    """Use the run's shared store instead of an empty one."""
    with aoti_eager.config.scope(cache_dir=shared_cache_dir):
        yield shared_cache_dir


@pytest.fixture
def no_compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test if anything is compiled, in the call or beside it: what is served is a hit.

    The failure is at the test's end: what is raised within a call makes the original run instead.
    """
    asked: list[str] = []

    def ask(service: CompileService, request: Request) -> None:
        asked.append(request.what)
        raise AssertionError("the compiler was asked")

    for name in ("compile", "publish"):
        monkeypatch.setattr(CompileService, name, ask)
    yield
    aoti_eager.wait(10)  # What waits in the queue would ask later.
    assert asked == [], "the compiler was asked"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[object]:
    """Mount a tmpfs with the given options; skip, visibly, where that is not permitted."""
    mounted: list[Path] = []

    def mount_(name: str, options: str) -> Path:
        path = tmp_path / name
        path.mkdir(mode=0o700, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(path)],
            capture_output=True,
        )
        if done.returncode != 0:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
        mounted.append(path)
        return path

    yield mount_
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


MakeOp = Callable[..., aoti_eager.CustomOp]


@pytest.fixture
def make_op() -> Iterator[MakeOp]:
    """Make an operator of a function; it is taken out again at the end of the test."""
    made: list[aoti_eager.CustomOp] = []

    def make(function: Callable[..., Any], **options: Any) -> aoti_eager.CustomOp:
        op = aoti_eager.custom_op(f"aetest::{function.__name__}", function, **options)
        made.append(op)
        return op

    yield make
    for op in made:
        op.unregister()


def assert_close(got: object, want: object, **options: Any) -> None:
    """Compare by torch.testing.assert_close, which calls ops itself: they must not be compiled.

    In the main thread alone: the scope holds for all threads, and a test's other threads would not
    be served meanwhile. They keep their results, which the test compares after they have ended.
    """
    assert threading.current_thread() is threading.main_thread(), "compare after the threads"
    with aoti_eager.config.scope(mode="off"):
        torch.testing.assert_close(got, want, **options)
