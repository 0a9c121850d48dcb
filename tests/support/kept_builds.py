"""What a test run builds once, shares among its processes, and keeps for the next run."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from aoti_eager._base.cpp_compiler import compiler_on_path
from aoti_eager._native import build as native_build
from aoti_eager._native import library as native_library_module

from . import processes, runner_libraries


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of one pytest run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def shared_cache_dir(run_dir: Path, request: pytest.FixtureRequest) -> Path:
    """A store that fills up during the run: a kernel that two tests need is compiled once."""
    path = run_dir / "shared-cache"
    with (run_dir / "shared-cache.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.mkdir(mode=0o700)
            kept = kept_toolchain(request.config)
            if kept.exists():
                shutil.copytree(kept, path / "toolchain", symlinks=True)
            (path / "toolchain").mkdir(mode=0o700, exist_ok=True)
    return path


def kept_toolchain(config: pytest.Config) -> Path:
    """Return where a run leaves what compilers made for all kernels, for the next run.

    Each part is found by a digest of what it was made of, so one that does not fit is not used.
    """
    assert config.cache is not None
    return config.cache.mkdir("aoti_eager") / "toolchain"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the toolchain of this run, in place of an earlier one's."""
    config = session.config
    made = Path(config._tmp_path_factory.getbasetemp(), "shared-cache", "toolchain")  # type: ignore[attr-defined]
    if hasattr(config, "workerinput") or not made.exists():
        return
    kept = kept_toolchain(config)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(made, kept, symlinks=True, ignore_dangling_symlinks=True)


@pytest.fixture(scope="session")
def precompiled_header(shared_cache_dir: Path) -> None:
    """The precompiled header: without it a kernel takes as long as some of the tests."""
    if not list(shared_cache_dir.glob("toolchain/headers/*.gch")):
        processes.run(
            shared_cache_dir,
            """
import json, pathlib, time, torch, aoti_eager
aoti_eager.register("aten::silu")
torch.ops.aten.silu(torch.ones(1000))
headers = aoti_eager.config.cache_dir / "toolchain" / "headers"
deadline = time.monotonic() + 100
while not list(headers.glob("*.gch")) and time.monotonic() < deadline:
    time.sleep(0.1)
print("{}")
""",
            AOTI_EAGER_MODE="sync",
            AOTI_EAGER_GATE="0",
            AOTI_EAGER_NATIVE="0",
        )
    assert list(shared_cache_dir.glob("toolchain/headers/*.gch"))


@pytest.fixture(scope="session")
def libraries(
    run_dir: Path, shared_cache_dir: Path, request: pytest.FixtureRequest
) -> runner_libraries.Libraries:
    """Libraries for runners, compiled once in a run, or in an earlier one."""
    kept = kept_toolchain(request.config).with_name("runner-libraries")
    return runner_libraries.build(run_dir, kept)


@pytest.fixture(scope="session")
def native_library(shared_cache_dir: Path) -> None:
    """The C++ hit path, built once in a run and loaded."""
    compiler = compiler_on_path()
    assert compiler is not None
    native_library_module.load(native_build.build(shared_cache_dir / "toolchain", compiler))


def make_cache_dir(path: Path, shared_cache_dir: Path) -> Path:
    """Create an empty store whose precompiled headers are the shared ones: they cost 20 s."""
    path.mkdir(mode=0o700)
    (path / "toolchain").symlink_to(shared_cache_dir / "toolchain")
    return path
