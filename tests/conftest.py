"""Fixtures: each test has its own settings; compiled kernels are shared within a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager import _backend, _compat, _library
from aoti_eager._compile import CompileService
from aoti_eager._warnings import forget_warnings

# A fifth of every compile, and of what a hit costs, but nothing of what is computed; the one test
# that measures a hit takes it away again.
os.environ["AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"] = "O0"


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of one pytest run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def shared_cache_dir(run_dir: Path) -> Path:
    """A store that fills up during the run: a kernel that two tests need is compiled once."""
    path = run_dir / "shared-cache"
    path.mkdir(mode=0o700, exist_ok=True)
    (path / "toolchain").mkdir(mode=0o700, exist_ok=True)
    return path


def make_cache_dir(path: Path, shared_cache_dir: Path) -> Path:
    """Create an empty store whose precompiled headers are the shared ones: they cost 20 s."""
    path.mkdir(mode=0o700)
    (path / "toolchain").symlink_to(shared_cache_dir / "toolchain")
    return path


@pytest.fixture
def cache_dir(tmp_path: Path, shared_cache_dir: Path) -> Path:
    """An empty store of this test's own."""
    return make_cache_dir(tmp_path / "cache", shared_cache_dir)


@pytest.fixture(autouse=True)
def settings(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Own settings and an empty cache for each test; nothing may stay registered after it."""
    for name in list(os.environ):
        if name.startswith("AOTI_EAGER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AOTI_EAGER_CACHE_DIR", str(cache_dir))
    forget_warnings()
    with aoti_eager.config.scope(mode="sync", cache_dir=cache_dir):
        yield
    left = aoti_eager.registered_ops()
    for installed in _library._installed.values():  # one failure, not one in every later test
        _compat.destroy(installed.library)
    _library._installed.clear()
    assert left == [], f"the test left ops registered: {left}"


@pytest.fixture(scope="session", autouse=True)
def _end_workers() -> Iterator[None]:
    yield
    _backend.close_workers()


@pytest.fixture
def shared_cache(shared_cache_dir: Path, settings: None) -> Iterator[Path]:
    """Use the run's shared store instead of an empty one."""
    with aoti_eager.config.scope(cache_dir=shared_cache_dir):
        yield shared_cache_dir


@pytest.fixture
def no_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if anything is compiled: what is served must be a hit."""

    def compile_(*args: object, **kwargs: object) -> None:
        raise AssertionError("the compiler was asked")

    monkeypatch.setattr(CompileService, "compile", compile_)


def assert_close(got: object, want: object, **options: Any) -> None:
    """Compare by torch.testing.assert_close, which calls ops itself: they must not be compiled."""
    with aoti_eager.config.scope(mode="off"):
        torch.testing.assert_close(got, want, **options)
